"""The licence of a data set: MUSDB18's is known by its songs' names, that of own songs is what `--data-licence` says."""

from collections.abc import Iterable

from serving.model.licences import UNKNOWN
from training.data.data_set import VALIDATION_NAMES

MUSDB18 = "MUSDB18: non-commercial, for research"


def data_licence(names: Iterable[str], stated: str | None) -> str:
    """The licence of songs with these names. A set with a song of MUSDB18 has MUSDB18's, whatever is stated."""
    if VALIDATION_NAMES.intersection(names):
        return MUSDB18
    return stated or UNKNOWN
