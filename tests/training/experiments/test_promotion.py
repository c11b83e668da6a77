"""Versions that take the place of others, and those that are refused: real archives of tiny networks, a real store."""

from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

import training.evaluation.compare
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.spec import ModelSpec
from tests.data_sets import write_folder
from tests.stores import new_store
from tests.training.tracking.test_tracking import FACTS
from training.data.song import Song
from training.data.stem_folder import StemFolder
from training.errors import ConfigError
from training.evaluation.compare import Comparison, Row
from training.evaluation.cost import Cost
from training.evaluation.evaluate import Evaluation, Score, SongScores
from training.experiments.promotion import CANDIDATE, PRESENT, objections, promote
from training.tracking.registry import find_version, register
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def row(name: str, real_time_factor: float = 0.1, **stems: list[float]) -> Row:
    songs = [
        SongScores(f"{number}", {stem: Score(0.0, values[number]) for stem, values in stems.items()})
        for number in range(len(next(iter(stems.values()))))
    ]
    return Row(name, Evaluation(tuple(songs)), Cost(1, 1.0, real_time_factor, 1))


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (row(CANDIDATE, vocals=[5.1, 6.1, 7.1], bass=[5.0, 6.0, 7.0]), []),
        (row(CANDIDATE, vocals=[5.0, 6.0, 6.9], bass=[5.1, 5.9, 7.0]), []),
        (row(CANDIDATE, vocals=[4.8, 5.8, 6.8], bass=[4.8, 5.8, 6.8]), ["mean uSDR is lower by 0.20 dB"]),
        (row(CANDIDATE, vocals=[4.6, 5.6, 6.6], bass=[6.0, 7.0, 8.0]), ["vocals loses 0.40 dB"]),
        (row(CANDIDATE, 0.16, vocals=[6.0, 7.0, 8.0], bass=[6.0, 7.0, 8.0]), ["1.60 times as long"]),
        (row(CANDIDATE, vocals=[9.0, 9.0, 9.0]), ["it gives vocals and the present one vocals, bass"]),
    ],
)
def test_objections(candidate: Row, words: list[str]) -> None:
    present = row(PRESENT, vocals=[5.0, 6.0, 7.0], bass=[5.0, 6.0, 7.0])
    found = objections(Comparison((candidate, present), (), CPU), slower=1.5)
    assert len(found) == len(words) and all(word in reason for word, reason in zip(words, found, strict=True))


@pytest.fixture
def songs(tmp_path: Path) -> list[Song]:
    folders = [write_folder(tmp_path / "songs" / name, samples=88_200) for name in ("A - 0", "B - 1")]
    return [StemFolder(folder.name, folder) for folder in folders]


def test_a_version_is_promoted_over_a_worse_one_and_a_worse_one_is_refused(
    tiny_spec: ModelSpec, tmp_path: Path, songs: list[Song], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(uri)
    monkeypatch.setattr(training.evaluation.compare, "cost", lambda *_: Cost(1, 1.0, 0.1, 1))

    def version(name: str, bias: float) -> str:
        """An archive whose mask is the same all over, given by a bias: higher for more vocals."""
        torch.manual_seed(0)
        network: nn.Module = build(tiny_spec)
        with torch.no_grad():
            network.mask.weight.zero_()  # type: ignore[union-attr]
            network.mask.bias.fill_(bias)  # type: ignore[union-attr]
        with Tracker.open(uri, tmp_path / name, None) as tracker:
            write_archive(tmp_path / name / "x.mar", tiny_spec, network, origin={})
            tracker.archive(tmp_path / name / "x.mar", FACTS)
        return register(uri, str(tracker.run_id))

    # Vocals are a fourth of the energy: a mask of 0.25 is best, one of 0.9 far worse.
    good, bad = version("good", -1.0), version("bad", 2.2)
    assert (
        promote(uri, bad, "champion", songs, CPU, slower=1.5, force=False) == "the first champion of stemwright-2stems"
    )
    reason = promote(uri, good, "champion", songs, CPU, slower=1.5, force=False, progress=False)
    assert reason.startswith("version 1 is better on the mean of the stems by") and reason.endswith("on 2 of 2 songs")
    assert find_version(uri, "models:/stemwright-2stems@champion").tags["champion.reason"] == reason
    with pytest.raises(ConfigError, match=r"is not promoted: its mean uSDR is lower by .*vocals loses"):
        promote(uri, bad, "champion", songs, CPU, slower=1.5, force=False, progress=False)
    assert find_version(uri, "models:/stemwright-2stems@champion").address == good
    with pytest.raises(ConfigError, match="is the champion already"):
        promote(uri, good, "champion", songs, CPU, slower=1.5, force=False, progress=False)
    assert "forced, although its mean" in promote(
        uri, bad, "champion", songs, CPU, slower=1.5, force=True, progress=False
    )
    assert find_version(uri, "models:/stemwright-2stems@champion").address == bad
