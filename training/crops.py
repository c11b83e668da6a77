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

from training.decoded import DecodedSong

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
        """Stereo excerpts, int16 (b, s, 2, n), each song drawn as often as it is long."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.songs), self.batch_size, p=self.share)
        return torch.from_numpy(np.stack([self.crop(self.songs[index], rng) for index in chosen]))

    def crop(self, song: DecodedSong, rng: np.random.Generator) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
        samples = song.samples
        start = int(rng.integers(max(1, samples.shape[-1] - self.crop_samples + 1)))
        part = samples[:, :, start : start + self.crop_samples]
        excerpt = np.zeros((len(samples), 2, self.crop_samples), np.int16)
        excerpt[:, :, : part.shape[-1]] = part  # a mono song fills both channels
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
