"""The list of a data set's objects in a bucket, `manifest.json`. It is written last, so a data set that has one is
complete."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from training.errors import DataError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """The facts of one object."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data set's objects by name below its prefix, and the song names of each split."""

    layout: str
    objects: Mapping[str, Entry]
    splits: Mapping[str, tuple[str, ...]]

    def to_json(self) -> str:
        return json.dumps({"format": MANIFEST_FORMAT, **dataclasses.asdict(self)}, indent=1, sort_keys=True) + "\n"

    def check(self, data: str, sizes: Mapping[str, int]) -> None:
        """Raises DataError unless `sizes`, in bytes by name, match the manifest."""
        for name in sorted({*sizes, *self.objects}):
            if name not in self.objects:
                raise DataError(
                    f"{data} holds {name}, which its {MANIFEST_NAME} does not list: push the data set again"
                )
            if name not in sizes:
                raise DataError(f"{data} lacks {name}, which its {MANIFEST_NAME} lists: push the data set again")
            if sizes[name] != self.objects[name].size_bytes:
                wanted = self.objects[name].size_bytes
                raise DataError(
                    f"{data}: {name} has {sizes[name]} bytes, and {MANIFEST_NAME} says {wanted}: push the data set again"
                )

    @classmethod
    def from_json(cls, text: str, url: str) -> Self:
        """Raises DataError if the text is no manifest of this format."""
        try:
            facts = json.loads(text)
            if facts["format"] != MANIFEST_FORMAT:
                raise DataError(f"{url} is of format {facts['format']}, not {MANIFEST_FORMAT}: push the data set again")
            objects = {name: Entry(entry["size_bytes"], entry["sha256"]) for name, entry in facts["objects"].items()}
            splits = {split: tuple(names) for split, names in facts["splits"].items()}
            return cls(facts["layout"], objects, splits)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{url} is no manifest ({error}): push the data set again") from error
