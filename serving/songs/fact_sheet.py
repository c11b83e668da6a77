"""The fact sheet of separated stems: `stems.json`, last member of a zip, a file beside stems, or a song's last object in a
bucket.

It states the song, the model, the form of the files, and how much full scale clipped. A song counts as done if its fact
sheet says so: see `FactSheet.answers`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from serving.audio.audio_io import AudioInfo, FileOrBytes, open_audio
from serving.audio.encoding import AudioFormat, Encoding, Written
from serving.errors import RequestError, SpecError
from serving.model.spec import read_dataclass

if TYPE_CHECKING:
    from serving.songs.request import Request

VERSION = 1
FULL_SCALE_16 = 1 - 2**-15
"""The largest sample that 16 bits hold."""


@dataclass(frozen=True)
class SongFile:
    """A song's file: name, size, and sha256 or a store's ETag; None if not known."""

    name: str
    size_bytes: int
    sha256: str | None = None
    etag: str | None = None

    @classmethod
    def of(cls, source: FileOrBytes, name: str = "", etag: str | None = None) -> Self:
        """Read the facts of a source but for its sha256. `name` defaults to the path's."""
        if isinstance(source, Path):
            return cls(printable(name or source.name), source.stat().st_size, etag=etag)
        return cls(printable(name), len(source), etag=etag)

    def with_sha256(self, source: FileOrBytes) -> Self:
        """Read all of the source. It is done last: nobody waits for the first byte of an answer until a song is hashed."""
        return replace(self, sha256=sha256_of(source))


@dataclass(frozen=True)
class SongFacts(SongFile):
    """A song's file and its audio. `format` and `subtype` are libsndfile's names; `note` says that nothing proves its end."""

    samples: int = 0
    rate_hz: int = 0
    channels: int = 0
    format: str = ""
    subtype: str = ""
    note: str | None = None

    @classmethod
    def of_audio(cls, file: SongFile, info: AudioInfo) -> Self:
        return cls(
            **vars(file),
            samples=info.samples,
            rate_hz=info.rate_hz,
            channels=info.channels,
            format=info.format,
            subtype=info.subtype,
            note=info.note,
        )

    def audio(self) -> AudioInfo:
        return AudioInfo(self.rate_hz, self.channels, self.samples, self.format, self.subtype)


@dataclass(frozen=True)
class ModelFacts:
    """A model: its architecture and the sha256 of its weights."""

    name: str
    weights_sha256: str


@dataclass(frozen=True)
class FactSheet:
    """The facts of one song's stems. `files` is keyed by stem; `work_s` holds the seconds of decode, separate and encode."""

    version: int
    song: SongFacts
    model: ModelFacts
    stems: tuple[str, ...]
    quality: str
    format: str
    bit_depth: str | None
    files: Mapping[str, Written]
    work_s: Mapping[str, float]

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what `to_json` wrote. Raises SpecError for anything else, including another version."""
        try:
            facts = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"the fact sheet is no JSON ({error}): separate the song again") from error
        sheet: Self = read_dataclass(cls, facts)
        if sheet.version != VERSION:
            raise SpecError(f"the fact sheet has version {sheet.version}, this package reads {VERSION}: update it")
        return sheet

    def answers(self, request: "Request", weights_sha256: str) -> bool:
        """True if this request to a model of these weights would give the same files."""
        try:
            wanted = Encoding.like(self.song.audio(), request.audio_format, request.bit_depth)
        except RequestError:
            return False
        same_form = (self.format, self.bit_depth) == (request.audio_format, wanted.bit_depth)
        same_work = (self.quality, self.model.weights_sha256) == (request.quality, weights_sha256)
        return same_form and same_work and set(request.stems) <= self.files.keys()

    def is_kept_in(self, folder: Path) -> bool:
        """True if every file is there and has its stated size."""
        paths = [(folder / file.name, file.size_bytes) for file in self.files.values()]
        return all(path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in paths)

    def is_of(self, song: Path, written_s: float) -> bool:
        """True if this sheet describes the song's file. The hash is compared only if the file changed after `written_s`."""
        if not song.is_file() or song.stat().st_size != self.song.size_bytes:
            return False
        return song.stat().st_mtime <= written_s or sha256_of(song) == self.song.sha256

    def clipping(self) -> str | None:
        """One sentence on the stems that full scale clipped, and the remedy; None if there are none."""
        clipped = {stem: file for stem, file in self.files.items() if file.clipped_samples}
        if not clipped:
            return None
        stems = ", ".join(f"{stem} ({file.clipped_samples:,}, peak {file.peak:.2f})" for stem, file in clipped.items())
        remedy = "--bit-depth float" if self.format == "wav" else "--format wav --bit-depth float"
        return f"samples beyond full scale were clipped in {stems}: ask for {remedy}"


def received(
    file: SongFile, model: ModelFacts, quality: str, audio_format: AudioFormat, paths: Mapping[str, Path]
) -> FactSheet:
    """Make the fact sheet of stems that came without one, as from an old archive.

    Samples at full scale count as clipped. The song's own format is unknown; what its stems preserve of it is used.
    """
    files = {}
    for stem, path in paths.items():
        peak, clipped = 0.0, 0
        with open_audio(path) as audio:
            for block in audio.blocks():
                peak = max(peak, float(np.abs(block).max()))
                clipped += int(np.count_nonzero(np.abs(block) >= FULL_SCALE_16))
        info = audio.info
        float_wav = info.subtype == "FLOAT"
        files[stem] = Written(path.name, path.stat().st_size, round(peak, 6), 0 if float_wav else clipped)
    form = Encoding.like(info, audio_format)
    song = SongFacts.of_audio(file, replace(info, format=""))
    return FactSheet(VERSION, song, model, tuple(paths), quality, audio_format, form.bit_depth, files, {})


def printable(name: str) -> str:
    """Escape what is not printable in a name: bytes that are not UTF-8, and control characters."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def sha256_of(source: FileOrBytes) -> str:
    if not isinstance(source, Path):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
