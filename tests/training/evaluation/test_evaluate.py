import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
from torch import nn

import training.evaluation.evaluate
from serving.model.separator import Separator
from serving.model.spec import ModelSpec, Quality
from tests.stubs import Share
from training.data.stem_folder import StemFolder
from training.errors import DataError
from training.evaluation.evaluate import Evaluation, Report, Score, SongScores, evaluate, evaluate_song, middle
from training.evaluation.metrics import frame_sdr, usdr
from training.evaluation.oracle import ideal_ratio_mask

pytestmark = pytest.mark.slow

RATE_HZ = 8_000


def song(folder: Path, seconds: float = 3.0, channels: int = 2, seed: int = 0, **gains: float) -> StemFolder:
    """A song of four stems of noise, each at its gain (1/10 unless given)."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for stem in ("drums", "bass", "other", "vocals"):
        audio = gains.get(stem, 0.1) * rng.standard_normal((int(seconds * RATE_HZ), channels))
        soundfile.write(folder / f"{stem}.wav", audio, RATE_HZ, subtype="FLOAT")
    return StemFolder(folder.name, folder)


@pytest.fixture
def separator(tiny_spec: ModelSpec) -> Separator:
    """Gives 60 % of the mixture to the vocals. At 44.1 kHz, so that these songs pass the resampler unharmed."""
    audio = replace(tiny_spec.audio, sample_rate_hz=44_100)
    return Separator(replace(tiny_spec, audio=audio), Share(0.6, 0.4), "cpu")


@pytest.mark.parametrize(
    ("stems", "shares"),
    [(("vocals", "accompaniment"), (0.6, 0.4)), (("drums", "bass", "vocals", "other"), (0.4, 0.3, 0.2, 0.1))],
)
def test_scores_are_of_what_the_separator_gives(
    separator: Separator, tmp_path: Path, stems: tuple[str, ...], shares: tuple[float, ...]
) -> None:
    separator = Separator(replace(separator.spec, stems=stems), Share(*shares), "cpu")
    tested = song(tmp_path / "A - B", channels=1, vocals=0.3)
    (vocals, rate_hz) = soundfile.read(tested.path / "vocals.wav")
    vocals[rate_hz : 2 * rate_hz] = 0  # a second that counts for no stem
    soundfile.write(tested.path / "vocals.wav", vocals, rate_hz, subtype="FLOAT")
    report = evaluate(separator, [tested], progress=False)
    (*references, mixture), _ = tested.read([*stems, "mixture"])
    separated = separator.separate(mixture, rate_hz)
    for found, estimates in (
        (report.model, [separated[stem] for stem in stems]),
        (report.oracle, ideal_ratio_mask(np.stack(references), rate_hz, separator.spec)),
        (report.mixture, [mixture] * len(stems)),
    ):
        sdr = frame_sdr(np.stack(references), np.stack(estimates), rate_hz)  # museval's, as test_metrics shows
        assert np.isnan(sdr[:, 1]).all()
        (of_song,) = found.songs
        assert of_song.song == "A - B" and tuple(of_song.stems) == stems
        for score, median_sdr, reference, estimate in zip(
            of_song.stems.values(), np.nanmedian(sdr, axis=1), references, estimates, strict=True
        ):
            assert score.csdr_db == pytest.approx(median_sdr, abs=1e-6)
            error = ((reference - estimate) ** 2).sum()
            assert score.usdr_db == pytest.approx(10 * np.log10((reference**2).sum() / error), abs=1e-3)


def test_a_known_mask_gives_its_decibels(separator: Separator, tmp_path: Path) -> None:
    # Vocals v and accompaniment a are independent, |a|² = 3 |v|² here. The mixture has the error a; 60 % of it 0.6 a - 0.4 v.
    report = evaluate(separator, [song(tmp_path / "A - B", seconds=5)], progress=False)
    assert report.mixture.stems["vocals"].csdr_db == pytest.approx(-10 * np.log10(3), abs=0.15)
    assert report.model.stems["vocals"].csdr_db == pytest.approx(-10 * np.log10(0.36 * 3 + 0.16), abs=0.15)


@pytest.mark.parametrize("channels", [1, 2])
def test_four_stems_in_the_order_of_the_spec(tiny_spec: ModelSpec, tmp_path: Path, channels: int) -> None:
    spec = replace(tiny_spec, stems=("drums", "bass", "vocals", "other"))
    network = Share(0.7, 0.1, 0.1, 0.1)
    tested = song(tmp_path / "A - B", channels=channels, drums=0.5)
    scores = evaluate_song(Separator(spec, network, "cpu"), tested, None)
    assert list(scores.stems) == ["drums", "bass", "vocals", "other"]
    assert scores.stems["drums"].csdr_db > 6 > 2 > scores.stems["bass"].csdr_db


def test_an_excerpt_is_the_middle_of_the_song(separator: Separator, tmp_path: Path) -> None:
    whole = song(tmp_path / "A - B", seconds=4)
    cut = tmp_path / "cut"
    cut.mkdir()
    for stem in ("drums", "bass", "other", "vocals"):
        audio, rate_hz = soundfile.read(tmp_path / "A - B" / f"{stem}.wav")
        soundfile.write(cut / f"{stem}.wav", audio[rate_hz : 3 * rate_hz], rate_hz, subtype="FLOAT")
    excerpt = evaluate_song(separator, whole, 2).stems["vocals"]
    by_hand = evaluate_song(separator, StemFolder("cut", cut), None).stems["vocals"]
    assert astuple(excerpt) == pytest.approx(astuple(by_hand), abs=1e-6)
    assert evaluate_song(separator, whole, 9) == evaluate_song(separator, whole, None)


def test_while_a_model_trains_only_the_model_is_scored(
    separator: Separator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = song(tmp_path / "A - B")
    (of_report,) = evaluate(separator, [tested], progress=False).model.songs
    monkeypatch.setattr(training.evaluation.evaluate, "ideal_ratio_mask", None)
    assert evaluate_song(separator, tested, None) == of_report


def test_a_model_is_scored_in_the_quality_asked_for(tiny_banded: tuple[ModelSpec, nn.Module], tmp_path: Path) -> None:
    separator, tested = Separator(*tiny_banded, "cpu"), song(tmp_path / "A - B")
    (*references, mixture), rate_hz = tested.read([*separator.spec.stems, "mixture"])
    scores = {}
    for quality in get_args(Quality):
        estimates = np.stack(list(separator.separate(mixture, rate_hz, quality).values()))
        scores[quality] = usdr(np.stack(references), estimates)
        found = evaluate(separator, [tested], False, quality).model.stems.values()
        np.testing.assert_allclose([score.usdr_db for score in found], scores[quality])
    assert np.abs(scores["fast"] - scores["best"]).min() > 1e-4


def test_middle() -> None:
    assert middle(np.arange(7)[None], 3).tolist() == [[2, 3, 4]]
    assert middle(np.arange(2)[None], 3).tolist() == [[0, 1]]


def test_songs_that_cannot_be_scored_are_named(separator: Separator, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Short - Song is shorter than the second"):
        evaluate(separator, [song(tmp_path / "Short - Song", seconds=0.9)], progress=False)
    with pytest.raises(DataError, match="no songs"):
        evaluate(separator, [], progress=False)


def test_a_song_without_voice_has_no_csdr_and_does_not_count(separator: Separator, tmp_path: Path) -> None:
    instrumental = song(tmp_path / "Ananas - Nan", vocals=0)
    sung = song(tmp_path / "A - B", seed=1)
    report = evaluate(separator, [instrumental, sung], progress=False)
    evaluation = report.model
    assert np.isnan(evaluation.songs[0].stems["vocals"].csdr_db)
    assert evaluation.stems["vocals"].csdr_db == evaluation.songs[1].stems["vocals"].csdr_db
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert stored["songs"][0]["song"] == "Ananas - Nan"
    assert stored["songs"][0]["stems"]["vocals"]["csdr_db"] is None
    row = next(line for line in report.table().splitlines() if line.startswith("Ananas - Nan"))
    assert row.split()[3:6:2] == ["vocals", f"{evaluation.songs[0].stems['vocals'].usdr_db:.2f}"]
    assert row.split()[4] == "-"


def three_songs(gain: float = 1) -> Evaluation:
    scores = [(1.0, 2.0), (3.0, 4.0), (11.0, 9.0)]
    return Evaluation(
        tuple(
            SongScores(f"S{k}", {"vocals": Score(gain * c, gain * u), "other": Score(2 * gain * c, 2 * gain * u)})
            for k, (c, u) in enumerate(scores)
        )
    )


def test_over_songs_csdr_is_a_median_and_usdr_a_mean() -> None:
    evaluation = three_songs()
    assert evaluation.stems["vocals"] == Score(3.0, 5.0)
    assert evaluation.usdr == pytest.approx((5.0 + 10.0) / 2)
    assert evaluation.stems["vocals"].recovered_percent == pytest.approx(100 * (1 - 10**-0.3))


def test_table_and_json_hold_every_score() -> None:
    report = Report(three_songs(), three_songs(10), three_songs(-1))
    lines = report.table().splitlines()
    assert lines[0].split() == ["model", "ideal", "mask", "mixture"]
    assert " ".join(lines[2].split()) == "all 3 songs vocals 3.00 5.00 49.88 30.00 50.00 -3.00 -5.00"
    assert " ".join(lines[3].split()) == "other 6.00 10.00 74.88 60.00 100.00 -6.00 -10.00"
    assert [line.split()[0] for line in lines if line.startswith("S")] == ["S0", "S1", "S2"]
    assert len({len(line) for line in lines[1:] if line}) == 1
    facts = report.to_json()
    assert facts["stems"]["other"]["usdr_db"] == 10.0
    for column, scores in (
        ("csdr_db", [1, 3, 11]),
        ("oracle_csdr_db", [10, 30, 110]),
        ("mixture_usdr_db", [-2, -4, -9]),
    ):
        assert [entry["stems"]["vocals"][column] for entry in facts["songs"]] == scores
    assert facts["songs"][1]["song"] == "S1"
    assert facts["songs"][1]["stems"]["vocals"]["recovered_percent"] == pytest.approx(49.88, abs=0.01)


def test_progress_is_shown_only_when_asked_for(
    separator: Separator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = [song(tmp_path / "A - B", seconds=1)]
    evaluate(separator, songs, progress=False)
    assert capsys.readouterr().err == ""
    evaluate(separator, songs, progress=True)
    assert "1 of 1" in capsys.readouterr().err
