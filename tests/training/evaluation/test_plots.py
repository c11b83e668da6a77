import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from training.evaluation.plots import (
    LOWEST_DB,
    Point,
    decibels,
    mel,
    most_different,
    profile_figure,
    ratio,
    scatter_figure,
    spectrogram_figure,
)

pytestmark = pytest.mark.slow

RATE_HZ = 22_050


def tone(hz: float, seconds: float = 2.0) -> np.ndarray:
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return np.tile(0.5 * np.sin(2 * np.pi * hz * time_s), (2, 1)).astype(np.float32)


def drawn(figure: Figure, path: Path) -> np.ndarray:
    """The picture as it comes out of a file, without a warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path)
    return imread(path)


def panel(figure: Figure, title: str) -> np.ndarray:
    """The numbers drawn in the panel of this title."""
    (axis,) = (axis for axis in figure.axes if axis.get_title() == title)
    return np.asarray(axis.collections[0].get_array())


def test_spectrogram_figure_shows_each_audio_in_its_panel(tmp_path: Path) -> None:
    voice, music = tone(440), tone(3000)
    figure = spectrogram_figure(voice + music, voice, voice, RATE_HZ)
    mixture, target, estimate, mask = (
        panel(figure, title) for title in ("Mixture", "Target vocals", "Estimated vocals", "Mask of vocals")
    )
    np.testing.assert_array_equal(target, estimate)
    of_voice, of_music = target.mean(axis=1).argmax(), (mixture - target).mean(axis=1).argmax()
    assert mixture.max() == pytest.approx(0, abs=1e-4)
    assert mixture[of_music].mean() > -10 > -40 > target[of_music].mean()
    assert mask[of_voice].mean() > 0.9
    assert mask[of_music].mean() < 0.01
    assert drawn(figure, tmp_path / "figure.png").std() > 0.1


def test_spectrogram_figure_of_silence_is_dark(tmp_path: Path) -> None:
    silence = np.zeros((1, RATE_HZ), np.float32)
    figure = spectrogram_figure(silence, silence, silence, RATE_HZ)
    assert np.all(panel(figure, "Mask of vocals") == 0)
    assert drawn(figure, tmp_path / "figure.png").shape[2] == 4


def test_profile_figure_draws_a_bar_for_every_number(tmp_path: Path) -> None:
    magnitude = np.random.default_rng(0).random((1025, 90), np.float32)
    percents = {"vocal band": [10.0, 20.0, 30.0], "voice": [5.0, 15.0, 25.0]}
    figure = profile_figure(
        magnitude, 0.25 * np.ones_like(magnitude), [1.0, 2.0, 3.0], percents, rate_hz=RATE_HZ, hop_samples=512
    )
    *_, means, shares = (axis for axis in figure.axes if axis.patches)
    assert [bar.get_height() for bar in means.patches] == [1.0, 2.0, 3.0]
    assert [bar.get_height() for bar in shares.patches] == [10.0, 20.0, 30.0, 5.0, 15.0, 25.0]
    assert means.patches[2].get_x() == pytest.approx(2 / 3 * 90 * 512 / RATE_HZ)
    np.testing.assert_allclose(panel(figure, "Vocal mask"), 0.25, atol=1e-3)
    assert drawn(figure, tmp_path / "figure.png").std() > 0.1


def test_profile_figure_without_a_mask_has_no_mask_panel() -> None:
    magnitude = np.ones((1025, 36), np.float32)
    figure = profile_figure(magnitude, None, [1.0] * 18, {"vocal band": [50.0] * 18}, rate_hz=RATE_HZ, hop_samples=512)
    assert "Vocal mask" not in [axis.get_title() for axis in figure.axes]


def test_scatter_figure_draws_every_song_of_every_stem_in_a_panel_for_each_archive(tmp_path: Path) -> None:
    near = [Point(f"S{k}", "vocals", float(k), k + 0.1) for k in range(6)]
    far = [Point("Far - Off", "drums", 2.0, 7.5), Point("Silent", "vocals", -60.0, -70.0)]
    figure = scatter_figure("first", {"second": near, "third": near + far})
    second, third = figure.axes
    assert [axis.get_xlabel()[:5] for axis in figure.axes] == ["first", "first"]
    assert [axis.get_ylabel()[:6] for axis in figure.axes] == ["second", "third:"]
    (vocals,) = second.collections
    np.testing.assert_allclose(vocals.get_offsets(), [(k, k + 0.1) for k in range(6)])
    vocals, drums = third.collections
    assert drums.get_offsets().tolist() == [[2.0, 7.5]]
    assert vocals.get_offsets().tolist()[-1] == [LOWEST_DB, LOWEST_DB]
    assert not np.array_equal(vocals.get_facecolor(), drums.get_facecolor())
    assert {axis.get_xlim() for axis in figure.axes} == {axis.get_ylim() for axis in figure.axes} == {(-11.0, 8.5)}
    (diagonal,) = third.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert "Far - Off" in [text.get_text() for text in third.texts]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["vocals", "drums"]
    assert drawn(figure, tmp_path / "figure.png").std() > 0.05


def test_scatter_figure_has_a_place_for_any_number_of_archives(tmp_path: Path) -> None:
    points = [Point("A - 1", "bass", 1.0, 2.0)]
    figure = scatter_figure("0", {str(k): points for k in range(1, 6)})
    assert len(figure.axes) == 5
    assert drawn(figure, tmp_path / "figure.png").std() > 0.05


def test_the_songs_that_differ_most_are_labelled_where_labels_have_room() -> None:
    points = [
        Point(name, "bass", x, y) for name, x, y in (("a", 0, 1), ("b", 9, 3), ("c", 8, 3.1), ("d", 5, 9), ("e", 6, 6))
    ]
    assert [point.song for point in most_different(points, apart_db=0.5)] == ["b", "d", "a", "e"]
    assert [point.song for point in most_different(points, apart_db=0.05)] == ["b", "c", "d", "a"]


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 96_000])
def test_every_mel_band_holds_a_bin(rate_hz: int) -> None:
    assert mel(np.ones((2049, 1), np.float32), rate_hz).min() > 0


def test_decibels_and_ratio() -> None:
    magnitude = np.array([[1.0, 10.0]], np.float32)
    np.testing.assert_allclose(decibels(magnitude, 10.0), [[-20, 0]], atol=1e-5)
    np.testing.assert_allclose(ratio(magnitude / 2, magnitude), [[0.5, 0.5]], rtol=2e-3)
    assert ratio(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)).tolist() == [[0, 0]]
