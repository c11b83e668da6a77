import json

import numpy as np
import pytest

from tests.vectors.make_museval import RATE_HZ, SCORES, SHAPES, song, stems
from training.evaluation.metrics import csdr, frame_sdr, median, recovered_percent, si_sar, usdr


@pytest.mark.parametrize("name", SHAPES)
def test_frames_equal_museval_s(name: str) -> None:
    references, estimates = song(name)
    theirs = np.array(json.loads(SCORES.read_text())[name], float)
    ours = frame_sdr(references, estimates, RATE_HZ)
    assert ours.shape == theirs.shape == (len(references), references.shape[2] // RATE_HZ)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, equal_nan=True)
    if name == "silences":
        assert np.isnan(ours).tolist() == [[True, False, True, True, False]] * 2


def test_a_known_error_gives_its_decibels() -> None:
    references = stems(5, 2, 1, 2.0)
    estimates = references * np.array([0.9, 0.5], np.float32)[:, None, None]
    np.testing.assert_allclose(csdr(references, estimates, RATE_HZ), [20.0, 20 * np.log10(2)], atol=1e-5)
    np.testing.assert_allclose(usdr(references, estimates), [20.0, 20 * np.log10(2)], atol=1e-5)


def test_csdr_is_the_median_of_the_frames_that_count() -> None:
    references = np.ones((1, 1, 4 * RATE_HZ), np.float32)
    gains = np.repeat([0.9, 0.99, 0.5, 0.0], RATE_HZ).astype(np.float32)  # 20, 40 and 6 dB, and a silent estimate
    assert csdr(references, references * gains, RATE_HZ) == pytest.approx(20.0, abs=1e-4)


def test_an_exact_estimate_is_infinitely_good_and_usdr_stays_finite() -> None:
    references = stems(6, 2, 2, 1.0)
    assert np.isposinf(csdr(references, references, RATE_HZ)).all()
    assert np.isfinite(usdr(references, references)).all()


def test_silence_has_no_csdr_and_no_warning() -> None:
    nothing = np.zeros((2, 1, 2 * RATE_HZ), np.float32)
    assert np.isnan(csdr(nothing, nothing, RATE_HZ)).all()
    np.testing.assert_array_equal(usdr(nothing, nothing), [0.0, 0.0])


@pytest.mark.parametrize(("sdr_db", "percent"), [(0, 0), (5.2, 69.8), (7.0, 80.0), (8.2, 84.9), (13.0, 95.0)])
def test_recovered_percent_is_the_plan_s(sdr_db: float, percent: float) -> None:
    assert recovered_percent(sdr_db) == pytest.approx(percent, abs=0.05)


def test_median_leaves_nan_out() -> None:
    assert median(np.array([np.nan, 1.0, 3.0])) == 2.0
    assert np.isnan(median(np.array([np.nan])))


def test_si_sar_is_of_what_no_true_stem_explains() -> None:
    rng = np.random.default_rng(0)
    references = rng.standard_normal((2, 2, 50_000)).astype(np.float32)
    noise = rng.standard_normal((2, 50_000)).astype(np.float32)
    leaking = 0.5 * references[0] + 0.3 * references[1]
    estimates = np.stack([leaking + 0.1 * noise, 7 * references[1] + 0.7 * noise])
    explained = 0.5**2 + 0.3**2
    assert si_sar(references, estimates) == pytest.approx([10 * np.log10(explained / 0.01), 20.0], abs=0.05)
