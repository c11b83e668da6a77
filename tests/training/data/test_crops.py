import itertools
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.crops import AHEAD, Crops, free_starts, prepared_batches
from training.data.decoded import DecodedSong, Span
from training.errors import DataError

Ramps = "np.ndarray[tuple[int, ...], np.dtype[np.int16]]"


@dataclass(frozen=True)
class Ramp:
    """A decoded song (s, c, n) whose samples count up from an offset that tells stem and channel."""

    samples: Ramps
    name: str = "A - 0"
    avoid: tuple[Span, ...] = ()


def ramp(samples: int, channels: int = 2, first: int = 0, name: str = "A - 0", avoid: tuple[Span, ...] = ()) -> Ramp:
    stem, channel, sample = np.ogrid[:4, :channels, :samples]
    return Ramp((first + 4000 * stem + 2000 * channel + sample).astype(np.int16), name, avoid)


def stretch(first: int = 0) -> Ramps:
    """An excerpt of ten samples from the first sample of a ramp."""
    return ramp(10, first=first).samples


def starts(batch: torch.Tensor) -> torch.Tensor:
    """The first sample of each stem of a batch of ramps (b, s)."""
    return batch[:, :, 0, 0] - torch.arange(0, 16_000, 4000).short()


def test_an_excerpt_is_one_stretch_of_both_channels() -> None:
    batch = Crops([ramp(1000)], batch_size=50, crop_samples=10, seed=0).batch(0)
    assert batch.shape == (50, 4, 2, 10) and batch.dtype == torch.int16
    first = batch[:, :, :1, :1] - torch.from_numpy(stretch())[:, :1, :1]
    assert torch.equal(batch - first, torch.from_numpy(stretch()).expand(50, 4, 2, 10))


def test_stems_come_from_one_song_or_two_or_as_many_as_there_are() -> None:
    """Each stem of a song starts at a number of its own, so equal differences tell excerpts that belong together."""
    vocals, *others = starts(Crops([ramp(1000)], batch_size=4000, crop_samples=10, seed=0).batch(0)).unbind(dim=1)
    coherent = torch.stack([stem == others[0] for stem in others[1:]]).all(dim=0)
    whole = coherent & (vocals == others[0])
    assert abs(whole.float().mean().item() - 0.25) < 0.03
    assert abs((coherent & ~whole).float().mean().item() - 0.25) < 0.03


def test_a_batch_follows_from_seed_and_step() -> None:
    songs = [ramp(1000), ramp(1000, first=500, name="A - 1")]
    assert torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs[::-1], 4, 10, seed=3).batch(7))
    assert not torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs, 4, 10, seed=3).batch(8))
    assert not torch.equal(Crops(songs, 4, 10, seed=3).batch(7), Crops(songs, 4, 10, seed=4).batch(7))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_batch_of_one(world_size: int) -> None:
    songs = [ramp(1000), ramp(1000, first=500, name="A - 1")]
    alone = Crops(songs, 6, 10, seed=3)
    ranks = [Crops(songs, 6, 10, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 9):
        shares = torch.stack([rank.batch(step) for rank in ranks], dim=1).flatten(0, 1)
        assert torch.equal(shares, alone.batch(step))
        assert len({example.numpy().tobytes() for example in shares}) == 6


def test_every_place_of_a_song_is_reached() -> None:
    found = Crops([ramp(13)], batch_size=200, crop_samples=10, seed=0).batch(0)[:, 0, 0, 0]
    assert set(found.tolist()) == {0, 1, 2, 3}


def test_songs_are_drawn_as_often_as_they_are_long() -> None:
    crops = Crops([ramp(100), ramp(300, first=10_000, name="A - 1")], batch_size=4000, crop_samples=10, seed=0)
    drawn = crops.batch(0)[:, 0, 0, 0] >= 10_000
    assert abs(drawn.float().mean().item() - 0.75) < 0.03


def test_a_song_shorter_than_the_excerpt_ends_in_silence() -> None:
    crops = Crops([ramp(6, first=1)], batch_size=1, crop_samples=10, seed=0)
    for step in range(10):
        np.full((1, 4, 2, 10), 7, np.int16)  # freed at once: memory of this size is not clean when it is used again
        assert crops.batch(step)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]


