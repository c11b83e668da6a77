"""The presets: complete configurations of a run."""

from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec
from serving.model.starter_spec import SPEC as STARTER_SPEC
from training.config import Batches, Budget, Optimization, TrainConfig, Validation


def classic(data: str, budget: Budget) -> TrainConfig:
    """The plan's U-Net: 22,050 Hz, 2048/512, vocals and accompaniment; 15 s are 1,025 x 646."""
    return TrainConfig(
        preset="classic",
        data=data,
        model=ModelSpec(
            architecture="classic",
            dimensions={"channels": (48, 96, 128), "fold": 8, "memory_inputs": 384, "memory_units": 256},
            stems=("vocals", "accompaniment"),
            audio=AudioSpec(sample_rate_hz=22_050),
            stft=StftSpec(n_fft=2048, hop_samples=512),
            chunk=ChunkSpec(length_s=15, overlap_s=1),
        ),
        budget=budget,
        batches=Batches(),
        optimization=Optimization(),
        validation=Validation(),
    )


def studio(data: str, budget: Budget) -> TrainConfig:
    """The band-split U-Net: 44.1 kHz, 4096/1024, four stems."""
    return banded(
        "studio", data, budget, channels=(80, 160, 224), paths=2, units=128, memory_inputs=192, memory_units=96
    )


def studio_small(data: str, budget: Budget) -> TrainConfig:
    """The band-split U-Net of `studio` with fewer weights, for laptops."""
    return banded(
        "studio-small", data, budget, channels=(40, 80, 112), paths=1, units=96, memory_inputs=96, memory_units=48
    )


def banded(preset: str, data: str, budget: Budget, **size: int | tuple[int, ...]) -> TrainConfig:
    """The band-split U-Net in a given size."""
    return TrainConfig(
        preset=preset,
        data=data,
        model=ModelSpec(
            architecture="banded",
            dimensions={"band_bins": (256, 512, 1280), "band_widths": (2, 8, 20), **size},
            stems=("vocals", "drums", "bass", "other"),
            audio=AudioSpec(sample_rate_hz=44_100),
            stft=StftSpec(n_fft=4096, hop_samples=1024),
            chunk=ChunkSpec(length_s=12, overlap_s=1),
        ),
        budget=budget,
        batches=Batches(),
        optimization=Optimization(weight_decay=1e-1),  # with less, they memorise small data sets
        validation=Validation(),
    )


def spleeter(data: str, budget: Budget) -> TrainConfig:
    """Spleeter's two U-Nets, to fine-tune the starter: use `--init` with its archive.

    Few small steps, long excerpts and few validations, because the start is good.
    """
    return TrainConfig(
        preset="spleeter",
        data=data,
        model=STARTER_SPEC,
        budget=budget,
        batches=Batches(batch_size=2, crop_s=4.4),
        optimization=Optimization(learning_rate=2e-5),  # with 1e-4 it memorises small data sets
        validation=Validation(validations=4),
    )


PRESETS = {"classic": classic, "studio": studio, "studio-small": studio_small, "spleeter": spleeter}
