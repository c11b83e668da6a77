"""The page of a comparison, from real separations of two networks whose stems are known."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import training.evaluation.compare
from serving.model.licences import Licences
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from tests.data_sets import write_folder
from tests.stubs import Share
from training.data.stem_folder import StemFolder
from training.evaluation.compare import Comparison, compare
from training.evaluation.cost import Cost
from training.experiments.report import SLICES, Collector, loudest, report, slice_sdr

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def compared(tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Comparison, Collector]:
    """Two songs have a quarter of their energy in the vocals: "even" gives them a quarter and "loud" all."""
    songs = [StemFolder(name, write_folder(tmp_path / name, samples=132_300)) for name in ("A - <0>", "B - 1")]
    spec = replace(tiny_spec, audio=replace(tiny_spec.audio, sample_rate_hz=44_100))
    free = Licences("Apache-2.0", weights="CC-BY-4.0")
    found = {
        "even": Separator(spec, Share(0.25, 0.75), CPU, licences=free),
        "loud": Separator(spec, Share(0.9, 0.1), CPU),
    }
    monkeypatch.setattr(training.evaluation.compare.Separator, "open", lambda path, _: found[path.stem])
    monkeypatch.setattr(training.evaluation.compare, "cost", lambda *_: Cost(2_000_000, 1.5, 0.25, 3_000_000))
    collected = Collector()
    paths = {name: Path(f"{name}.mar") for name in found}
    return compare(paths, songs, CPU, progress=False, each_song=collected), collected


def test_the_page_holds_verdicts_scores_and_sound_and_needs_no_network(compared: tuple[Comparison, Collector]) -> None:
    curves = {"even": [(10, 1.0), (20, 2.0)]}
    page = report(*compared, "even against loud", curves, {"even": {"trained_s": 120.0, "trained_audio_s": 7200.0}})
    assert "even is better on vocals by" in page and "on 2 of 2 songs" in page
    assert "<td>2.0</td><td>2.0</td>" in page, "minutes and hours of its training"
    assert "<td>CC-BY-4.0</td>" in page and "<td>unknown</td>" in page
    assert "A - &lt;0&gt;" in page and "<0></" not in page, "names are text"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "http" not in page
    stored = re.search(r'<script type="application/json" id="songs">(.*?)</script>', page, re.DOTALL)
    assert stored is not None
    songs = json.loads(stored[1])
    assert [song["name"] for song in songs] == ["A - <0>", "B - 1"]
    who = [(track["stem"], track["who"]) for track in songs[0]["tracks"]]
    assert who == [
        ("mixture", "mixture"),
        *(("vocals", name) for name in ("true", "even", "loud")),
        *(("accompaniment", name) for name in ("true", "even", "loud")),
    ]
    sounds = [soundfile.read(io.BytesIO(base64.b64decode(track["sound"])))[0] for track in songs[0]["tracks"]]
    assert len({len(sound) for sound in sounds}) == 1 and len(sounds[0]) == pytest.approx(3 * 48_000, abs=1000)
    louder = np.std(sounds[3]) / np.std(sounds[2])
    assert louder == pytest.approx(0.9 / 0.25, rel=0.15), "the stems are those of the archives"


def test_a_slice_shows_where_a_model_fails() -> None:
    references = np.random.default_rng(0).standard_normal((1, 2, 18_000)).astype(np.float32)
    estimates = 0.9 * references
    estimates[..., 5_000:6_000] = 0
    references[..., 17_000:] = 0
    (values,) = slice_sdr(references, estimates)
    assert len(values) == SLICES and np.argmin(values[:17]) == 5
    assert values[5] == pytest.approx(0, abs=0.01) and values[4] == pytest.approx(20, abs=0.01)
    assert np.isnan(values[17]), "a silent stem has no score"


def test_the_loudest_stretch_is_found() -> None:
    audio = np.full((2, 10_000), 0.1, np.float32)
    audio[:, 6_000:7_000] = 0.5
    assert 5_900 <= loudest(audio, 1_000) <= 6_100
    assert loudest(audio, 20_000) == 0
