"""Train the presets and Open-Unmix for the same time on the same data, and score each on the validation songs.

    pip install --no-deps --target peers openunmix
    OMP_NUM_THREADS=1 PYTHONPATH=peers:. python tests/benchmarks/train_beside.py MODEL --data … --out … --minutes 30

MODEL is classic, studio, studio-small or open-unmix. A GPU trains them whole. Without one they are narrowed to what one core
can train in minutes: fewer channels, and the studio presets hear 22,050 Hz, as classic does. All draw the same excerpts in the
same order and are scored at 44.1 kHz. Open-Unmix is trained as its own script does: gains from 0.25 to 1.25, channels exchanged
in half of the stems, mean square error of magnitudes, Adam at 1e-3 with a weight decay of 1e-5, four targets, each a network
of its own; they share the time.
"""

import argparse
import sys
import time
import types
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from serving.audio import Audio
from serving.model.spec import ModelSpec, Quality
from training.config import Batches, Budget, TrainConfig, Validation
from training.data.augment import chances, samples_to_cut
from training.data.crops import Crops, prepared_batches
from training.data.data_set import list_dataset
from training.data.decoded import decode
from training.data.song import SOURCES
from training.evaluation.evaluate import Evaluation, evaluate_song
from training.optimization.machine import Machine
from training.optimization.precision import Precision, prepare
from training.optimization.step import INT16_FULL_SCALE
from training.presets import PRESETS
from training.progress import ProgressBar
from training.run.train import Places, train

