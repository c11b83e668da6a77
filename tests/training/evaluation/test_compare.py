"""Several archives in one table: what is scored together, what stands beside it, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

import training.evaluation.compare
from serving.errors import ArchiveError
from serving.model.archive import write_archive
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from tests.data_sets import write_folder
from tests.stubs import Share
from training.__main__ import main
from training.data.song import Song
from training.data.stem_folder import StemFolder
from training.errors import ConfigError, DataError
from training.evaluation.compare import Comparison, Row, compare, names, resolved, summed_up
from training.evaluation.cost import Cost
from training.evaluation.evaluate import Evaluation, Score, SongScores, evaluate

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COST = Cost(parameters=9_876_543, gmac_per_s=18.456, real_time_factor=0.2134, peak_bytes=1_234_567_890)
PAIR, FOUR = ("vocals", "accompaniment"), ("vocals", "drums", "bass", "other")


@pytest.fixture
def songs(tmp_path: Path) -> list[Song]:
    """Two songs of two seconds of noise; all stems are alike."""
    folders = [write_folder(tmp_path / "songs" / "test" / name, samples=88_200) for name in ("A - 0", "B - 1")]
    return [StemFolder(folder.name, folder) for folder in folders]


@pytest.fixture
def separators(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, Separator]:
    """Archives of known shares, opened by name; what they cost is not measured here."""
    at_44 = replace(tiny_spec, audio=replace(tiny_spec.audio, sample_rate_hz=44_100))
    shuffled = replace(at_44, stems=("drums", "bass", "vocals", "other"))
    found = {
        "pair": Separator(tiny_spec, Share(0.25, 0.75), CPU),
        "even": Separator(shuffled, Share(0.25, 0.25, 0.25, 0.25), CPU),
        "loud": Separator(shuffled, Share(0.1, 0.1, 0.7, 0.1), CPU),
    }
    monkeypatch.setattr(training.evaluation.compare.Separator, "open", lambda path, _: found[path.stem])
    monkeypatch.setattr(training.evaluation.compare, "cost", lambda *_: COST)
    return found


def paths(*archives: str) -> dict[str, Path]:
    return {name: Path(f"{name}.mar") for name in archives}


def row_of(comparison: Comparison, name: str, stems: tuple[str, ...]) -> Row:
    (row,) = (
        row
        for row in (*comparison.archives, *comparison.bounds)
        if row.name == name and tuple(row.evaluation.stems) == stems
    )
    return row


def test_rows_are_what_evaluate_says(separators: dict[str, Separator], songs: list[Song]) -> None:
    comparison = compare(paths("even", "loud"), songs, CPU, progress=False)
    assert [(row.name, row.licence) for row in comparison.archives] == [("even", "unknown"), ("loud", "unknown")]
    assert [row.name for row in comparison.bounds] == ["mask 2048/512, 44.1 kHz", "mixture"]
    for name in ("even", "loud"):
        row, report = row_of(comparison, name, FOUR), evaluate(separators[name], songs, progress=False)
        assert row.evaluation.stems == report.model.stems and row.cost == COST
    assert row_of(comparison, "mixture", FOUR).evaluation.stems == report.mixture.stems
    of_mask = row_of(comparison, "mask 2048/512, 44.1 kHz", FOUR).evaluation.stems
    for stem, score in report.oracle.stems.items():
        assert of_mask[stem].usdr_db == pytest.approx(score.usdr_db, abs=1e-3)


@pytest.mark.usefixtures("separators")
def test_four_stems_are_scored_as_a_pair_beside_a_pair(songs: list[Song]) -> None:
    comparison = compare(paths("even", "pair", "loud"), songs, CPU, progress=False)
    assert [(row.name, tuple(row.evaluation.stems), row.cost) for row in comparison.archives] == [
        ("even", FOUR, COST),
        ("even", PAIR, None),
        ("pair", PAIR, COST),
        ("loud", FOUR, COST),
        ("loud", PAIR, None),
    ]
    assert [(row.name, tuple(row.evaluation.stems)) for row in comparison.bounds] == [
        ("mask 2048/512, 44.1 kHz", FOUR),
        ("mask 2048/512, 44.1 kHz", PAIR),
        ("mask 2048/512, 22.05 kHz", PAIR),
        ("mixture", FOUR),
        ("mixture", PAIR),
    ]
    # A quarter of four stems alike: 0.75² + 3 · 0.25² of one stem's energy is wrong, of the vocals and of the rest alike.
    as_pair, error = row_of(comparison, "even", PAIR).evaluation.stems, 0.75**2 + 3 * 0.25**2
    assert as_pair["vocals"].usdr_db == pytest.approx(-10 * np.log10(error), abs=0.1)
    assert as_pair["accompaniment"].usdr_db == pytest.approx(10 * np.log10(3 / error), abs=0.1)


@pytest.mark.usefixtures("separators")
def test_the_picture_has_the_stems_that_two_archives_were_both_scored_on(songs: list[Song], tmp_path: Path) -> None:
    comparison = compare(paths("even", "pair", "loud"), songs, CPU, progress=False)
    beside_pair, beside_loud = comparison.points("even", "pair"), comparison.points("even", "loud")
    assert {point.stem for point in beside_pair} == set(PAIR) and len(beside_pair) == 4
    assert {point.stem for point in beside_loud} == set(FOUR) and len(beside_loud) == 8
    for point in beside_loud:
        for name, value in (("even", point.x_db), ("loud", point.y_db)):
            (song,) = (s for s in row_of(comparison, name, FOUR).evaluation.songs if s.song == point.song)
            assert value == song.stems[point.stem].usdr_db
    comparison.figure().savefig(tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").std() > 0.05


def comparison_of(*rows: Row) -> Comparison:
    return Comparison(rows, (), CPU)


def row(name: str, cost: Cost | None, **stems: tuple[float, float]) -> Row:
    scores = {stem: Score(*values) for stem, values in stems.items()}
    return Row(name, Evaluation((SongScores("S", scores),)), cost, cost and "academic, non-commercial")


def test_the_table_has_a_block_for_each_set_of_stems_and_marks_the_best() -> None:
    table = comparison_of(
        row("studio", COST, vocals=(8, 9), drums=(4, 5)),
        row("other", COST, vocals=(7, 8), drums=(5, 6)),
        row("silent", None, vocals=(float("nan"), -6.5), accompaniment=(11, 12)),
    ).table()
    head, units, studio, other, _, second, _, silent, _, foot = table.splitlines()
    assert head.split()[:3] == ["vocals", "drums", "mean"] and second.split()[:3] == ["vocals", "accompaniment", "mean"]
    assert (
        " ".join(studio.split())
        == "studio 8.00 9.00* 4.00 5.00 6.00 7.00* 9.88 18.46 0.213 1235 academic, non-commercial"
    )
    assert (
        " ".join(other.split())
        == "other 7.00 8.00 5.00 6.00* 6.00 7.00* 9.88 18.46 0.213 1235 academic, non-commercial"
    )
    assert " ".join(silent.split()) == "silent - -6.50 11.00 12.00 - 2.75 - - - - -", "alone, nothing is the best"
    assert len({len(line) for line in (head, units, studio, other)}) == 1
    assert foot.startswith("1 songs") and foot.endswith("cpu")


def test_json_holds_every_score_and_cost() -> None:
    found = comparison_of(row("silent", COST, vocals=(float("nan"), 3.0), other=(10.0, 5.0))).to_json()
    (stored,) = json.loads(json.dumps(found, allow_nan=False))["archives"]
    assert stored["name"] == "silent" and stored["cost"]["parameters"] == 9_876_543
    assert stored["licence"] == "academic, non-commercial"
    assert stored["mean"] == {"csdr_db": None, "usdr_db": 4.0}
    assert stored["stems"]["other"] == {"csdr_db": 10.0, "usdr_db": 5.0, "recovered_percent": 90.0}
    assert stored["songs"] == [{"song": "S", "stems": stored["stems"]}]


def test_summed_up() -> None:
    separated = {stem: np.full((2, 3), value, np.float32) for stem, value in zip(FOUR, (1, 2, 4, 8), strict=True)}
    assert summed_up(separated, ("other", "accompaniment"))[:, 0, 0].tolist() == [8, 14]
    separated["accompaniment"] = separated["other"]
    assert summed_up(separated, PAIR)[:, 0, 0].tolist() == [1, 8], "what an archive gives is not made a second time"


@pytest.mark.parametrize(
    ("archives", "short"),
    [
        (["a.mar", "b.mar"], ["a", "b"]),
        (["runs/first/classic.mar", "/other/second/classic.mar"], ["first/classic", "second/classic"]),
        (["s3://b/x.mar", "models:/stemwright@champion", "y.mar"], ["x", "stemwright@champion", "y"]),
        (["x.mar", "runs/x.mar"], ["x", "runs/x"]),
        (
            ["models:/stemwright-2stems/1", "models:/stemwright-2stems/2"],
            ["stemwright-2stems/1", "stemwright-2stems/2"],
        ),
        (["runs:/1f/archive", "runs:/2f/archive"], ["1f/archive", "2f/archive"]),
    ],
)
def test_names_are_as_short_as_tells_apart(archives: list[str], short: list[str]) -> None:
    assert names(archives) == short


@pytest.mark.usefixtures("separators")
def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.mar is named twice"):
        resolved(["a.mar", "./a.mar"], tmp_path)
    with pytest.raises(ConfigError, match="two archives or more"):
        resolved(["a.mar"], tmp_path)
    with pytest.raises(ArchiveError, match=r"there is no model archive at a\.mar"):
        resolved(["a.mar", "b.mar"], tmp_path)
    with pytest.raises(DataError, match="no songs"):
        compare(paths("even", "loud"), [], CPU, progress=False)
    with pytest.raises(ConfigError, match="one and two give different stems"):
        comparison_of(row("one", None, vocals=(1, 1)), row("two", None, bass=(1, 1))).figure()


def test_copies_of_the_same_file_name_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(archive: str, folder: Path) -> Path:
        (folder / "x.mar").write_text(archive)
        return folder / "x.mar"

    monkeypatch.setattr(training.evaluation.compare, "resolve", fetched)
    found = resolved(["s3://one/x.mar", "s3://two/x.mar"], tmp_path)
    assert {name: path.read_text() for name, path in found.items()} == {
        "one/x": "s3://one/x.mar",
        "two/x": "s3://two/x.mar",
    }


@pytest.mark.usefixtures("songs")
def test_the_command_prints_and_writes(
    tiny_spec: ModelSpec,
    tiny_network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training.evaluation.compare, "cost", lambda *_: COST)
    archives = [str(tmp_path / run / "classic.mar") for run in ("first", "second")]
    for archive in archives:
        write_archive(Path(archive), tiny_spec, tiny_network, origin={})
    data = ["--data", str(tmp_path / "songs"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    files = ["--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "found.png")]

    assert main(["compare", *archives, *data, *files]) == 0

    rows = capsys.readouterr().out.splitlines()[2:6]
    assert [line.split()[0] for line in rows] == ["first/classic", "second/classic", "mask", "mixture"]
    assert rows[0].split()[1:] == rows[1].split()[1:] and "*" in rows[0], "both are the best"
    assert [entry["name"] for entry in json.loads((tmp_path / "found.json").read_text())["archives"]] == [
        "first/classic",
        "second/classic",
    ]
    assert imread(tmp_path / "found.png").shape[2] == 4

    for arguments, complaint in (
        ([archives[0], str(tmp_path / "none.mar"), *data], "there is no model archive at"),
        ([*archives, *data, "--split", "valid"], "no songs for the valid split"),
        ([*archives, *data, "--plot", "found.txt"], "--plot found.txt"),
    ):
        assert main(["compare", *arguments]) == 1
        assert complaint in capsys.readouterr().err
