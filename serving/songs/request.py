"""What can be asked of a separator, and its answer: which stems of a song, in which form. The handler reads it from headers,
the command line from flags; the same request gets the same bytes."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import Message
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import quote

import numpy as np

from serving.audio import Audio
from serving.audio.audio_io import Song, Source, open_audio
from serving.audio.delivery import stream_stems
from serving.audio.encoding import AUDIO_TYPES, AudioFormat, Encoding
from serving.errors import RequestError
from serving.model.separator import Separator
from serving.model.spec import ModelSpec, Quality
from serving.songs.timing import Work

MAX_NAME_LENGTH = 150


@dataclass(frozen=True)
class Request:
    """Stems by name, in files of one format; more than one stem always in a zip.

    `bit_depth` is 16, 24 or float, the song's own without it. `song_name` is the song's file name without its suffix, "" where
    it is not known.
    """

    stems: tuple[str, ...]
    audio_format: AudioFormat
    zipped: bool
    bit_depth: str | None = None
    song_name: str = ""
    quality: Quality = "fast"

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], model: ModelSpec) -> Self:
        """The request of headers with names in small letters, to a model.

        `x-stems` names stems, all of the model's without it; `x-quality` is fast or best. `accept` names an audio type,
        application/zip or both; without a wish it is a zip of WAV. `x-bit-depth` is a wish for WAV and FLAC,
        `content-disposition` may name the song's file. Raises RequestError for what there is not.
        """
        stems = stems_named(headers.get("x-stems", ""), model)
        accepted = headers.get("accept", "*/*")
        types = [part.split(";")[0].strip().lower() for part in accepted.split(",")]
        formats = [AUDIO_TYPES[name] for name in types if name in AUDIO_TYPES]
        if not formats and not {"application/zip", "application/*", "*/*"} & set(types):
            raise RequestError(f"Accept cannot be {accepted}: ask for application/zip, {' or '.join(AUDIO_TYPES)}")
        zipped = "application/zip" in types or not formats or len(stems) > 1
        name = song_name(headers.get("content-disposition", ""))
        quality = quality_named(headers.get("x-quality", "fast"))
        return cls(stems, (formats or ["wav"])[0], zipped, headers.get("x-bit-depth"), name, quality)

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
        """The header that names the answer's file, in ASCII and, where that loses something, in UTF-8 too (RFC 6266)."""
        plain = self.file_name.encode("ascii", "replace").decode().replace("?", "_")
        extended = f"; filename*=UTF-8''{quote(self.file_name, safe='')}" if plain != self.file_name else ""
        return f'attachment; filename="{plain}"{extended}'

    def answer(
        self,
        separator: Separator,
        source: Source,
        max_duration_s: float | None = None,
        work: Work | None = None,
        max_samples: int | None = None,
    ) -> Iterator[bytes]:
        """The bytes of the file asked for, piece by piece, accounted for in `work`.

        Raises as `open_audio` does, before the first piece.
        """
        work = work or Work()
        with ExitStack() as stack:
            with work.part("decode"):
                song = stack.enter_context(open_audio(source, max_duration_s, max_samples))
            work.audio = song.info
            encoding = Encoding.like(song.info, self.audio_format, self.bit_depth)
            stems = self.separate(separator, song, work)
            yield from work.over("encode", stream_stems(stems, self.stems, encoding, self.zipped))

    def separate(self, separator: Separator, song: Song, work: Work) -> Iterator[Audio]:
        """The stems asked for (s, c, n), block by block."""
        parts = [separator.spec.rows_of(stem) for stem in self.stems]
        blocks = work.over("decode", song.blocks())
        for block in work.over("separate", separator.stream(blocks, song.info.rate_hz, self.quality)):
            yield np.stack([block[rows].sum(axis=0) for rows in parts])


def stems_named(names: str, model: ModelSpec) -> tuple[str, ...]:
    """The stems in a list with commas, the model's own where it is empty. Raises RequestError for one that is not offered."""
    stems = tuple(dict.fromkeys(stem for name in names.split(",") if (stem := name.strip().lower())))
    unknown = [stem for stem in stems if stem not in model.offered]
    if unknown:
        raise RequestError(f"this model has no stem {', '.join(unknown)}: it gives {', '.join(model.offered)}")
    return stems or model.stems


def quality_named(name: str) -> Quality:
    match name.strip().lower():
        case "fast" | "":
            return "fast"
        case "best":
            return "best"
    raise RequestError(f"X-Quality cannot be {name}: ask for fast or best")


def song_name(content_disposition: str) -> str:
    """The plain name of the file in the header, "" where it has none."""
    header = Message()
    header["Content-Disposition"] = content_disposition
    return plain_name(header.get_filename(""))


def plain_name(file_name: str) -> str:
    """A file name without folders, suffix and what no file name should hold."""
    name = PurePosixPath(file_name.replace("\\", "/")).stem
    printable = "".join(letter for letter in name if letter.isprintable() and letter not in '"<>:|?*%')
    return printable.strip(". ")[:MAX_NAME_LENGTH]