NARROW = {
    "classic": {"channels": (24, 48, 64), "memory_inputs": 192, "memory_units": 128},
    "studio": {"channels": (24, 48, 64), "paths": 1, "units": 48, "memory_inputs": 192, "memory_units": 128},
    "studio-small": {"channels": (16, 32, 48), "paths": 1, "units": 32, "memory_inputs": 96, "memory_units": 64},
}
RATE_HZ = 22_050
BANDS_BELOW_11_KHZ = {"band_bins": (256, 512, 256), "band_widths": (2, 8, 16)}
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BATCH_SIZE, CROP_S, UNMIX_HIDDEN = (16, 6.0, 512) if GPU else (2, 3.0, 256)
UNMIX_BINS = 2049


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=(*NARROW, "open-unmix"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--crop-s", type=float, default=CROP_S)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    prepare(deterministic=False)
    preset = "studio" if given.model == "open-unmix" else given.model
    config = PRESETS[preset](given.data, Budget(minutes=given.minutes))
    config = replace(
        config, batches=Batches(given.batch_size, given.crop_s), validation=Validation(validations=6), seed=given.seed
    )
    if given.model == "open-unmix":
        train_unmix(config, given.out)
        return
    model = config.model if GPU else narrow(config.model, NARROW[preset])
    places = Places(given.out / given.model, given.out / "cache")
    train(replace(config, model=model), places, Machine(DEVICE), resume=False, wait=True)


def narrow(model: ModelSpec, size: Mapping[str, int | tuple[int, ...]]) -> ModelSpec:
    dimensions = {**model.dimensions, **size}
    if model.architecture != "banded":
        return replace(model, dimensions=dimensions)
    return replace(
        model,
        dimensions=dimensions | BANDS_BELOW_11_KHZ,
        audio=replace(model.audio, sample_rate_hz=RATE_HZ),
        stft=replace(model.stft, n_fft=model.stft.n_fft // 2, hop_samples=model.stft.hop_samples // 2),
    )


class Unmixed:
    """Open-Unmix where a separator is expected."""

    def __init__(self, config: TrainConfig, networks: dict[str, torch.nn.Module]) -> None:
        from openunmix.model import Separator

        self.spec = config.model
        self.unmix = Separator(target_models=networks, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2)
        self.unmix = self.unmix.to(DEVICE).eval()

    @torch.inference_mode()
    def separate(self, audio: Audio, _rate_hz: int, _quality: Quality) -> dict[str, Audio]:
        stems = self.unmix(torch.from_numpy(np.ascontiguousarray(audio))[None].to(DEVICE))[0]
        return dict(zip(self.spec.stems, stems.cpu().numpy(), strict=True))


def train_unmix(config: TrainConfig, out: Path) -> None:
    if find_spec("torchaudio") is None:  # which it imports only to read files
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from openunmix.model import OpenUnmix
    from openunmix.transforms import ComplexNorm, make_filterbanks

    data = list_dataset(config.data, out / "cache" / "data", config.validation.valid_share)
    data.bring([*data.train, *data.valid], ProgressBar())
    songs = decode(data.train, config.model.audio, SOURCES, out / "cache" / "decoded", ProgressBar())
    batch_size = config.batches.batch_size
    crops = Crops(songs, batch_size, samples_to_cut(config.crop_samples), config.seed)
    transform, _ = make_filterbanks(n_fft=4096, n_hop=1024, center=False, sample_rate=44_100.0)
    encoder = torch.nn.Sequential(transform, ComplexNorm(mono=False)).to(DEVICE)

    def excerpts(step: int, decoded: torch.Tensor) -> torch.Tensor:
        level, place, *_ = chances(config.seed, step, batch_size, len(SOURCES)).to(DEVICE)[..., None, None].unbind(2)
        louder = (0.25 + level) * decoded[..., : config.crop_samples].to(DEVICE) / INT16_FULL_SCALE
        return torch.where(place < 0.5, louder.flip(2), louder)

    with torch.no_grad():
        some = [encoder(excerpts(step, crops.batch(step)).sum(dim=1)) for step in range(16)]
        frames = torch.cat([magnitude.mean(dim=1).transpose(1, 2).flatten(0, 1) for magnitude in some])
        mean, deviation = frames.mean(dim=0).cpu().numpy(), frames.std(dim=0).cpu().numpy()
    deviation = np.maximum(deviation, 1e-4 * deviation.max())
    torch.manual_seed(config.seed)
    size = {"nb_bins": UNMIX_BINS, "nb_channels": 2, "hidden_size": UNMIX_HIDDEN, "max_bin": 1487}
    networks = {s: OpenUnmix(input_mean=mean, input_scale=deviation, **size).to(DEVICE) for s in config.model.stems}
    optimizers = {s: torch.optim.Adam(n.parameters(), lr=1e-3, weight_decay=1e-5) for s, n in networks.items()}
    autocast = Precision.of(DEVICE, None).autocast(DEVICE)

    spent_s, step, validations = 0.0, 0, 0
    with closing(prepared_batches(crops, 0, pin_memory=GPU)) as upcoming:
        while validations < config.validation.validations:
            started = time.monotonic()
            stems = excerpts(step, next(upcoming))
            with torch.no_grad():
                mixture, targets = encoder(stems.sum(dim=1)), encoder(stems.flatten(0, 1)).unflatten(0, stems.shape[:2])
            for index, (stem, network) in enumerate(networks.items()):
                with autocast:
                    estimate = network(mixture)
                optimizers[stem].zero_grad()
                functional.mse_loss(estimate.float(), targets[:, index]).backward()
                optimizers[stem].step()
            if GPU:
                torch.cuda.synchronize()
            step += 1
            spent_s += time.monotonic() - started
            if config.budget.progress(step, spent_s) * config.validation.validations >= validations + 1:
                validations += 1
                unmixed = Unmixed(config, networks)
                scores = Evaluation(tuple(evaluate_song(unmixed, song, None) for song in data.valid))  # type: ignore[arg-type]
                told = {stem: f"{s.csdr_db:.2f} / {s.usdr_db:.2f}" for stem, s in scores.stems.items()}
                print(f"step {step}, {spent_s / 60:.1f} min, cSDR / uSDR: {told}", flush=True)
                for network in networks.values():
                    network.train()


if __name__ == "__main__":
    main()
