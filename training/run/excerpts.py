"""The excerpts of a run: crops of the songs that are here, and the supply that brings the others."""

from collections.abc import Callable, Generator, Sequence
from threading import Event
from typing import Self

from torch import Tensor

from training.data.crops import AHEAD, Crops, prepared_batches
from training.data.decoded import DecodedSong
from training.data.song import Song
from training.data.supply import Prepare, Schedule, Supply, scheduled


class Excerpts:
    """The batches of every step. `schedule` has the names of the songs by the step that they are known from."""

    def __init__(self, crops: Crops, supply: Supply) -> None:
        self.crops = crops
        self.supply = supply

    @classmethod
    def open(
        cls,
        songs: Sequence[Song],
        schedule: Schedule,
        prepare: Prepare,
        crops: Callable[[Sequence[DecodedSong]], Crops],
        stopping: Event,
    ) -> Self:
        """Excerpts of the songs in a schedule, prepared here and now. The other songs come later, from a supply.

        `crops` makes crops of the songs that are known from the first step on. Raises what `prepare` raises, such as
        Stopped soon after `stopping` is set, and DataError if a song of the schedule is not among `songs`.
        """
        known, others = scheduled(songs, schedule)
        (_, first), *later = [(step, prepare(group, stopping)) for step, group in known]
        made = crops(first)
        for step, group in later:
            made.add(group, step)
        return cls(made, Supply(others, prepare))

    @property
    def schedule(self) -> list[tuple[int, list[str]]]:
        return self.crops.schedule

    def batch(self, step: int) -> Tensor:
        """The batch of a step, int16 (b, s, 2, n)."""
        return self.crops.batch(step)

    def batches(self, first_step: int, pin_memory: bool) -> Generator[Tensor]:
        """The batches of a step and all later ones, prepared in the background until the generator is closed."""
        return prepared_batches(self.crops, first_step, pin_memory)

    def names(self, step: int) -> list[str]:
        """The songs in the batch of a step."""
        return sorted({song for example in self.crops.names(step) for song in example})

    def take_arrived(self, step: int) -> bool:
        """Draw from the songs that have arrived as soon as it can be, at a step; True if there are any."""
        songs = self.supply.arrived()
        if songs:
            self.crops.add(songs, from_step=step + AHEAD + 1)
        return bool(songs)

    def close(self) -> None:
        """Bring no more songs."""
        self.supply.close()
