"""The smallest models and runs that do all that large ones do."""

import dataclasses
from pathlib import Path
from typing import Any

from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec
from training.config import Batches, Budget, TrainConfig, Validation
from training.presets import classic

CLASSIC = ModelSpec(
    architecture="classic",
    dimensions={"channels": (4, 4, 8), "fold": 8, "memory_inputs": 8, "memory_units": 4},
    stems=("vocals", "accompaniment"),
    audio=AudioSpec(sample_rate_hz=22_050),
    stft=StftSpec(n_fft=2048, hop_samples=512),
    chunk=ChunkSpec(length_s=15, overlap_s=1),
)
"""The classic preset with hardly any weights."""

BANDED = ModelSpec(
    architecture="banded",
    dimensions={
        **{"band_bins": (64, 128, 320), "band_widths": (2, 8, 20)},
        **{"channels": (4, 6, 8), "paths": 1, "units": 4, "memory_inputs": 8, "memory_units": 4},
    },
    stems=("vocals", "drums", "bass", "other"),
    audio=AudioSpec(sample_rate_hz=44_100),
    stft=StftSpec(n_fft=1024, hop_samples=256),
    chunk=ChunkSpec(length_s=4, overlap_s=1),
)
"""The studio preset with hardly any weights."""


def tiny_run(
    songs: Path | str,
    *,
    steps: int,
    batch_size: int,
    crop_s: float,
    validations: int,
    valid_excerpt_s: float = 30.0,
    **facts: Any,
) -> TrainConfig:
    """A run of the tiny classic model on songs in a folder; `facts` are other fields of the configuration."""
    return dataclasses.replace(
        classic(str(songs), Budget(steps=steps)),
        model=CLASSIC,
        batches=Batches(batch_size, crop_s),
        validation=Validation(validations=validations, valid_excerpt_s=valid_excerpt_s),
        **facts,
    )
