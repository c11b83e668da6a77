"""A training step with our averages beside one with torch's AveragedModel: python -m pytest -s tests/benchmarks/bench_ema.py"""

import dataclasses
import statistics
import time

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.steppers import stepper_of
from training.config import Batches, Budget
from training.data.augment import samples_to_cut
from training.optimization.precision import prepare
from training.optimization.step import Stepper
from training.presets import PRESETS

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ROUNDS, STEPS = (12, 30) if GPU else (12, 2)
BATCHES = Batches(16, 6.0) if GPU else Batches(4, 3.0)


class Library:
    """The average that `training.optimization.ema.Average` is, by AveragedModel."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = AveragedModel(network, multi_avg_fn=self.average, use_buffers=True)
        self.model.n_averaged += 1  # else the first update copies
        self.decay = self.now = decay

    def average(self, averaged: list[Tensor], current: list[Tensor], _count: Tensor) -> None:
        get_ema_multi_avg_fn(self.now)(averaged, current, 0)

    def update(self, network: nn.Module, step: int) -> None:
        self.now = min(self.decay, (1 + step) / (10 + step))
        self.model.update_parameters(network)


def seconds_a_step(stepper: Stepper, excerpts: Tensor) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        stepper(excerpts, 1e-4)
    stepper.report()  # waits for the device
    return (time.perf_counter() - started) / STEPS


def test_a_step_with_ours_and_with_averaged_model() -> None:
    prepare(deterministic=False)
    config = dataclasses.replace(PRESETS["classic"]("", Budget(steps=1000)), batches=BATCHES)
    shape = (BATCHES.batch_size, 4, 2, samples_to_cut(config.crop_samples))
    excerpts = torch.randint(-(2**13), 2**13, shape, dtype=torch.int16)
    excerpts = excerpts.pin_memory() if GPU else excerpts
    ours, library = stepper_of(config, DEVICE), stepper_of(config, DEVICE)
    decays = config.optimization.ema_decays
    library.state.averages = [Library(library.state.network, decay) for decay in decays]  # type: ignore[misc]
    for stepper in (ours, library):
        stepper.fit(excerpts)
        seconds_a_step(stepper, excerpts)
    times = [(seconds_a_step(ours, excerpts), seconds_a_step(library, excerpts)) for _ in range(ROUNDS)]
    ratios = sorted(theirs_s / ours_s for ours_s, theirs_s in times)
    print(
        f"\n{DEVICE}, torch {torch.__version__}: AveragedModel's step takes {statistics.median(ratios):.3f} of ours "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f} in {ROUNDS} rounds of {STEPS} steps; ours "
        f"{1e3 * statistics.median(ours_s for ours_s, _ in times):.1f} ms)"
    )
    for one, other in zip(ours.state.averages, library.state.averages, strict=True):
        wanted = dict(one.network.named_parameters())
        for name, weights in other.model.module.named_parameters():  # type: ignore[attr-defined]
            torch.testing.assert_close(weights, wanted[name], rtol=0.1, atol=0.05, msg=name)
