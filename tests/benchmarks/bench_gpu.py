"""The cost of the presets on a GPU, to train and to separate with: python -m pytest -s tests/benchmarks/bench_gpu.py"""

import dataclasses
import time

import numpy as np
import pytest
import torch

from serving.model.networks import build
from serving.model.separator import Separator
from tests.steppers import stepper_of
from training.config import Batches, Budget, TrainConfig
from training.data.augment import samples_to_cut
from training.optimization.precision import prepare
from training.optimization.step import Stepper
from training.presets import PRESETS
from training.run.profile import Stopwatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

GPU = torch.device("cuda")
WARMUP_STEPS, STEPS = 4, 12
SONG_S = 240


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(("batch_size", "crop_s"), [(16, 6.0), (4, 10.0)])
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_and_memory(
    preset: str, batch_size: int, crop_s: float, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not recorded:
        monkeypatch.setattr(Stepper, "record", lambda *_: None)
    prepare(deterministic=False)
    config: TrainConfig = PRESETS[preset]("", Budget(steps=1000))
    config = dataclasses.replace(config, batches=Batches(batch_size, crop_s))
    shape = (batch_size, 4, 2, samples_to_cut(config.crop_samples))
    excerpts = torch.randint(-(2**13), 2**13, shape, dtype=torch.int16).pin_memory()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    stepper = stepper_of(config, GPU)
    stepper.fit(excerpts)
    seconds = {}
    for steps in (WARMUP_STEPS, STEPS):
        started = time.perf_counter()
        for _ in range(steps):
            stepper(excerpts, 1e-4)
        stepper.report()
        seconds[steps] = (time.perf_counter() - started) / steps
    print(
        f"\n{preset}, {stepper.state.precision.name}, {'recorded' if recorded else 'as it is'}, {batch_size} x {crop_s:g} s: "
        f"{1e3 * seconds[STEPS]:.1f} ms a step, {batch_size * crop_s / seconds[STEPS]:.0f} seconds of audio a second, "
        f"memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, with what the allocator keeps "
        f"{torch.cuda.max_memory_reserved() / 1e9:.2f} GB"
    )
    watch = Stopwatch(torch.cuda.synchronize)
    stepper.phase = watch
    for _ in range(STEPS):
        stepper(excerpts, 1e-4)
    print("   " + ", ".join(f"{part} {1e3 * part_s / STEPS:.1f} ms" for part, part_s in watch.seconds.items()))
    assert stepper.pieces == 1
    assert (stepper.forward is not stepper.state.network) == recorded


@pytest.mark.parametrize("preset", PRESETS)
def test_separation(preset: str) -> None:
    spec = PRESETS[preset]("", Budget(steps=1)).model
    torch.manual_seed(0)
    separator = Separator(spec, build(spec), GPU)
    song = (0.1 * np.random.default_rng(0).standard_normal((2, SONG_S * 44_100))).astype(np.float32)
    exact = None
    for name in ("highest", "high"):
        torch.set_float32_matmul_precision(name)
        torch.backends.cudnn.allow_tf32 = name == "high"
        separator.separate(song[:, : 60 * 44_100], 44_100)
        started = time.perf_counter()
        stems = separator.separate(song, 44_100)
        seconds = time.perf_counter() - started
        found = np.stack(list(stems.values()))
        exact = found if exact is None else exact
        with torch.inference_mode():
            windows = torch.randn(8, 2, spec.chunk.length_s * spec.audio.sample_rate_hz, device=GPU)
            separator.estimate(windows)
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(3):
                separator.estimate(windows)
            torch.cuda.synchronize()
            network_s = (time.perf_counter() - started) / 3 / 8 / spec.chunk.length_s
        error = np.square(found - exact).sum()
        print(
            f"\n{preset}, {name}: real-time factor {seconds / SONG_S:.5f}, of the network {network_s:.5f}, "
            f"{10 * np.log10(np.square(exact).sum() / error) if error else np.inf:.1f} dB from the first"
        )
    assert exact is not None
