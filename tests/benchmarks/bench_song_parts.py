"""The parts of a song's time, from MP3 to a zip of WAV stems, by preset and engine:

    python -m pytest -s tests/benchmarks/bench_song_parts.py

Random weights. Each part is timed where it is called, in one process; the server adds what bench_serving.py measures. The rest
is windows, crossfades and the last stem.
"""

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from serving.model import separator as separator_module
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.separator import Separator
from serving.model.spectrogram import Stft
from serving.songs.request import Request
from serving.songs.timing import Work
from training.config import Budget
from training.presets import PRESETS

RATE_HZ = 44_100
SONG_S = 60
TURNS = 3
ENGINES = ("torch", "openvino")


class Clock:
    """Seconds of each part; a part that is called by another counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

        return run


def song() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (SONG_S * RATE_HZ, 2))
    soundfile.write(file, noise, RATE_HZ, format="MP3")
    return file.getvalue()


@pytest.mark.parametrize("preset", ["classic", "studio"])
def test_where_the_time_of_a_song_goes(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = PRESETS[preset]("", Budget(steps=1)).model
    torch.manual_seed(0)
    write_archive(tmp_path / "x.mar", model, build(model), {})
    body = song()
    clock = Clock()
    monkeypatch.setattr(separator_module, "resample", clock.timed("resample", separator_module.resample))
    monkeypatch.setattr(Stft, "forward", clock.timed("STFT", Stft.forward))
    monkeypatch.setattr(Stft, "inverse", clock.timed("inverse STFT", Stft.inverse))
    separators = {name: Separator.open(tmp_path / "x.mar", "cpu", name, tmp_path / "cache") for name in ENGINES}  # type: ignore[arg-type]
    for separator in separators.values():
        runs: Any = separator.engine if hasattr(separator.engine, "core") else separator.network
        runs.core = clock.timed("core", runs.core)
        separator.engine = clock.timed("network", separator.engine)  # type: ignore[assignment]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for turn in range(TURNS + 1):
        for name, separator in separators.items():
            clock.seconds.clear()
            work, request = Work(), Request.from_headers({}, model)
            started = time.perf_counter()
            sum(map(len, request.answer(separator, body, work=work)))
            total = time.perf_counter() - started
            if turn:
                spent = clock.seconds
                spent["complex numbers"] = spent.pop("network") - spent["core"]
                parts = {"decode": work.seconds["decode"], **spent, "encode": work.seconds["encode"]}
                rounds[name].append({"all": total, **parts, "rest": total - sum(parts.values())})
    print(f"\n{preset}, {torch.get_num_threads()} threads, {SONG_S} s of MP3, median (least, most) of {TURNS} turns:")
    for name, turns in rounds.items():
        for part in turns[0]:
            shares = [100 * turn[part] / turn["all"] for turn in turns]
            seconds = statistics.median(turn[part] for turn in turns)
            share = f"{statistics.median(shares):.1f} ({min(shares):.1f}, {max(shares):.1f}) %"
            print(f"  {name:9} {part:16} {seconds:.3f} s, {share}")
