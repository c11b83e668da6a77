"""The time of each part of a training step on this device, the bottleneck, and the flag to change.

The times are not `torch.profiler`'s, which assigns to a part only kernels that its own thread starts; autograd starts those
of the backward pass in another thread. On an H200 it counts 0.1 ms for a backward pass of 18 ms.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from serving.model.networks import build
from serving.model.spec import ModelSpec
from serving.storage.progress import no_progress
from training.config import Batches, TrainConfig
from training.data.augment import samples_to_cut
from training.data.crops import Crops, prepared_batches
from training.data.data_set import open_dataset
from training.data.decoded import decode
from training.evaluation.cost import flop, peak_process_bytes
from training.optimization.losses import relative_error_db
from training.optimization.machine import Machine
from training.optimization.precision import prepare
from training.optimization.ranks import synced
from training.optimization.state import RunState
from training.optimization.step import Stepper
from training.progress import ProgressBar

WARMUP_STEPS = 3
MATRIX_S = 0.5
LONGEST_DATA_WAIT = 0.02
LONGEST_EXCHANGE = 0.2
WELL_USED = 0.3
"""Share of the matrix rate. Norms, activations and the LSTM keep a U-Net far below 1."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measurements of a training step on one device.

    `parts_s` holds seconds by part, each part started when the one before has ended. In training parts overlap: a step
    takes `step_s`, of which `data_wait_s` wait for the batch. `exchange_s` is one exchange of gradients between ranks by
    itself, 0 for one rank. `peak_bytes` is the most memory of the device in use in any step.
    """

    preset: str
    batches: Batches
    compiled: bool
    device: torch.device
    precision: str
    world_size: int
    pieces: int
    parts_s: dict[str, float]
    step_s: float
    exchange_s: float
    data_wait_s: float
    flop: int
    matrix_flop_per_s: float
    peak_bytes: int
    memory_bytes: int

    @property
    def data_wait(self) -> float:
        """The share of a step that waits for its batch, 0..1."""
        return self.data_wait_s / self.step_s

    @property
    def utilization(self) -> float:
        """The network's arithmetic as a share of what the device reaches on large matrices, 0..1."""
        return self.flop / self.step_s / self.matrix_flop_per_s

    def table(self) -> str:
        """A text table of the parts, speed, arithmetic and memory."""
        batches, whole_s = self.batches, sum(self.parts_s.values())
        lines = [
            f"{self.preset} on {self.device} in {self.precision}: {batches.batch_size} excerpts of {batches.crop_s:g} s"
            + (f" on {self.world_size} ranks" if self.world_size > 1 else ""),
            "",
            f"{'':15} {'ms':>10} {'share':>8}",
            *(f"{name:15} {1e3 * part_s:10.2f} {part_s / whole_s:8.1%}" for name, part_s in self.parts_s.items()),
            f"{'one by one':15} {1e3 * whole_s:10.2f}",
            f"{'in training':15} {1e3 * self.step_s:10.2f}, {self.data_wait:.1%} of it waiting for data",
            *([f"{'one exchange':15} {1e3 * self.exchange_s:10.2f}"] if self.world_size > 1 else []),
            "",
            f"speed       {batches.batch_size / self.step_s:.1f} crops a second, "
            f"{batches.audio_s / self.step_s:.1f} seconds of audio a second",
            f"arithmetic  {self.flop / self.step_s / 1e9:.1f} GFLOP/s, {self.utilization:.0%} of the "
            f"{self.matrix_flop_per_s / 1e9:.1f} of a product of large matrices",
            f"memory      {self.peak_bytes / 1e9:.2f} GB at most, of {self.memory_bytes / 1e9:.1f}",
        ]
        return "\n".join(lines)

    def advice(self) -> str:
        """One sentence: what limits the run, and the flag to change."""
        size, exchange = self.batches.batch_size, self.exchange_s / self.step_s
        if self.data_wait > LONGEST_DATA_WAIT:
            return (
                f"The device waits for its batches {self.data_wait:.0%} of the time: put --cache on a faster disk, or give "
                "the run more processor cores."
            )
        if self.pieces > 1:
            return (
                f"A batch does not fit the memory and is computed in {self.pieces} pieces: take a shorter --crop-s, or a "
                f"--batch-size of {max(1, size // self.pieces)}."
            )
        if exchange > LONGEST_EXCHANGE:
            return f"An exchange of gradients alone takes {exchange:.0%} of a step: a larger --batch-size needs fewer of them."
        if self.device.type == "cpu":
            return "The processor is the limit: train on a GPU, or for longer."
        if self.utilization >= WELL_USED:
            return "The device's arithmetic is the limit: only a faster device, or more of them, would train faster."
        idle = f"The device reaches {self.utilization:.0%} of its matrix rate"
        if self.peak_bytes < self.memory_bytes / 3:
            return f"{idle} and has memory left: take --batch-size {2 * size}."
        if not self.compiled:
            return f"{idle} and its memory is in use: try --compile."
        return f"{idle}: it moves more data than it computes with, which no flag of training changes."


