"""Demo songs with true stems in the layout of MUSDB18-HQ, made by numpy alone.

A song is a chord progression that four parts follow: drums, bass, other (chords and a lead) and vocals. The singer is a
pulse-like tone through four resonances that move from vowel to vowel, with vibrato, glides, breath, consonants and rests.
The lead of `other` plays notes of the same range without them: that is the difference that a network can learn.

The seed and the number decide everything about a song. Axes: c channel, f bin, t frame, n sample.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from serving.storage.progress import Progress, no_progress
from training.errors import DataError
from training.demo.sounds import (
    FINGERED_BASS,
    FLUTE,
    HOP_SAMPLES,
    PIANO,
    ORGAN,
    PLUCK,
    RATE_HZ,
    REED,
    STRINGS,
    VOCAL_FOLDS,
    VOWELS,
    Sound,
    Random,
    add,
    band,
    filtered,
    hertz,
    hump,
    oscillate,
    pan_gains,
    play,
    resonances,
    room,
)

PEAK = 0.9  # of full scale, in the mixture
FIRST_TEST_NUMBER = 10_000  # test songs keep their numbers, whatever the number of songs to train on
LEVELS = {"drums": 0.9, "bass": 0.9, "other": 1.0, "vocals": 1.0}  # root mean squares, ± 2 dB from song to song

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10))  # major, minor, dorian
PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (0, 3, 4, 3), (1, 4, 0, 5), (0, 2, 3, 4), (0, 6, 3, 0))
KICKS = ("x.......x.......", "x.....x.x.......", "x...x...x...x...", "x..x......x.....")
SNARES = ("....x.......x...", "....x..x....x...", "........x.......")
HATS = ("x.x.x.x.x.x.x.x.", "xxxxxxxxxxxxxxxx", "..x...x...x...x.")
BASSES = ("x...x...x...x...", "x.x.x.x.x.x.x.x.", "x.....x.x.....x.", "x..x..x.x..x..x.")
# fmt: off
WORDS = ("Amber", "Bright", "Copper", "Distant", "Early", "Falling", "Golden", "Hidden", "Lonely", "Northern", "Silver")
NOUNS = ("Bridges", "Clouds", "Doors", "Engines", "Fields", "Gardens", "Harbours", "Islands", "Lanterns", "Rooms", "Stars")
# fmt: on


@dataclass(frozen=True)
class Composition:
    """The facts that all parts of a song share. Pitches are MIDI numbers; a step is a sixteenth note, a bar has sixteen."""

    n_samples: int
    step_samples: int
    tonic_midi: int
    scale: tuple[int, ...]
    roots: tuple[int, ...]  # scale degree of each bar's chord

    def midi(self, degree: int) -> int:
        """Pitch of a degree of the scale, counted from the tonic through the octaves."""
        octave, step = divmod(degree, len(self.scale))
        return self.tonic_midi + 12 * octave + self.scale[step]

    def start(self, bar: int, step: int = 0) -> int:
        return (16 * bar + step) * self.step_samples


def write_songs(
    folder: Path, *, train: int, test: int, seconds: float, seed: int, progress: Progress = no_progress
) -> None:
    """Write songs as FOLDER/{train,test}/<Artist - Title>/{mixture,drums,bass,other,vocals}.wav, PCM_16 stereo.

    A song gets its name when it is complete. Songs of an earlier call with the same numbers are kept.
    Raises DataError if the folder holds anything else.
    """
    request = {"version": 1, "train": train, "test": test, "seconds": seconds, "seed": seed}
    description = folder / "songs.json"
    if folder.exists() and any(folder.iterdir()):
        if not description.is_file() or json.loads(description.read_text()) != request:
            raise DataError(f"{folder} holds something else than these songs: name another folder or delete it")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        part = description.with_suffix(".part")
        part.write_text(json.dumps(request))
        part.replace(description)
    numbers = [("train", number) for number in range(train)]
    numbers += [("test", FIRST_TEST_NUMBER + number) for number in range(test)]
    for done, (split, number) in enumerate(numbers):
        progress("write songs", done, len(numbers))
        target = folder / split / song_name(seed, number)
        if not target.exists():
            write_song(target, compose(seed, number, seconds))
    progress("write songs", len(numbers), len(numbers))


def write_song(folder: Path, stems: dict[str, NDArray[np.int16]]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    mixture = sum(stem.astype(np.int32) for stem in stems.values())
    for name, audio in {**stems, "mixture": np.asarray(mixture, dtype=np.int16)}.items():
        soundfile.write(part / f"{name}.wav", audio, RATE_HZ, subtype="PCM_16")
    part.rename(folder)


def song_name(seed: int, number: int) -> str:
    rng = np.random.default_rng([seed, number, 1])
    first, second, third = rng.choice(WORDS, 3, replace=False)
    return f"{first} {rng.choice(NOUNS)} - {second} {third} {number + 1}"


def compose(seed: int, number: int, seconds: float) -> dict[str, NDArray[np.int16]]:
    """The four stems (n, 2) of a song; their sum peaks at 0.9 of full scale."""
    rng = np.random.default_rng([seed, number])
    bar_s = 240 / rng.uniform(80, 140)
    n_samples = round(seconds * RATE_HZ)
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    bars = int(seconds / bar_s) + 1
    score = Composition(
        n_samples=n_samples,
        step_samples=round(bar_s * RATE_HZ / 16),
        tonic_midi=int(rng.integers(48, 60)),
        scale=SCALES[rng.integers(len(SCALES))],
        roots=tuple(progression[bar % len(progression)] for bar in range(bars)),
    )
    parts = {"drums": drums, "bass": bass, "other": other, "vocals": vocals}
    stems = {}
    for (name, part), part_rng in zip(parts.items(), rng.spawn(len(parts)), strict=True):
        audio = part(score, part_rng)
        level = LEVELS[name] * 10 ** (part_rng.uniform(-2, 2) / 20)
        stems[name] = audio * (level / max(float(np.sqrt(np.mean(audio**2))), 1e-6))
    mixture = np.sum(list(stems.values()), axis=0)
    peak = max(float(np.abs(audio).max()) for audio in (mixture, *stems.values()))
    return {name: np.round(audio * (PEAK * 32767 / peak)).astype(np.int16) for name, audio in stems.items()}


def drums(score: Composition, rng: Random) -> Sound:
    """Kick, snare and hi-hat (n, 2) in a sixteenth-note pattern, with a fill every fourth bar."""
    t = np.arange(int(0.3 * RATE_HZ), dtype=np.float32) / RATE_HZ
    low_hz, body_hz = rng.uniform(42, 60), rng.uniform(170, 230)
    kick = np.sin(2 * np.pi * (low_hz * t + 4 * (1 - np.exp(-t / 0.025)))) * np.exp(-t / rng.uniform(0.08, 0.16))
    noise = band(rng.standard_normal(t.size, dtype=np.float32), 1_200, 9_000)
    snare = 0.5 * noise * np.exp(-t / rng.uniform(0.05, 0.12)) + 0.5 * np.sin(2 * np.pi * body_hz * t) * np.exp(
        -t / 0.05
    )
    hat = (
        0.4 * band(rng.standard_normal(t.size, dtype=np.float32), 6_000, 18_000) * np.exp(-t / rng.uniform(0.015, 0.05))
    )
    out = np.zeros((score.n_samples, 2), dtype=np.float32)
    for sound, patterns, pan in (
        (kick, KICKS, 0.0),
        (snare, SNARES, rng.uniform(-0.1, 0.1)),
        (hat, HATS, rng.uniform(-0.6, 0.6)),
    ):
        pattern = patterns[rng.integers(len(patterns))]
        stereo = sound.astype(np.float32)[:, None] * pan_gains(pan)
        for bar in range(len(score.roots)):
            fill = sound is snare and bar % 4 == 3
            for step, mark in enumerate(pattern):
                if mark == "x" or (fill and step >= 12):
                    add(out, stereo * np.float32(rng.uniform(0.6, 1.0)), score.start(bar, step))
    return room(out, rng, wet=0.15)


def bass(score: Composition, rng: Random) -> Sound:
    """Roots, fifths and octaves (n, 2) in the middle, two octaves below the chords."""
    pattern = BASSES[rng.integers(len(BASSES))]
    steps = [step for step, mark in enumerate(pattern) if mark == "x"]
    out = np.zeros((score.n_samples, 2), dtype=np.float32)
    for bar, root in enumerate(score.roots):
        for step, following in zip(steps, [*steps[1:], 16], strict=True):
            degree = root + int(rng.choice((0, 0, 0, 4, 7))) if step else root
            length = int((following - step) * score.step_samples * 0.95)
            tone = play(FINGERED_BASS, score.midi(degree) - 24, length)
            add(out, tone[:, None] * np.float32(rng.uniform(0.8, 1.0)), score.start(bar, step))
    return out


def other(score: Composition, rng: Random) -> Sound:
    """Chords on one instrument and a lead on another (n, 2), in the singer's range."""
    out = np.zeros((score.n_samples, 2), dtype=np.float32)
    instruments = (ORGAN, STRINGS, PLUCK, PIANO)
    instrument = instruments[rng.integers(len(instruments))]
    broken = bool(rng.integers(2))  # arpeggio, or all notes at once
    side = rng.uniform(-0.7, 0.7)
    for bar, root in enumerate(score.roots):
        for step in range(0, 16, 2 if broken else 8):
            voices = (root + (0, 2, 4, 7)[step // 2 % 4],) if broken else (root, root + 2, root + 4)
            for degree in voices:
                length = score.step_samples * (4 if broken else 8)
                add(
                    out, play(instrument, score.midi(degree), length)[:, None] * pan_gains(side), score.start(bar, step)
                )
    lead = (REED, FLUTE, STRINGS)[rng.integers(3)]
    degree = 7
    for bar in range(len(score.roots)):
        for step in range(0, 16, 4):
            degree = int(np.clip(degree + rng.integers(-2, 3), 3, 14))
            if rng.random() < 0.5:
                length = score.step_samples * int(rng.choice((3, 4, 8)))
                tone = 0.8 * play(lead, score.midi(degree), length)[:, None] * pan_gains(-side)
                add(out, tone, score.start(bar, step))
    return room(out, rng, wet=0.35)


def vocals(score: Composition, rng: Random) -> Sound:
    """A singer (n, 2) near the middle: phrases of sung syllables with rests between them."""
    n_frames = score.n_samples // HOP_SAMPLES + 2
    low = int(rng.integers(-7, 5))  # lowest degree: from a low to a high voice
    tract = (
        1.15 - 0.02 * (low + 7) + rng.uniform(-0.05, 0.05)
    )  # its length: low voices have longer ones and lower formants
    vibrato_hz, vibrato_semitones = rng.uniform(4.5, 6.5), rng.uniform(0.25, 0.6)
    midi = np.full(n_frames, score.midi(low), dtype=np.float32)
    voiced, breathy = np.zeros((2, n_frames), dtype=np.float32)
    formants = np.tile(VOWELS[0], (n_frames, 1))
    hiss_hz = np.full(n_frames, 5_000, dtype=np.float32)

    step, degree, vowel = 0, low + 3, 0
    last_step = 16 * len(score.roots)
    while step < last_step:
        for _ in range(rng.integers(3, 8)):
            length = int(rng.choice((2, 2, 4, 4, 6, 8)))
            first, end = (s * score.step_samples // HOP_SAMPLES for s in (step, step + length))
            frames = np.arange(first, min(end, n_frames))
            if frames.size == 0:
                break
            t = (frames - first) * (HOP_SAMPLES / RATE_HZ)
            previous, degree = degree, int(np.clip(degree + rng.integers(-2, 3), low, low + 9))
            glide = (score.midi(previous) - score.midi(degree)) * np.exp(-t / 0.04)
            vibrato = vibrato_semitones * np.sin(2 * np.pi * vibrato_hz * t) * np.clip((t - 0.12) / 0.25, 0, 1)
            midi[frames] = score.midi(degree) + glide + vibrato + rng.normal(0, 0.05)
            vowel, before = int(rng.integers(len(VOWELS))), vowel
            moved = np.clip(t / rng.uniform(0.06, 0.3), 0, 1)[:, None]
            formants[frames] = VOWELS[before] * (1 - moved) + VOWELS[vowel] * moved
            consonant_s = rng.choice((0.0, 0.05, 0.09))
            left_s = (end - first) * HOP_SAMPLES / RATE_HZ - t
            voiced[frames] = (
                np.clip((t - consonant_s) / 0.03, 0, 1) * np.clip(left_s / 0.06, 0, 1) * rng.uniform(0.7, 1)
            )
            breathy[frames] = (t < consonant_s) * rng.uniform(0.3, 0.9)
            hiss_hz[frames] = rng.uniform(2_500, 8_000)
            step += length
        step += int(rng.choice((2, 4, 8, 12)))

    at = np.arange(score.n_samples, dtype=np.float32) / HOP_SAMPLES
    hz = np.interp(at, np.arange(n_frames), hertz(midi)).astype(np.float32)
    noise = rng.standard_normal(score.n_samples, dtype=np.float32)
    sung = filtered(oscillate(VOCAL_FOLDS, hz) + 0.02 * noise, resonances(formants / tract) * voiced[:, None])
    hissed = filtered(0.05 * noise, hump(hiss_hz, bandwidth_hz=3_000) * breathy[:, None])
    return room((sung + hissed)[:, None] * pan_gains(rng.uniform(-0.15, 0.15)), rng, wet=0.3)
