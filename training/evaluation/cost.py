"""The cost of running a model: size, arithmetic, speed and memory on a device.

Axes: r row (what the network takes for one excerpt), c channel, f bin, t frame, n sample.
"""

import copy
import dataclasses
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from serving.audio import Audio
from serving.model.archive import read_archive
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from training.errors import OutOfMemory

EXCERPT_S = 30
EXCERPT_HZ = 44_100
TIMES = 3

KERNEL_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    `gmac_per_s`: 10⁹ multiply-adds of matrix products and convolutions for a second of stereo. `real_time_factor`: seconds
    to separate a second of stereo. `peak_bytes`: on a GPU the most memory that torch takes, with the weights; on a CPU the
    memory of the whole process, with Python and torch.
    """

    parameters: int
    gmac_per_s: float
    real_time_factor: float
    peak_bytes: int

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def cost(archive: Path, device: torch.device) -> Cost:
    """Measure the cost of an archive's model on a device. Raises ArchiveError, or OutOfMemory if it does not fit."""
    opened = read_archive(archive)
    network = opened.network()
    real_time_factor, peak_bytes = speed_and_memory(archive, device)
    return Cost(parameters(network), gmac_per_s(network, opened.spec), real_time_factor, peak_bytes)


def parameters(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())


@torch.no_grad()
def gmac_per_s(network: nn.Module, spec: ModelSpec) -> float:
    """10⁹ multiply-adds for a second of stereo, counted over one window. The overlap of windows is not counted twice."""
    samples = spec.chunk.length_s * spec.audio.sample_rate_hz
    shape = (1, 2, spec.stft.bins, spec.stft.frames(samples))
    mixture = torch.empty(shape, dtype=torch.complex64, device="meta")
    return flop(network, lambda on_meta: on_meta.eval()(mixture)) / 2 / 1e9 / spec.chunk.length_s


def flop(network: nn.Module, work: Callable[[nn.Module], object]) -> int:
    """Count floating point operations of matrix products and convolutions in some work with a network.

    Counts on a copy on torch's meta device, which computes nothing and splits an LSTM or GRU into matrix products. The
    counter cannot see into the fused kernels of other devices.
    """
    on_meta = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter:
        work(on_meta)
    return int(counter.get_total_flops())


def speed_and_memory(archive: Path, device: torch.device) -> tuple[float, int]:
    """Real-time factor and peak bytes, measured in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            fastest_s, peak_bytes = process.submit(separate_noise, archive, str(device), EXCERPT_S, TIMES).result()
            return fastest_s / EXCERPT_S, peak_bytes
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise OutOfMemory(
                f"{archive} does not fit the memory of {device}: free some, or take another --device"
            ) from error


def separate_noise(archive: Path, device: str, duration_s: int, times: int) -> tuple[float, int]:
    """Separates stereo noise a few times: the seconds of the fastest, and this process's peak bytes on a device."""
    separator, song = Separator.open(archive, device), noise(duration_s)
    fastest_s = min(seconds(lambda: separator.separate(song, EXCERPT_HZ)) for _ in range(times))
    on_gpu = separator.device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated(separator.device) if on_gpu else peak_process_bytes()
    return fastest_s, peak_bytes


def noise(duration_s: int) -> Audio:
    """Stereo noise (c, n), the same on every call."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, duration_s * EXCERPT_HZ)).astype(np.float32)


def seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def peak_process_bytes() -> int:
    """The peak memory of this process. On Linux `ru_maxrss` would include the parent's."""
    if KERNEL_STATUS.exists():
        (line,) = (line for line in KERNEL_STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return unit_bytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
