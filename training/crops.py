"""Random excerpts of decoded songs, as integers: they become floats on the device.

Axes: b batch, s stem, c channel, n sample.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from training.decoded import DecodedSong, Samples

THREADS = 2
AHEAD = 4


class Crops:
    """The batch of every step. It follows from seed and step alone, so that a resumed run sees what it would have seen."""

    def __init__(self, songs: Sequence[DecodedSong], batch_size: int, crop_samples: int, seed: int) -> None:
        self.songs = songs
        self.batch_size = batch_size
        self.crop_samples = crop_samples
        self.seed = seed
        lengths = np.array([song.n_samples for song in songs], dtype=np.float64)
        self.share = lengths / lengths.sum()

    def batch(self, step: int) -> Tensor:
        """Stereo excerpts, int16 (b, s, 2, n)."""
        rng = np.random.default_rng([self.seed, step])
        return torch.from_numpy(np.stack([self.example(rng) for _ in range(self.batch_size)]))

    def example(self, rng: np.random.Generator) -> Samples:
        """Stems (s, 2, n), vocals first: a quarter of the examples are a song as it is, a quarter the vocals of one song
        over the accompaniment of another, the rest stems of as many songs."""
        stems = len(self.songs[0].samples)
        first, second, *others = (self.place(rng) for _ in range(stems))
        kind = rng.integers(4)
        places = (
            [first] * stems
            if kind == 0
            else [first] + [second] * (stems - 1)
            if kind == 1
            else [first, second, *others]
        )
        return np.stack([self.excerpt(*place, stem) for stem, place in enumerate(places)])

    def place(self, rng: np.random.Generator) -> tuple[DecodedSong, int]:
        """A song, each as often as it is long, and a sample to start at."""
        song = self.songs[rng.choice(len(self.songs), p=self.share)]
        return song, int(rng.integers(max(1, song.n_samples - self.crop_samples + 1)))

    def excerpt(self, song: DecodedSong, start: int, stem: int) -> Samples:
        """One stem (2, n). What a song lacks in length is silence; a mono song fills both channels."""
        part = song.samples[stem, :, start : start + self.crop_samples]
        excerpt = np.zeros((2, self.crop_samples), np.int16)
        excerpt[:, : part.shape[-1]] = part
        return excerpt


def batches(crops: Crops, first_step: int, pin_memory: bool) -> Iterator[Tensor]:
    """The batches of `first_step` and every later one, a few of them prepared ahead.

    By threads: copying out of a memory map does not hold the interpreter up, and processes would need more shared memory
    than a container has unless told.
    """

    def prepare(step: int) -> Tensor:
        batch = crops.batch(step)
        return batch.pin_memory() if pin_memory else batch

    with ThreadPoolExecutor(THREADS) as pool:
        ahead = deque(pool.submit(prepare, step) for step in range(first_step, first_step + AHEAD))
        for step in itertools.count(first_step + AHEAD):
            yield ahead.popleft().result()
            ahead.append(pool.submit(prepare, step))
