"""The errors in MUSDB18 that its authors list, and what is done about each.

Source: the errata on the data set's page at sigsep.github.io. Songs to train on lose only the stretches that are wrong,
and only in the stems that are; songs to test on stay as they are, as in every published score.
"""

from collections.abc import Iterable
from dataclasses import dataclass

WHOLE_S = 1e6  # longer than any song


@dataclass(frozen=True)
class Fault:
    """A stretch of a stem that holds what belongs into another one."""

    stem: str
    start_s: float = 0.0
    stop_s: float = WHOLE_S


@dataclass(frozen=True)
class Erratum:
    """What is wrong with a song. Crops for training avoid its `faults`."""

    problem: str
    remedy: str
    faults: tuple[Fault, ...] = ()


BLEED = Erratum("other instruments bleed into the vocals", "its vocals are not trained on", faults=(Fault("vocals"),))

ERRATA = {
    "Chris Durban - Celebrate": BLEED,
    "Hop Along - Sister Cities": BLEED,
    # The list has no ends but that of the vocals; ten seconds are a guess.
    "Leaf - Wicked": Erratum(
        "an electric guitar is in the drums at 2:20 and 3:02, and in the vocals from 3:02 to 3:08",
        "ten seconds of its drums from each on, and those of its vocals, are not trained on",
        faults=(Fault("drums", 140, 150), Fault("drums", 182, 192), Fault("vocals", 182, 188)),
    ),
    "Detsky Sad - Walkie Talkie": Erratum("the drums hold some of the other stem", "it is scored as it is"),
    "Enda Reilly - Cur An Long Ag Seol": Erratum("the other stem begins with speech", "it is scored as it is"),
    "PR - Oh No": Erratum(
        "the left channel of its mixture is not the sum of its stems", "their sum is used as the mixture"
    ),
}


def faults(song: str) -> tuple[Fault, ...]:
    """What to avoid in a song of this name."""
    return ERRATA[song].faults if song in ERRATA else ()


def reports(songs: Iterable[str]) -> list[str]:
    """A sentence on each of the songs that has an erratum, sorted."""
    return [f"{name}: {ERRATA[name].problem}; {ERRATA[name].remedy}" for name in sorted(set(songs) & set(ERRATA))]
