"""What can be asked of a separator, and its answer: which stems of a song, in which form. The handler reads it from headers,
the command line from flags; the same request gets the same bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from serving.audio_io import Song, Source, open_audio
from serving.chunks import Audio
from serving.delivery import AudioFormat, Delivery, stream_stems
from serving.errors import RequestError
from serving.separator import Separator

AUDIO_TYPES: Mapping[str, AudioFormat] = {"audio/wav": "wav", "audio/flac": "flac"}


@dataclass(frozen=True)
class Request:
    """Stems by name, in files of one format; more than one stem always in a zip."""

    stems: tuple[str, ...]
    audio_format: AudioFormat
    zipped: bool

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], there: Sequence[str]) -> Self:
        """The request of headers with names in small letters, to a model with the stems that are `there`.

        `x-stems` names stems, all of them without it. `accept` names an audio type, application/zip or both; without a wish
        it is a zip of WAV. Raises RequestError for what there is not.
        """
        stems = stems_named(headers.get("x-stems", ""), there)
        accepted = headers.get("accept", "*/*")
        types = [part.split(";")[0].strip().lower() for part in accepted.split(",")]
        formats = [AUDIO_TYPES[name] for name in types if name in AUDIO_TYPES]
        if not formats and not {"application/zip", "application/*", "*/*"} & set(types):
            raise RequestError(f"Accept cannot be {accepted}: ask for application/zip, {' or '.join(AUDIO_TYPES)}")
        zipped = "application/zip" in types or not formats or len(stems) > 1
        return cls(stems, (formats or ["wav"])[0], zipped)

    @property
    def content_type(self) -> str:
        return "application/zip" if self.zipped else f"audio/{self.audio_format}"

    @property
    def file_name(self) -> str:
        return "stems.zip" if self.zipped else f"{self.stems[0]}.{self.audio_format}"

    def answer(self, separator: Separator, source: Source, max_duration_s: float | None = None) -> Iterator[bytes]:
        """The bytes of the file asked for, piece by piece. Raises as `open_audio` does, before the first piece."""
        with open_audio(source, max_duration_s) as song:
            delivery = Delivery.like(song.info, self.audio_format, self.zipped)
            yield from stream_stems(self.separate(separator, song), self.stems, delivery)

    def separate(self, separator: Separator, song: Song) -> Iterator[Audio]:
        """The stems asked for (s, c, n), block by block."""
        rows = [separator.spec.stems.index(stem) for stem in self.stems]
        for block in separator.stream(song.blocks(), song.info.rate_hz):
            yield block[rows]


def stems_named(names: str, there: Sequence[str]) -> tuple[str, ...]:
    """The stems in a list with commas, all where it is empty. Raises RequestError for a stem that is not there."""
    stems = tuple(dict.fromkeys(stem for name in names.split(",") if (stem := name.strip().lower())))
    unknown = [stem for stem in stems if stem not in there]
    if unknown:
        raise RequestError(f"this model has no stem {', '.join(unknown)}: it gives {', '.join(there)}")
    return stems or tuple(there)
