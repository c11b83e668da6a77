"""Seconds of audio separated in a second beside Open-Unmix and HT-Demucs: the same song, the same threads, random weights.

The two are no dependencies. They are installed beside the environment, and torchaudio, which they import only to read files,
is stood in for:

    pip install --no-deps --target peers openunmix demucs einops julius
    PYTHONPATH=peers python -m pytest -s tests/benchmarks/bench_peers.py

Weights do not change what a network costs. Nothing is asserted about absolute times.
"""

import sys
import time
import types
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from serving.chunks import Audio
from serving.networks import build
from serving.separator import Separator
from training.config import Budget, classic

SONG_S = 30
RATE_HZ = 44_100
STEMS = ["vocals", "drums", "bass", "other"]


@pytest.fixture(autouse=True)
def torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("torchaudio") is None:
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))


@pytest.fixture(scope="module")
def song() -> Audio:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, SONG_S * RATE_HZ)).astype(np.float32)


@pytest.fixture(scope="module")
def ours(song: Audio) -> float:
    spec = classic("", Budget(steps=1)).model
    separator = Separator(spec, build(spec), "cpu")
    quick = speed(lambda: separator.separate(song, RATE_HZ))
    precision = "bfloat16" if separator.bfloat16 else "float32"
    print(f"\n{torch.get_num_threads()} threads; audio seconds a second: classic {quick:.1f} in {precision}", end="")
    if separator.bfloat16:
        separator.bfloat16 = False
        print(f", {speed(lambda: separator.separate(song, RATE_HZ)):.1f} in float32", end="")
    print()
    return quick


def speed(separate: Callable[[], object]) -> float:
    """Seconds of audio in a second, in the better of two runs."""
    spent_s = []
    for _ in range(2):
        started = time.perf_counter()
        separate()
        spent_s.append(time.perf_counter() - started)
    return SONG_S / min(spent_s)


@torch.inference_mode()
def test_twice_as_fast_as_open_unmix(ours: float, song: Audio) -> None:
    pytest.importorskip("openunmix", reason="openunmix is not on PYTHONPATH: see above how to install it")
    from openunmix.model import OpenUnmix
    from openunmix.model import Separator as Unmix

    bins = 2049
    targets = {stem: OpenUnmix(nb_bins=bins, nb_channels=2, hidden_size=512, max_bin=1487) for stem in STEMS}
    unmix = Unmix(target_models=targets, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2).eval()
    theirs = speed(lambda: unmix(torch.from_numpy(song)[None]))
    print(f"open-unmix {theirs:.1f}: classic is {ours / theirs:.1f} times as fast")
    assert ours > 2 * theirs


@torch.inference_mode()
def test_eight_times_as_fast_as_ht_demucs(ours: float, song: Audio) -> None:
    pytest.importorskip("demucs", reason="demucs is not on PYTHONPATH: see above how to install it")
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    demucs = HTDemucs(sources=STEMS).eval()
    theirs = speed(lambda: apply_model(demucs, torch.from_numpy(song)[None], shifts=0, split=True, overlap=0.25))
    print(f"ht-demucs {theirs:.1f}: classic is {ours / theirs:.1f} times as fast")
    assert ours > 8 * theirs