class Stopwatch:
    """A `Phase` that adds up the seconds of each part. `wait` returns when the device is idle."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.wait = wait
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.wait()
        started = perf_counter()
        yield
        self.wait()
        self.seconds[part] += perf_counter() - started


def profile(config: TrainConfig, steps: int, cache: Path, machine: Machine) -> Profile:
    """Take `steps` steps as in training, then `steps` part by part. Writes nothing but the cache.

    Raises TrainingError or StemwrightError with one sentence on what is wrong.
    """
    ranks = machine.ranks
    with ranks.connected(machine.device):
        prepare(config.deterministic)
        ranks.require_share_of(config.batches.batch_size)
        progress = ProgressBar() if ranks.first else no_progress
        data = open_dataset(config.data, cache / "data", config.validation.valid_share, progress, splits=["train"])
        songs = decode(
            data.train, config.model.audio, data.decoded_stems(config.model.stems), cache / "decoded", progress
        )
        cut = samples_to_cut(config.crop_samples)
        crops = Crops(songs, config.batches.batch_size, cut, config.seed, rank=ranks.rank, world_size=ranks.world_size)
        state = RunState(
            config.model, config.optimization, machine.device, seed=config.seed, precision=config.precision
        )
        if ranks.world_size > 1:
            synced(state.network, machine.device)
        stepper = Stepper(state, config.batches, machine, compile=config.compile)
        return profile_steps(stepper, crops, steps, config.preset)


def profile_steps(stepper: Stepper, crops: Crops, steps: int, preset: str) -> Profile:
    """Measure a stepper on batches of `crops`."""
    model, device = stepper.state.model, stepper.device
    crop_samples = stepper.batches.crop_samples(model.audio.sample_rate_hz)
    on_gpu = device.type == "cuda"
    upcoming = prepared_batches(crops, stepper.state.step, pin_memory=on_gpu)
    stepper.fit(crops.batch(stepper.state.step))
    seconds_a_step(stepper, upcoming, WARMUP_STEPS, Stopwatch(no_wait))

    data_watch, watch = Stopwatch(no_wait), Stopwatch(partial(torch.cuda.synchronize, device) if on_gpu else no_wait)
    step_s = seconds_a_step(stepper, upcoming, steps, data_watch)
    stepper.phase = watch
    watched_s = seconds_a_step(stepper, upcoming, steps, watch)
    peak_bytes, memory_bytes = memory_use(device)
    parts_s = {part: seconds / steps for part, seconds in watch.seconds.items()}

    return Profile(
        preset=preset,
        batches=stepper.batches,
        compiled=stepper.compiled,
        device=device,
        precision=stepper.state.precision.name,
        world_size=stepper.ranks.world_size,
        pieces=stepper.pieces,
        parts_s={**parts_s, "rest": watched_s - sum(parts_s.values())},
        step_s=step_s,
        exchange_s=exchange(stepper),
        data_wait_s=data_watch.seconds["data wait"] / steps,
        flop=step_flop(build(model), model, len(crops.examples), crop_samples),
        matrix_flop_per_s=matrix_rate(device, stepper.state.precision.dtype),
        peak_bytes=peak_bytes,
        memory_bytes=memory_bytes,
    )


def exchange(stepper: Stepper) -> float:
    """Seconds of one exchange of gradients between ranks, alone; in a step it overlaps the backward pass."""
    if stepper.ranks.world_size == 1:
        return 0.0
    gradients = torch.zeros(sum(weights.numel() for weights in stepper.parameters), device=stepper.device)
    float(stepper.ranks.mean(gradients)[0])  # connects the ranks
    started = perf_counter()
    float(stepper.ranks.mean(gradients)[0])  # waits for the device
    return perf_counter() - started


def seconds_a_step(stepper: Stepper, upcoming: Iterator[Tensor], steps: int, watch: Stopwatch) -> float:
    """Mean seconds of a step, over `steps` steps."""
    started = perf_counter()
    for _ in range(steps):
        with watch("data wait"):
            decoded = next(upcoming)
        stepper(decoded, stepper.state.optimization.learning_rate)
    stepper.report()  # waits for the device
    return (perf_counter() - started) / steps


def no_wait() -> None:
    """Wait for a device whose work is done when a call returns."""


def step_flop(network: nn.Module, model: ModelSpec, batch_size: int, crop_samples: int) -> int:
    """Floating point operations of matrix products and convolutions in a step, forward and backward."""
    shape = (batch_size, len(model.stems), 1, model.stft.bins, model.stft.frames(crop_samples))
    references = torch.empty(shape, dtype=torch.complex64, device="meta")

    def step(on_meta: nn.Module) -> None:
        relative_error_db(on_meta.train()(references.sum(dim=1)), references).backward()

    return flop(network, step)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a product of two large matrices, the best within MATRIX_S."""
    side, wait = (8192, partial(torch.cuda.synchronize, device)) if device.type == "cuda" else (2048, no_wait)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    fastest_s, ends = float("inf"), perf_counter() + MATRIX_S
    while perf_counter() < ends:
        started = perf_counter()
        a @ b
        wait()
        fastest_s = min(fastest_s, perf_counter() - started)
    return 2 * side**3 / fastest_s


def memory_use(device: torch.device) -> tuple[int, int]:
    """Bytes of the device's memory: the peak, for a CPU that of the whole process, and the total."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return peak_process_bytes(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
