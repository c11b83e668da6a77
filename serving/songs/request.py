"""A request for the stems of a song: which stems, in which form, at which quality.

The handler reads it from headers, the command line from flags.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import numpy as np

from serving.audio import Audio
from serving.audio.audio_io import AudioFile, FileOrBytes, open_audio
from serving.audio.delivery import Describe, folder_of_files, one_file, zip_file
from serving.audio.encoding import AUDIO_TYPES, AudioFormat, Encoding, Written
from serving.errors import AudioTooLong, RequestError
from serving.model.spec import ModelSpec, Quality
from serving.songs.fact_sheet import VERSION, FactSheet, ModelFacts, SongFacts, SongFile
from serving.songs.timing import Work
from serving.storage.progress import Progress, no_progress

if TYPE_CHECKING:
    from serving.model.separator import Separator  # imports torch, which is slow and which a client does not need

MAX_NAME_LENGTH = 150
FORMATS: Mapping[str, AudioFormat] = {
    **AUDIO_TYPES,
    **dict.fromkeys(("audio/x-wav", "audio/wave", "audio/vnd.wave", "audio/x-pn-wav"), "wav"),
    **{"audio/x-flac": "flac", "audio/mp3": "mp3", "audio/vorbis": "ogg", "application/ogg": "ogg", "audio/*": "wav"},
}
"""Formats by the names that clients use in `Accept`."""
ANYTHING = ("application/zip", "application/*", "*/*")


@dataclass(frozen=True)
class Limits:
    """The longest song to separate: in seconds, in samples of all channels together, and in bytes of temporary files. None
    means no limit."""

    duration_s: float | None = None
    samples: int | None = None
    temporary_bytes: int | None = None

    def check_temporary(self, song_bytes: int, stems: int, encoding: Encoding) -> None:
        """Raises AudioTooLong where a song and so many stems that wait for their turn need more temporary files."""
        lossy_bytes = encoding.channels  # MP3 and Ogg take at most a byte for a sample
        needed = song_bytes + stems * encoding.samples * (encoding.sample_bytes if encoding.bit_depth else lossy_bytes)
        if self.temporary_bytes is not None and needed > self.temporary_bytes:
            raise AudioTooLong(
                f"the song and its stems take {needed / 1e6:,.0f} MB of temporary files, and "
                f"{self.temporary_bytes / 1e6:,.0f} MB are allowed: ask for one stem, for mp3, or send it in parts"
            )


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Request:
    """Stems by name, as files of one format. Several stems come in a zip.

    `bit_depth` is 16, 24 or float, None for the song's own. `song_name` is the song's file name without suffix, "" if
    unknown. Raises RequestError for several stems in one audio file.
    """

    stems: tuple[str, ...]
    audio_format: AudioFormat
    zipped: bool
    bit_depth: str | None = None
    song_name: str = ""
    quality: Quality = "fast"

    def __post_init__(self) -> None:
        if len(self.stems) > 1 and not self.zipped:
            stems = ", ".join(self.stems)
            raise RequestError(f"one {self.audio_format} file holds one stem, not {stems}: ask for a zip")

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], model: ModelSpec) -> Self:
        """Read a request from headers with lower-case names.

        `x-stems` lists stems, by default all of the model's. `x-quality` is fast or best. `accept` lists audio types,
        application/zip or both, ranked by q; the default is a zip of WAV. `x-bit-depth` applies to WAV and FLAC.
        `content-disposition` may name the song's file. Raises RequestError for a value that is not offered.
        """
        stems = stems_named(headers.get("x-stems", ""), model)
        audio_format, zipped = form_accepted(headers.get("accept", "*/*"))
        name = plain_name(file_name(headers.get("content-disposition", "")))
        quality = quality_named(headers.get("x-quality", "fast"))
        bit_depth = headers.get("x-bit-depth", "").strip().lower() or None
        return cls(stems, audio_format, zipped or len(stems) > 1, bit_depth, name, quality)

    @property
    def content_type(self) -> str:
        types = {audio_format: name for name, audio_format in AUDIO_TYPES.items()}
        return "application/zip" if self.zipped else types[self.audio_format]

    @property
    def file_name(self) -> str:
        if self.zipped:
            return f"{self.song_name or 'stems'}.zip"
        stem = f"{self.song_name} ({self.stems[0]})" if self.song_name else self.stems[0]
        return f"{stem}.{self.audio_format}"

    @property
    def content_disposition(self) -> str:
        """The header that names the answer's file: in ASCII and, if that loses letters, also in UTF-8 (RFC 6266)."""
        plain = self.file_name.encode("ascii", "replace").decode().replace("?", "_")
        extended = f"; filename*=UTF-8''{quote(self.file_name, safe='')}" if plain != self.file_name else ""
        return f'attachment; filename="{plain}"{extended}'

    def answer(
        self,
        separator: "Separator",
        source: FileOrBytes,
        limits: Limits = NO_LIMITS,
        work: Work | None = None,
        song: SongFile | None = None,
    ) -> Iterator[bytes]:
        """Yield the requested file piece by piece: a zip with a fact sheet, or a single stem. `work` is filled in.

        `song` describes the song's file in the fact sheet. Raises as `open_audio` does, before the first piece.
        """
        work = work or Work()
        opened = self.separated(separator, source, limits, work=work, file=song, waiting=len(self.stems) - 1)
        with opened as (stems, encoding, describe):
            written = zip_file(stems, self.stems, encoding, describe) if self.zipped else one_file(stems, encoding)
            yield from work.over("encode", written)

    def files(
        self,
        separator: "Separator",
        source: FileOrBytes,
        folder: Path,
        *,
        song: SongFile | None = None,
        on_progress: Progress = no_progress,
    ) -> dict[str, Path]:
        """Write the stems and their fact sheet, stems.json, into a folder; returns the path of each stem.

        After an error nothing new is left. Raises as `open_audio` does, and OSError.
        """
        work = Work()
        for done in self.writing(separator, source, folder, work=work, song=song):
            on_progress("separate", done, work.audio.samples if work.audio else 0)
        return self.paths(folder)

    def writing(
        self,
        separator: "Separator",
        source: FileOrBytes,
        folder: Path,
        *,
        limits: Limits = NO_LIMITS,
        work: Work | None = None,
        song: SongFile | None = None,
    ) -> Iterator[int]:
        """Do as `files` does, step by step; yields the number of samples written so far."""
        work = work or Work()
        opened = self.separated(separator, source, limits, work=work, file=song, waiting=len(self.stems))
        with opened as (stems, encoding, describe):
            yield from work.over("encode", folder_of_files(stems, self.stems, encoding, folder, describe))

    def paths(self, folder: Path) -> dict[str, Path]:
        """The paths of the stems in a folder."""
        return {stem: folder / f"{stem}.{self.audio_format}" for stem in self.stems}

    @contextmanager
    def separated(
        self,
        separator: "Separator",
        source: FileOrBytes,
        limits: Limits,
        *,
        work: Work,
        file: SongFile | None,
        waiting: int,
    ) -> Iterator[tuple[Iterator[Audio], Encoding, Describe]]:
        """Open a song; gives its stems in blocks (s, c, n), the encoding of their files, and the function that makes the
        fact sheet. `waiting` stems will wait in temporary files."""
        with ExitStack() as stack:
            with work.part("decode"):
                song = stack.enter_context(open_audio(source, limits.duration_s, limits.samples))
            work.audio = song.info
            encoding = Encoding.like(song.info, self.audio_format, self.bit_depth)

            described = file or SongFile.of(source)
            limits.check_temporary(described.size_bytes, waiting, encoding)

            def describe(written: Mapping[str, Written]) -> bytes:
                hashed = described.with_sha256(source)
                sheet = self.fact_sheet(separator, song, file=hashed, encoding=encoding, written=written, work=work)
                return sheet.to_json()

            yield self.stems_of(separator, song, work), encoding, describe

    def stems_of(self, separator: "Separator", song: AudioFile, work: Work) -> Iterator[Audio]:
        """Yield the requested stems (s, c, n), block by block."""
        parts = [separator.spec.rows_of(stem) for stem in self.stems]
        blocks = work.over("decode", song.blocks())
        for block in work.over("separate", separator.stream(blocks, song.info.rate_hz, self.quality)):
            yield np.stack([block[rows].sum(axis=0) for rows in parts])

    def fact_sheet(
        self,
        separator: "Separator",
        song: AudioFile,
        *,
        file: SongFile,
        encoding: Encoding,
        written: Mapping[str, Written],
        work: Work,
    ) -> FactSheet:
        return FactSheet(
            version=VERSION,
            song=SongFacts.of_audio(file, song.info),
            model=ModelFacts(separator.spec.architecture, separator.weights_sha256),
            stems=self.stems,
            quality=self.quality,
            format=self.audio_format,
            bit_depth=encoding.bit_depth,
            files=written,
            work_s={part: round(seconds, 3) for part, seconds in work.seconds.items()},
        )


