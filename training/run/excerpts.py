"""The excerpts of a run: crops of the songs that are here, and a supply that fetches the others."""

from collections.abc import Callable, Generator, Sequence
from threading import Event
from typing import Self

from torch import Tensor

from training.data.crops import AHEAD, Crops, prepared_batches
from training.data.decoded import DecodedSong
from training.data.song import Song
from training.data.supply import Prepare, Schedule, Supply, scheduled


class Excerpts:
    """The batches of every step. `schedule` holds song names by the first step that may draw from them."""

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
        """Prepare the songs of a schedule now, and the other songs in the background.

        `crops` makes crops of the songs of the first step. Raises what `prepare` raises, such as Stopped soon after
        `stopping` is set, and DataError if a song of the schedule is not among `songs`.
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
        """Yield the batches of `first_step` and all later steps, prepared in the background until the generator is closed."""
        return prepared_batches(self.crops, first_step, pin_memory)

    def names(self, step: int) -> list[str]:
        """The names of the songs in the batch of a step."""
        return sorted({song for example in self.crops.names(step) for song in example})

    def take_arrived(self, step: int) -> bool:
        """Draw from songs that have arrived, at the next step whose batch is not prepared yet. True if there are any."""
        songs = self.supply.arrived()
        if songs:
            self.crops.add(songs, from_step=step + AHEAD + 1)
        return bool(songs)

    def close(self) -> None:
        """Stop the supply."""
        self.supply.close()
