"""Random excerpts of decoded songs, as int16; the device turns them into floats.

Seed, step and the songs known at that step determine a batch: a resumed run draws the same one, and any number of ranks can
share it.

Axes: b batch, s stem, c channel, n sample.
"""

import itertools
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.decoded import DecodedSong
from training.errors import DataError

THREADS = 2
AHEAD = 4


class OpenSong:
    """A song whose samples are mapped into memory once, for all of its excerpts."""

    def __init__(self, song: DecodedSong) -> None:
        self.name = song.name
        self.avoid = song.avoid
        self.samples = np.asarray(song.samples)  # the same memory, without the cost of slicing np.memmap

    @property
    def n_samples(self) -> int:
        return int(self.samples.shape[-1])

    def starts(self, stems: Sequence[int], crop_samples: int) -> list[range]:
        """Ranges of samples at which an excerpt of these stems may start; 0 in a song that is shorter than the excerpt."""
        spans = [(span.start, span.stop) for span in self.avoid if span.stem in stems]
        return free_starts(self.n_samples, crop_samples, spans)


class Place(NamedTuple):
    """A song and the sample in it where the excerpt of one stem starts."""

    song: OpenSong
    start: int


class Pool:
    """The songs to draw from at a step. The chance of a song is its share of all samples."""

    def __init__(self, songs: Sequence[OpenSong], crop_samples: int) -> None:
        self.songs = sorted(songs, key=lambda song: song.name)
        stems = range(self.songs[0].samples.shape[0])
        whole, crossed, mixed = [tuple(stems)], [(0,), tuple(stems[1:])], [(stem,) for stem in stems]
        self.recipes = (whole, crossed, mixed, mixed)
        self.starts = {
            group: [song.starts(group, crop_samples) for song in self.songs] for group in {*whole, *crossed, *mixed}
        }
        self.ends = {
            group: np.cumsum([song.n_samples if free else 0 for song, free in zip(self.songs, starts, strict=True)])
            for group, starts in self.starts.items()
        }
        if any(ends[-1] == 0 for ends in self.ends.values()):
            raise DataError("the errata of these songs leave nothing to train one of the stems on: add other songs")

    def example(self, rng: np.random.Generator) -> list[Place]:
        """Draw a place for each stem, vocals first.

        A quarter of the examples is a song as it is. A quarter is the vocals of one song over the accompaniment of another.
        In the other half every stem comes from a song of its own.
        """
        places: dict[int, Place] = {}
        for group in self.recipes[rng.integers(4)]:
            places |= dict.fromkeys(group, self.place(rng, group))
        return [places[stem] for stem in sorted(places)]

    def place(self, rng: np.random.Generator, group: tuple[int, ...]) -> Place:
        ends = self.ends[group]
        index = int(ends.searchsorted(rng.integers(ends[-1]), side="right"))
        starts = self.starts[group][index]
        chosen = int(rng.integers(sum(map(len, starts))))
        for stretch in starts:
            if chosen < len(stretch):
                break
            chosen -= len(stretch)
        return Place(self.songs[index], stretch[chosen])


class Crops:
    """The batch of every step. Rank r of w has the examples r, r + w, r + 2w … of all `batch_size`.

    `schedule` lists the names of songs by the first step that may draw from them. A resumed run adds them at the same
    steps.
    """

    def __init__(
        self,
        songs: Sequence[DecodedSong],
        batch_size: int,
        crop_samples: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.examples = range(rank, batch_size, world_size)
        self.crop_samples = crop_samples
        self.seed = seed
        self.arrivals: list[tuple[int, OpenSong]] = []
        self.pools: list[tuple[int, Pool]] = []
        self.next_step = 0  # no batch of this or a later step has been made
        self.lock = threading.Lock()
        self.add(songs, from_step=0)

    def add(self, songs: Sequence[DecodedSong], from_step: int) -> None:
        """Let the batches from `from_step` on draw from these songs, too.

        Raises ValueError if one of these batches has been made. Once `prepared_batches` has yielded the batch of step k,
        the first possible step is k + AHEAD.
        """
        arrivals = [(from_step, OpenSong(song)) for song in songs]
        with self.lock:
            if from_step < self.next_step:
                raise ValueError(f"songs cannot come at step {from_step}: the batch of {self.next_step - 1} is made")
            arrivals = sorted([*self.arrivals, *arrivals], key=lambda arrival: (arrival[0], arrival[1].name))
            changed = [
                (step, Pool([song for known_from, song in arrivals if known_from <= step], self.crop_samples))
                for step in sorted({step for step, _ in arrivals if step >= from_step})
            ]
            self.pools = [(step, pool) for step, pool in self.pools if step < from_step] + changed
            self.arrivals = arrivals

    @property
    def schedule(self) -> list[tuple[int, list[str]]]:
        """Names of the songs by the first step that may draw from them, both sorted."""
        grouped = itertools.groupby(self.arrivals, key=lambda arrival: arrival[0])
        return [(step, [song.name for _, song in arrivals]) for step, arrivals in grouped]

    def batch(self, step: int, pin_memory: bool = False) -> Tensor:
        """This rank's share of a batch: stereo excerpts, int16 (b, s, 2, n)."""
        with self.lock:
            self.next_step = max(self.next_step, step + 1)
        places = self.places(step)
        shape = (len(places), len(places[0]), 2, self.crop_samples)
        if pin_memory:
            batch = torch.empty(shape, dtype=torch.int16, pin_memory=True)
        else:  # NumPy asks the system for huge pages, torch does not: they are five times as fast to fill
            batch = torch.from_numpy(np.empty(shape, np.int16))
        for example, stems in zip(batch.numpy(), places, strict=True):
            for stem, (song, start) in enumerate(stems):
                # Silence follows a short song; a mono song fills both channels.
                excerpt = song.samples[stem, :, start : start + self.crop_samples]
                example[stem, :, : excerpt.shape[-1]] = excerpt
                example[stem, :, excerpt.shape[-1] :] = 0
        return batch

    def names(self, step: int) -> list[list[str]]:
        """The song of each stem of each example of a batch, by name. Reads no audio."""
        return [[place.song.name for place in stems] for stems in self.places(step)]

    def places(self, step: int) -> list[list[Place]]:
        pools = self.pools
        known = bisect_right(pools, step, key=lambda pool: pool[0])
        if known == 0:
            raise ValueError(f"no song is known at step {step}")
        pool = pools[known - 1][1]
        return [pool.example(np.random.default_rng([self.seed, step, index])) for index in self.examples]


def free_starts(n_samples: int, crop_samples: int, spans: Sequence[tuple[int, int]]) -> list[range]:
    """Ranges of samples at which an excerpt may start without touching one of the spans [start, stop)."""
    ranges, first, last = [], 0, max(0, n_samples - crop_samples)
    for start, stop in sorted(spans):
        ranges.append(range(first, min(start - crop_samples, last) + 1))
        first = max(first, stop)
    ranges.append(range(first, last + 1))
    return [starts for starts in ranges if starts]


def prepared_batches(crops: Crops, first_step: int, pin_memory: bool) -> Generator[Tensor]:
    """Yield the batch of `first_step` and of every later step; AHEAD of them are prepared in threads.

    Closing the generator stops the threads. Copying from a memory map releases the interpreter, so threads suffice;
    processes would need more shared memory than a container has by default.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="crops")
    try:
        steps = itertools.count(first_step)
        ahead = deque(pool.submit(crops.batch, step, pin_memory) for step in itertools.islice(steps, AHEAD))
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(crops.batch, next(steps), pin_memory))
    finally:
        pool.shutdown(cancel_futures=True)
