"""Seconds of audio separated in a second beside Open-Unmix and HT-Demucs: the same song, the same threads, random weights.

`classic` gives two stems of one channel at 22,050 Hz, the `studio` presets and the peers four of stereo at 44.1 kHz.

The two are no dependencies. They are installed beside the environment, and torchaudio, which they import only to read files,
is stood in for:

    pip install --no-deps --target peers openunmix demucs einops julius
    PYTHONPATH=peers python -m pytest -s tests/benchmarks/bench_peers.py

Weights do not change what a network costs. Nothing is asserted about absolute times.
"""

import sys
import time
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from serving.audio import Audio
from serving.model.networks import build
from serving.model.separator import Separator
from training.config import Budget
from training.presets import PRESETS

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
def ours(song: Audio) -> Mapping[str, float]:
    """Seconds of audio in a second by preset."""
    print(f"\n{torch.get_num_threads()} threads")
    speeds = {}
    for name, preset in PRESETS.items():
        spec = preset("", Budget(steps=1)).model
        separator = Separator(spec, build(spec), "cpu")
        speeds[name] = quick = speed(lambda separator=separator: separator.separate(song, RATE_HZ))
        precision = "bfloat16" if separator.engine.bfloat16 else "float32"
        print(f"{name}: {quick:.1f} seconds of audio a second in {precision}, real-time factor {1 / quick:.3f}", end="")
        if separator.engine.bfloat16:
            separator.engine.bfloat16 = False
            slow = speed(lambda separator=separator: separator.separate(song, RATE_HZ))
            print(f"; {slow:.1f} in float32, {1 / slow:.3f}", end="")
        print()
    return speeds


def speed(separate: Callable[[], object]) -> float:
    """Seconds of audio in a second, in the better of two runs."""
    spent_s = []
    for _ in range(2):
        started = time.perf_counter()
        separate()
        spent_s.append(time.perf_counter() - started)
    return SONG_S / min(spent_s)


@torch.inference_mode()
def test_twice_as_fast_as_open_unmix(ours: Mapping[str, float], song: Audio) -> None:
    pytest.importorskip("openunmix", reason="openunmix is not on PYTHONPATH: see above how to install it")
    from openunmix.model import OpenUnmix
    from openunmix.model import Separator as Unmix

    bins = 2049
    targets = {stem: OpenUnmix(nb_bins=bins, nb_channels=2, hidden_size=512, max_bin=1487) for stem in STEMS}
    unmix = Unmix(target_models=targets, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2).eval()
    theirs = speed(lambda: unmix(torch.from_numpy(song)[None]))
    tell("open-unmix", theirs, ours)
    assert ours["classic"] > 2 * theirs


@torch.inference_mode()
def test_classic_is_eight_times_and_studio_nearly_twice_as_fast_as_ht_demucs(
    ours: Mapping[str, float], song: Audio
) -> None:
    pytest.importorskip("demucs", reason="demucs is not on PYTHONPATH: see above how to install it")
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    demucs = HTDemucs(sources=STEMS).eval()
    theirs = speed(lambda: apply_model(demucs, torch.from_numpy(song)[None], shifts=0, split=True, overlap=0.25))
    tell("ht-demucs", theirs, ours)
    assert ours["classic"] > 8 * theirs
    assert ours["studio"] > 1.7 * theirs


def tell(peer: str, theirs: float, ours: Mapping[str, float]) -> None:
    ratios = ", ".join(f"{name} is {speed / theirs:.1f} times as fast" for name, speed in ours.items())
    print(f"{peer}: {theirs:.2f}, real-time factor {1 / theirs:.3f}; {ratios}")
