from collections.abc import Iterator

import numpy as np
import pytest

from serving.audio import Audio
from serving.model.chunks import batches, crossfade, rising_weights, windows

LENGTH, OVERLAP = 20, 4
HOP = LENGTH - OVERLAP


def song(samples: int) -> Audio:
    return np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)


def in_blocks(audio: Audio, block_samples: int) -> Iterator[Audio]:
    return (audio[:, k : k + block_samples] for k in range(0, audio.shape[-1], block_samples))


LENGTHS = [
    *(1, OVERLAP - 1, OVERLAP, OVERLAP + 1, LENGTH - 1, LENGTH, LENGTH + 1),
    *(LENGTH + k * HOP + extra for k in (1, 2, 7) for extra in (-1, 0, 1, OVERLAP, HOP - 1)),
]


@pytest.mark.parametrize("block_samples", [1, 3, 7, LENGTH, 1000])
@pytest.mark.parametrize("samples", LENGTHS)
def test_unchanged_windows_give_the_song_back(samples: int, block_samples: int) -> None:
    audio = song(samples)
    cut = list(windows(in_blocks(audio, block_samples), LENGTH, OVERLAP))
    blocks = list(crossfade(cut, OVERLAP))
    assert all(block.shape[-1] > 0 for block in blocks)
    back = np.concatenate(blocks, axis=-1)
    assert back.shape == audio.shape
    np.testing.assert_allclose(back, audio, rtol=0, atol=5e-7)  # a·(1 - w) + a·w in float32


@pytest.mark.parametrize("block_samples", [1, 3, 7, LENGTH, 1000])
@pytest.mark.parametrize("samples", LENGTHS)
def test_windows_lie_where_they_should_whatever_the_blocks(samples: int, block_samples: int) -> None:
    audio = song(samples)
    cut = list(windows(in_blocks(audio, block_samples), LENGTH, OVERLAP))
    for k, window in enumerate(cut):
        np.testing.assert_array_equal(window, audio[:, k * HOP : k * HOP + LENGTH])
    assert (len(cut) - 1) * HOP + cut[-1].shape[-1] == samples
    assert len(cut) == 1 or cut[-1].shape[-1] > OVERLAP


def test_no_blocks_are_no_windows() -> None:
    assert list(windows([], LENGTH, OVERLAP)) == []
    assert list(windows([np.empty((2, 0), np.float32)], LENGTH, OVERLAP)) == []
    assert list(crossfade([], OVERLAP)) == []


def test_each_sample_is_weighted_by_one_in_all() -> None:
    # Windows of ones: where weights did not sum to one, the song would not be one.
    pieces = windows([np.ones((1, 200), np.float32)], LENGTH, OVERLAP)
    np.testing.assert_allclose(np.concatenate(list(crossfade(pieces, OVERLAP)), axis=-1), 1, rtol=0, atol=1e-7)


@pytest.mark.parametrize("overlap", [1, 2, 5, 10, 22_050])
def test_weights_rise_from_zero_to_one_and_are_symmetric(overlap: int) -> None:
    weights = rising_weights(overlap)
    assert weights.shape == (overlap,)
    assert np.all(np.diff(weights) >= 0)
    np.testing.assert_allclose(weights + weights[::-1], 1, atol=1e-6)
    if overlap >= 10:
        tenth = overlap // 10
        assert np.all(weights[:tenth] == 0)
        assert np.all(weights[-tenth:] == 1)


def test_the_fade_goes_from_the_earlier_window_to_the_later() -> None:
    earlier, later = np.zeros((1, LENGTH), np.float32), np.ones((1, LENGTH), np.float32)
    faded = np.concatenate(list(crossfade([earlier, later], OVERLAP)), axis=-1)[0]
    assert faded.size == 2 * LENGTH - OVERLAP
    np.testing.assert_array_equal(faded[:HOP], 0)
    np.testing.assert_array_equal(faded[HOP:LENGTH], rising_weights(OVERLAP))
    np.testing.assert_array_equal(faded[LENGTH:], 1)


def test_no_more_is_read_than_the_next_window_needs() -> None:
    read = 0

    def blocks() -> Iterator[Audio]:
        nonlocal read
        while True:  # a song without an end
            read += 3
            yield np.zeros((1, 3), np.float32)

    faded = crossfade(windows(blocks(), LENGTH, OVERLAP), OVERLAP)
    given = 0
    for _ in range(50):
        given += next(faded).shape[-1]
        assert read - given <= LENGTH + OVERLAP + 3


def test_batches_are_of_one_shape_and_the_first_is_a_single_window() -> None:
    cut = [song(LENGTH)] * 6 + [song(LENGTH - 1)]
    assert [[w.shape[-1] for w in batch] for batch in batches(iter(cut), lambda: 3)] == [[20], [20] * 3, [20] * 2, [19]]
    assert [len(batch) for batch in batches(iter(cut), lambda: 1)] == [1] * 7
    assert list(batches(iter([]), lambda: 3)) == []


def test_a_batch_is_given_as_soon_as_it_is_full_and_may_become_smaller() -> None:
    taken: list[int] = []
    most = iter([4, 2, 2, 2])

    def counted() -> Iterator[Audio]:
        for k in range(9):
            taken.append(k)
            yield song(LENGTH)

    sizes = [(len(batch), len(taken)) for batch in batches(counted(), lambda: next(most))]
    assert sizes == [(1, 1), (4, 5), (2, 7), (2, 9)]
