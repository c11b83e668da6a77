"""Two workers of a catalogue beside one `separate` loop: python -m pytest -s tests/benchmarks/bench_catalogue.py

One thread each, songs in a local S3 server for the one and in a folder for the other, which share this machine's processors.
Rates are counted from the first fact sheet to the last, so that neither Ray's start nor a model's counts. Asserted is the
0.9 of twice the loop that two workers ought to reach; it needs a machine with two idle cores and a bit.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import soundfile
import torch

from serving.model.archive import write_archive
from serving.model.networks import build
from training.config import Budget
from training.demo.local_s3 import serve_s3
from training.presets import classic

ROUNDS = 3
SONGS = 16
SONG_S = 30
RATE_HZ = 44_100


def songs_per_s(folder: Path) -> float:
    """From the first song that was done to the last."""
    done = sorted(path.stat().st_mtime for path in folder.rglob("stems.json"))
    assert len(done) == SONGS
    return (SONGS - 1) / (done[-1] - done[0])


def run(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "serving", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_workers_are_twice_as_fast_as_one_loop(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    spec = classic("", Budget(steps=1)).model
    torch.manual_seed(0)
    model = tmp_path / "classic.mar"
    write_archive(model, spec, build(spec), {})
    songs, generator = tmp_path / "buckets" / "songs", np.random.default_rng(0)
    songs.mkdir(parents=True)
    for number in range(SONGS):
        soundfile.write(songs / f"{number}.wav", 0.1 * generator.standard_normal((SONG_S * RATE_HZ, 2)), RATE_HZ)
    for name in range(ROUNDS):
        (tmp_path / "buckets" / f"stems-{name}").mkdir()

    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    ratios = []
    with serve_s3(tmp_path / "buckets") as s3:
        for number in range(ROUNDS):
            out = tmp_path / f"loop-{number}"
            run(one_thread, "separate", str(songs), "--model", str(model), "--out", str(out))
            to = f"s3://stems-{number}"
            run({**one_thread, **s3.environment}, "catalogue", "s3://songs", "--to", to, "--model", str(model))
            loop, catalogue = songs_per_s(out), songs_per_s(tmp_path / "buckets" / f"stems-{number}")
            ratios.append(catalogue / (2 * loop))
            print(
                f"\nloop {3600 * loop:.0f} songs an hour, two workers {3600 * catalogue:.0f}: {ratios[-1]:.2f} of twice"
            )
            shutil.rmtree(out)
    print(f"median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    assert median(ratios) >= 0.9