def test_a_mono_song_fills_both_channels() -> None:
    batch = Crops([ramp(50, channels=1)], batch_size=2, crop_samples=10, seed=0).batch(0)
    assert torch.equal(batch[:, :, 0], batch[:, :, 1])


def test_names_are_those_of_the_songs_in_the_batch() -> None:
    songs = [ramp(1000), ramp(1000, first=1000, name="A - 1")]
    crops = Crops(songs, 40, 10, seed=0, rank=1, world_size=2)
    drawn = [
        ["A - 1" if start >= 1000 else "A - 0" for start in example] for example in starts(crops.batch(3)).tolist()
    ]
    assert crops.names(3) == drawn


class TestFaults:
    """Crops keep off the stretches of stems that errata list."""

    def test_free_starts_are_those_whose_crops_touch_no_span(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(500):
            n_samples, crop = int(rng.integers(1, 60)), int(rng.integers(1, 20))
            spans = [
                (start, start + int(rng.integers(1, 30))) for start in rng.integers(0, 70, rng.integers(4)).tolist()
            ]
            faulty = {sample for span in spans for sample in range(*span)}
            possible = range(max(1, n_samples - crop + 1))
            expected = [start for start in possible if not faulty.intersection(range(start, start + crop))]
            found = list(itertools.chain(*free_starts(n_samples, crop, spans)))
            assert found == expected, (n_samples, crop, spans)

    def test_only_the_faulty_stem_is_avoided_and_what_comes_along_with_it(self) -> None:
        vocals, drums = Span(0, 20, 30), Span(1, 50, 60)
        first = starts(Crops([ramp(80, avoid=(vocals, drums))], 4000, 10, seed=0).batch(0))
        free_of = [{*range(71)} - {*range(span.start - 9, span.stop)} for span in (vocals, drums)]
        assert set(first[:, 0].tolist()) == free_of[0] and set(first[:, 1].tolist()) == free_of[1]
        assert set(first[:, 2].tolist()) == {*range(71)}
        whole = first[(first == first[:, :1]).all(dim=1)]
        assert set(whole[:, 0].tolist()) <= free_of[0] & free_of[1]

    def test_a_stem_that_is_faulty_throughout_is_never_drawn(self) -> None:
        songs = [ramp(100), ramp(100, first=1000, name="A - 1", avoid=(Span(0, 0, 10**9),))]
        first = starts(Crops(songs, 1000, 10, seed=0).batch(0))
        assert (first[:, 0] < 1000).all()
        assert (first[:, 1] >= 1000).any() and (first[:, 3] >= 1000).any()

    def test_songs_that_leave_nothing_to_draw(self) -> None:
        with pytest.raises(DataError, match="leave nothing to train one of the stems on: add other songs"):
            Crops([ramp(100, avoid=(Span(0, 0, 10**9),))], 4, 10, seed=0)


class TestArrivals:
    """Training begins with some of the songs."""

    first, second, third = (ramp(1000, first=1000 * number, name=f"A - {number}") for number in range(3))

    def test_a_batch_draws_from_the_songs_known_at_its_step(self) -> None:
        crops = Crops([self.first], 40, 10, seed=0)
        crops.add([self.third], from_step=8)
        crops.add([self.second], from_step=5)
        for steps, known in (range(5), "0"), (range(5, 8), "01"), (range(8, 12), "012"):
            for step in steps:
                assert {name for names in crops.names(step) for name in names} == {f"A - {number}" for number in known}

    def test_it_does_not_matter_in_which_order_they_came(self) -> None:
        crops = Crops([self.third], 4, 10, seed=0)
        crops.add([self.second], from_step=5)
        crops.add([self.first], from_step=5)
        again = Crops([self.third], 4, 10, seed=0)
        again.add([self.first, self.second], from_step=5)
        assert crops.schedule == again.schedule == [(0, ["A - 2"]), (5, ["A - 0", "A - 1"])]
        complete = Crops([self.first, self.second, self.third], 4, 10, seed=0)
        assert torch.equal(crops.batch(4), Crops([self.third], 4, 10, seed=0).batch(4))
        assert torch.equal(crops.batch(5), again.batch(5)) and torch.equal(crops.batch(5), complete.batch(5))

    def test_a_schedule_gives_the_same_batches_to_a_run_that_is_resumed(self) -> None:
        crops = Crops([self.second], 4, 10, seed=0)
        crops.add([self.first, self.third], from_step=6)
        by_name = {song.name: song for song in (self.first, self.second, self.third)}
        resumed = Crops([], 4, 10, seed=0)
        for step, names in crops.schedule:
            resumed.add([by_name[name] for name in names], step)
        assert all(torch.equal(resumed.batch(step), crops.batch(step)) for step in range(4, 9))

    def test_they_do_not_come_to_a_batch_that_is_made(self) -> None:
        crops = Crops([self.first], 4, 10, seed=0)
        upcoming = prepared_batches(crops, first_step=10, pin_memory=False)
        next(upcoming)
        crops.add([self.second], from_step=10 + AHEAD)
        upcoming.close()
        crops.batch(20)
        with pytest.raises(ValueError, match="songs cannot come at step 20: the batch of 20 is made"):
            crops.add([self.third], from_step=20)
        assert crops.schedule == [(0, ["A - 0"]), (10 + AHEAD, ["A - 1"])]

    def test_they_come_while_batches_are_made(self) -> None:
        """Each as early as it may; what was drawn meanwhile is what a run that is resumed draws."""
        songs = [ramp(1000, first=100 * number, name=f"A - {number:02}") for number in range(30)]
        crops = Crops(songs[:1], 4, 10, seed=0)
        upcoming, drawn = prepared_batches(crops, first_step=0, pin_memory=False), []
        for step, song in enumerate(songs[1:]):
            drawn.append(next(upcoming))
            crops.add([song], from_step=step + AHEAD)
        again = Crops(songs[:1], 4, 10, seed=0)
        for step, song in enumerate(songs[1:]):
            again.add([song], from_step=step + AHEAD)
        assert all(torch.equal(batch, again.batch(step)) for step, batch in enumerate(drawn))

    def test_no_song_at_all(self) -> None:
        with pytest.raises(ValueError, match="no song is known at step 3"):
            Crops([], 4, 10, seed=0).batch(3)


def test_batches_come_in_the_order_of_the_steps() -> None:
    crops = Crops([ramp(1000)], batch_size=2, crop_samples=10, seed=1)
    found = list(itertools.islice(prepared_batches(crops, first_step=5, pin_memory=False), 12))
    assert all(torch.equal(batch, crops.batch(5 + i)) for i, batch in enumerate(found))


def test_batches_that_are_closed_leave_no_thread_and_no_work() -> None:
    crops = Crops([ramp(1000)], batch_size=2, crop_samples=10, seed=1)
    upcoming = prepared_batches(crops, first_step=0, pin_memory=False)
    next(upcoming)
    assert any(thread.name.startswith("crops") for thread in threading.enumerate())
    upcoming.close()
    assert not any(thread.name.startswith("crops") for thread in threading.enumerate())


def test_closing_does_not_wait_for_batches_that_nobody_began(monkeypatch: pytest.MonkeyPatch) -> None:
    crops, made, batch = Crops([ramp(1000)], 2, 10, seed=1), [], Crops.batch

    def slow(self: Crops, step: int, pin_memory: bool) -> torch.Tensor:
        time.sleep(0.1 if step else 0)
        made.append(step)
        return batch(self, step, pin_memory)

    monkeypatch.setattr(Crops, "batch", slow)
    upcoming = prepared_batches(crops, first_step=0, pin_memory=False)
    next(upcoming)
    upcoming.close()
    assert len(made) < AHEAD


def test_a_batch_holds_what_the_file_holds(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, (4, 2, 500)).astype(np.int16)
    np.save(tmp_path / "song.npy", samples)
    crops = Crops([DecodedSong("A - 0", tmp_path / "song.npy", clipped=0)], 3, 500, seed=0)
    assert torch.equal(crops.batch(0), torch.from_numpy(samples).expand(3, 4, 2, 500))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to pin memory for")
def test_a_batch_can_be_pinned() -> None:
    crops = Crops([ramp(1000)], 4, 10, seed=0)
    pinned = next(prepared_batches(crops, first_step=0, pin_memory=True))
    assert pinned.is_pinned() and torch.equal(pinned, crops.batch(0))
