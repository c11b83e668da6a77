"""The errors in MUSDB18 that its authors list, and the remedy for each.

Source: the errata on the page of the data set, sigsep.github.io. Training avoids the wrong stretches, in the wrong stems
alone. Test songs stay as they are, as in every published score.
"""

from collections.abc import Iterable
from dataclasses import dataclass

WHOLE_S = 1e6  # longer than any song


@dataclass(frozen=True)
class Fault:
    """A stretch of a stem that holds sounds of another one."""

    stem: str
    start_s: float = 0.0
    stop_s: float = WHOLE_S


@dataclass(frozen=True)
class Erratum:
    """An error in a song. Excerpts to train on avoid its `faults`."""

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
    """The stretches to avoid in a song of this name."""
    return ERRATA[song].faults if song in ERRATA else ()


def reports(songs: Iterable[str]) -> list[str]:
    """A sentence on each song with an erratum, sorted."""
    return [f"{name}: {ERRATA[name].problem}; {ERRATA[name].remedy}" for name in sorted(set(songs) & set(ERRATA))]
