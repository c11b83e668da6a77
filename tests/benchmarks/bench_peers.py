"""Each preset by each engine beside Open-Unmix and HT-Demucs: the same song, the same threads.

The peers and the `studio` presets give four stems, `classic` and `spleeter` two; `classic` works at 22,050 Hz, a channel at a
time, the others at 44.1 kHz. The peers are no dependencies. They are installed beside the environment, and torchaudio, which
they import only to read files, is stood in for:

    pip install --no-deps --target peers openunmix demucs einops julius
    BENCH_ARCHIVES=folder PYTHONPATH=peers python -m pytest -s tests/benchmarks/bench_peers.py

An archive <preset>.mar in BENCH_ARCHIVES is taken where it is there. Other presets and the peers have random weights, which do
not change what a network costs. All take turns. Nothing is asserted about times. OpenVINO 2026.4 does not convert HT-Demucs as
it comes: it pads complex numbers.
"""

import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.audio import Audio
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.separator import Separator
from training.config import Budget
from training.presets import PRESETS

SONG_S = 30
RATE_HZ = 44_100
TURNS = 3
STEMS = ["vocals", "drums", "bass", "other"]
ENGINES = ("torch", "openvino") if find_spec("openvino") else ("torch",)


@pytest.fixture(autouse=True)
def torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("torchaudio") is None:
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))


def ours(song: Audio, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each preset by each engine, and the separation of the song by it."""
    for preset, configure in PRESETS.items():
        archive = Path(os.environ.get("BENCH_ARCHIVES", "nowhere"), f"{preset}.mar")
        if not archive.is_file():
            archive = folder / f"{preset}.mar"
            spec = configure("", Budget(steps=1)).model
            write_archive(archive, spec, build(spec), {})
        for engine in ENGINES:
            separator = Separator.open(archive, "cpu", engine, folder / "cache")  # type: ignore[arg-type]
            name = ", ".join(separator.engine.description.split(", ")[:2])
            yield f"{preset}, {name}", lambda separator=separator: separator.separate(song, RATE_HZ)


def open_unmix(song: Audio) -> Callable[[], object]:
    pytest.importorskip("openunmix", reason="openunmix is not on PYTHONPATH: see above how to install it")
    from openunmix.model import OpenUnmix
    from openunmix.model import Separator as Unmix

    targets = {stem: OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=512, max_bin=1487) for stem in STEMS}
    unmix = Unmix(target_models=targets, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2).eval()
    return lambda: unmix(torch.from_numpy(song)[None])


def ht_demucs(song: Audio) -> Callable[[], object]:
    pytest.importorskip("demucs", reason="demucs is not on PYTHONPATH: see above how to install it")
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    network = HTDemucs(sources=STEMS).eval()
    return lambda: apply_model(network, torch.from_numpy(song)[None], shifts=0, split=True, overlap=0.25)


@torch.inference_mode()
def test_speed_beside_the_peers(tmp_path: Path) -> None:
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (2, SONG_S * RATE_HZ)).astype(np.float32)
    rivals = dict(ours(song, tmp_path))
    peers = {"Open-Unmix": open_unmix(song), "HT-Demucs": ht_demucs(song)}
    spent_s = taking_turns({**rivals, **peers})
    print(f"\n{torch.get_num_threads()} threads, {SONG_S} s of stereo, median (least, most) of {TURNS} turns:")
    for name, times_s in spent_s.items():
        factor = statistics.median(times_s) / SONG_S
        words = [f"  {name:34} real-time factor {factor:.4f}"]
        for peer in peers if name in rivals else ():
            ratios = [theirs / own for theirs, own in zip(spent_s[peer], times_s, strict=True)]
            words.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) times {peer}")
        print(", ".join(words))


def taking_turns(works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each work in each turn; a first turn, in which all warm up, does not count."""
    spent_s: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                spent_s[name].append(time.perf_counter() - started)
    return spent_s