def stems_named(names: str, model: ModelSpec) -> tuple[str, ...]:
    """Parse a comma-separated list of stems; empty means the model's own. Raises RequestError for an unknown stem."""
    stems = split_names(names)
    unknown = [stem for stem in stems if stem not in model.offered]
    if unknown:
        raise RequestError(f"this model has no stem {', '.join(unknown)}: it gives {', '.join(model.offered)}")
    return stems or model.stems


def split_names(names: str) -> tuple[str, ...]:
    """Split a comma-separated list into lower-case names without repeats."""
    return tuple(dict.fromkeys(stem for name in names.split(",") if (stem := name.strip().lower())))


def form_accepted(accept: str) -> tuple[AudioFormat, bool]:
    """Choose format and zip or not by an Accept header (RFC 9110, 12.5.1): the highest q, the first of equals.

    Named audio types go before `audio/*`. Raises RequestError if nothing fits.
    """
    liked = [(name, q) for name, q in map(media_type, accept.split(",")) if q > 0]
    audio = [(q, name != "audio/*", FORMATS[name]) for name, q in liked if name in FORMATS]
    zips = [q for name, q in liked if name in ANYTHING]
    if not audio and not zips:
        raise RequestError(f"Accept cannot be {accept}: ask for application/zip, {' or '.join(AUDIO_TYPES)}")
    audio_format: AudioFormat = max(audio, key=lambda wish: wish[:2])[2] if audio else "wav"
    return audio_format, not audio or any(name == "application/zip" for name, _ in liked)


def media_type(part: str) -> tuple[str, float]:
    """Parse one part of an Accept header: its type and its q, 1 if there is no readable q."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weights = [match[1] for piece in parameters if (match := re.fullmatch(r"q\s*=\s*([01](?:\.\d{0,3})?)", piece))]
    return name, float(weights[0]) if weights else 1.0


def quality_named(name: str) -> Quality:
    match name.strip().lower():
        case "fast" | "":
            return "fast"
        case "best":
            return "best"
    raise RequestError(f"X-Quality cannot be {name}: ask for fast or best")


def file_name(content_disposition: str) -> str:
    """The file name in the header, "" if there is none.

    Raw UTF-8 is understood: HTTP libraries pass its bytes on as Latin-1.
    """
    header = Message()
    header["Content-Disposition"] = raw_utf8(content_disposition)
    return header.get_filename("")


def raw_utf8(value: str) -> str:
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def plain_name(file_name: str) -> str:
    """Strip a file name of folders, suffix and characters that do not belong in file names."""
    name = PurePosixPath(file_name.replace("\\", "/")).stem
    printable = "".join(letter for letter in name if letter.isprintable() and letter not in '"<>:|?*%')
    return printable.strip(". ")[:MAX_NAME_LENGTH]
