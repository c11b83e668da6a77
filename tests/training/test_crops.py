import itertools
from dataclasses import dataclass

import numpy as np
import torch

from training.crops import Crops, batches


@dataclass(frozen=True)
class Ramp:
    """A decoded song (s, c, n) whose samples count up from an offset that tells stem and channel."""

    samples: "np.ndarray[tuple[int, ...], np.dtype[np.int16]]"

    @property
    def n_samples(self) -> int:
        return self.samples.shape[-1]


def ramp(samples: int, channels: int = 2, first: int = 0) -> Ramp:
    stem, channel, sample = np.ogrid[:4, :channels, :samples]
    return Ramp((first + 4000 * stem + 2000 * channel + sample).astype(np.int16))


def stretch(first: int = 0) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
    """What an excerpt of ten samples holds that starts at the first sample of a ramp."""
    return ramp(10, first=first).samples


def test_an_excerpt_is_one_stretch_of_both_channels() -> None:
    batch = Crops([ramp(1000)], batch_size=50, crop_samples=10, seed=0).batch(0)
    assert batch.shape == (50, 4, 2, 10) and batch.dtype == torch.int16
    starts = batch[:, :, :1, :1] - torch.from_numpy(stretch())[:, :1, :1]
    assert torch.equal(batch - starts, torch.from_numpy(stretch()).expand(50, 4, 2, 10))


def test_stems_come_from_one_song_or_two_or_as_many_as_there_are() -> None:
    """Each stem of a song starts at a number of its own, so equal differences tell excerpts that belong together."""
    batch = Crops([ramp(1000)], batch_size=4000, crop_samples=10, seed=0).batch(0)
    vocals, *others = (batch[:, :, 0, 0] - torch.arange(0, 16_000, 4000).short()).unbind(dim=1)
    coherent = torch.stack([stem == others[0] for stem in others[1:]]).all(dim=0)
    whole = coherent & (vocals == others[0])
    assert abs(whole.float().mean().item() - 0.25) < 0.03
    assert abs((coherent & ~whole).float().mean().item() - 0.25) < 0.03


def test_a_batch_follows_from_seed_and_step() -> None:
    songs = [ramp(1000), ramp(1000, first=500)]
    assert torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs, 4, 10, seed=3).batch(7))
    assert not torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs, 4, 10, seed=3).batch(8))
    assert not torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs, 4, 10, seed=4).batch(7))


def test_every_place_of_a_song_is_reached() -> None:
    starts = Crops([ramp(13)], batch_size=200, crop_samples=10, seed=0).batch(0)[:, 0, 0, 0]
    assert set(starts.tolist()) == {0, 1, 2, 3}


def test_songs_are_drawn_as_often_as_they_are_long() -> None:
    crops = Crops([ramp(100), ramp(300, first=10_000)], batch_size=4000, crop_samples=10, seed=0)
    drawn = crops.batch(0)[:, 0, 0, 0] >= 10_000
    assert abs(drawn.float().mean().item() - 0.75) < 0.03


def test_a_song_shorter_than_the_excerpt_ends_in_silence() -> None:
    batch = Crops([ramp(6, first=1)], batch_size=1, crop_samples=10, seed=0).batch(0)
    assert batch[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]


def test_a_mono_song_fills_both_channels() -> None:
    batch = Crops([ramp(50, channels=1)], batch_size=2, crop_samples=10, seed=0).batch(0)
    assert torch.equal(batch[:, :, 0], batch[:, :, 1])


def test_batches_come_in_the_order_of_the_steps() -> None:
    crops = Crops([ramp(1000)], batch_size=2, crop_samples=10, seed=1)
    found = list(itertools.islice(batches(crops, first_step=5, pin_memory=False), 12))
    assert all(torch.equal(batch, crops.batch(5 + i)) for i, batch in enumerate(found))
