"""The cost of separating beside the bare network: python -m pytest -s tests/benchmarks/bench_separation.py

Ratios of one run on one machine; nothing is asserted about absolute times.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from serving.model.networks import build
from serving.model.separator import Separator
from training.config import Budget
from training.presets import classic

SONG_S = 60
RATE_HZ = 44_100


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)


def test_separation_of_a_stereo_song_beside_the_network_alone() -> None:
    spec = classic("", Budget(steps=1)).model
    separator = Separator(spec, build(spec))
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (2, SONG_S * RATE_HZ)).astype(np.float32)
    hop_s = spec.chunk.length_s - spec.chunk.overlap_s
    magnitudes = torch.rand(1, 1, spec.stft.bins, spec.stft.frames(spec.chunk.length_s * spec.audio.sample_rate_hz))

    with torch.inference_mode():
        network_s = best_of(3, lambda: separator.network.core(magnitudes)) * SONG_S / hop_s
    separation_s = best_of(3, lambda: separator.separate(song, RATE_HZ))
    print(
        f"\n{torch.get_num_threads()} threads, {separator.device}: real-time factor {separation_s / SONG_S:.3f}, "
        f"{separation_s / network_s:.2f} times the network alone"
    )
    assert separation_s > network_s / 2
