"""Write what a tiny network makes of a short song, as a vector that later versions are held to.

    python -m tests.vectors.make_vectors

Run it only when a change of the numbers is meant, and say why in the commit. Weights and song are stored beside the
vocals, so that the vector depends on no random generator.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from serving.model.networks import build
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec

VECTORS = Path(__file__).parent
RATE_HZ = 44_100

CLASSIC = ModelSpec(
    architecture="classic",
    dimensions={"channels": (2, 4, 6), "fold": 16, "memory_inputs": 8, "memory_units": 4},
    stems=("vocals", "accompaniment"),
    audio=AudioSpec(sample_rate_hz=22_050),
    stft=StftSpec(n_fft=2048, hop_samples=512),
    chunk=ChunkSpec(length_s=15, overlap_s=1),
)
BANDED = ModelSpec(
    architecture="banded",
    dimensions={
        **{"band_bins": (64, 128, 320), "band_widths": (4, 16, 40)},
        **{"channels": (2, 4, 6), "paths": 1, "units": 3, "memory_inputs": 8, "memory_units": 4},
    },
    stems=("vocals", "drums", "bass", "other"),
    audio=AudioSpec(sample_rate_hz=44_100),
    stft=StftSpec(n_fft=1024, hop_samples=256),
    chunk=ChunkSpec(length_s=12, overlap_s=1),
)
SPECS = {"classic": CLASSIC, "banded": BANDED}


def main() -> None:
    for name, spec in SPECS.items():
        write_vector(VECTORS / f"{name}.safetensors", spec)


def write_vector(path: Path, spec: ModelSpec) -> None:
    torch.manual_seed(0)
    network = build(spec)
    for tensor in network.state_dict().values():  # away from the zeros and ones of fresh normalisation
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    time_s = np.arange(RATE_HZ // 10) / RATE_HZ
    song = np.stack([0.5 * np.sin(2 * np.pi * 220 * time_s), 0.3 * np.sin(2 * np.pi * 3_000 * time_s**2)])
    separator = Separator(spec, network, "cpu")
    separator.engine.bfloat16 = False
    vocals = separator.separate(song.astype(np.float32), RATE_HZ)["vocals"]
    tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    tensors["song"] = torch.from_numpy(song.astype(np.float32))
    tensors["vocals"] = torch.from_numpy(vocals)
    safetensors.torch.save_file(tensors, path)


if __name__ == "__main__":
    main()
