"""The song of a request: its body, the one field of a form, or an address in a JSON body."""

import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from serving.endpoint.by_reference import FETCH_S, Address, Reach, Reference, awaited
from serving.errors import AudioTooLong, RequestError, UnsupportedAudio
from serving.settings import Settings
from serving.songs.fact_sheet import SongFile
from serving.songs.request import NO_LIMITS, Limits, file_name

GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """Limits of one request: bytes of the body, also after gzip is unpacked; audio; addresses within reach; seconds for
    fetching a song."""

    max_body_bytes: int = 200 * 10**6
    song: Limits = NO_LIMITS
    reach: Reach = field(default_factory=Reach)
    patience_s: float = FETCH_S

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Make the limits from settings. Raises ServerError for settings that cannot be used."""
        reach = Reach.of(settings.allowed_uris, settings.max_reference_mb * 10**6)
        song = Limits(settings.max_duration_s, settings.max_million_samples * 10**6, settings.max_temporary_mb * 10**6)
        patience_s = min(FETCH_S, settings.response_timeout_s / 2)
        return cls(settings.max_request_mb * 10**6, song, reach, patience_s)


class Incoming(Protocol):
    """The song of a request. `name` is its file name, "" if unknown. `output` is the address for its stems, None if they
    are the answer."""

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> str | None: ...

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        """Write the song to a path. Meanwhile yields a space every few seconds if the answer may begin with spaces."""
        ...


@dataclass(frozen=True)
class Sent:
    """A song whose bytes came with the request, up to `limit_bytes` after unpacking."""

    audio: bytes | bytearray
    name: str
    limit_bytes: int
    output: None = None

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        yield from ()
        path.write_bytes(self.audio)
        if isinstance(self.audio, bytearray):
            self.audio.clear()  # else TorchServe keeps the body until the song is done
        unpack_gzip(path, self.limit_bytes)
        return SongFile.of(path, self.name or path.name)


@dataclass(frozen=True)
class Named:
    """A song at an address within reach, fetched within `patience_s`."""

    place: Address
    reach: Reach
    output: str | None
    patience_s: float

    @property
    def name(self) -> str:
        return self.place.name

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        """Write the song to a path. Raises RequestError if it takes longer than allowed."""
        fetching = awaited(lambda patience: self.reach.fetch(self.place, path, patience), self.patience_s)
        # A zip cannot begin with spaces.
        etag = (yield from fetching) if self.output else run_to_end(fetching)
        unpack_gzip(path, self.reach.limit_bytes)
        return SongFile.of(path, self.name, etag)


def incoming(headers: Mapping[str, str], fields: Mapping[str, Any], bounds: Bounds) -> Incoming:
    """Find the song of a request. Raises RequestError or UnsupportedAudio if there is none, Forbidden if it is out of
    reach."""
    body = body_of(fields)
    if headers.get("content-type", "").split(";")[0].strip().lower() == "application/json":
        named = Reference.from_json(body)
        place = bounds.reach.check(named.uri)
        if named.output is not None:
            bounds.reach.check_output(named.output)
        return Named(place, bounds.reach, named.output, bounds.patience_s)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip", ""):
        raise UnsupportedAudio(f"the body is packed by {coding}: send the file itself, or packed by gzip")
    return Sent(body, file_name(headers.get("content-disposition", "")), bounds.max_body_bytes)


def body_of(fields: Mapping[str, Any]) -> bytes | bytearray:
    """The bytes sent as the body or as the one field of a form."""
    if len(fields) > 1:
        raise RequestError(f"the form has {len(fields)} fields: send one, with the audio")
    body = next(iter(fields.values()), b"")
    # TorchServe can be configured to decode text and JSON.
    if not isinstance(body, bytes | bytearray):
        raise UnsupportedAudio("the body is text and no audio: send the file itself, with an audio Content-Type")
    return body


def run_to_end(fetching: Generator[bytes, None, str | None]) -> str | None:
    """Run a generator to its end; returns its value."""
    while True:
        try:
            next(fetching)
        except StopIteration as end:
            value: str | None = end.value
            return value


def unpack_gzip(path: Path, limit_bytes: int) -> None:
    """Unpack a gzipped file in place. Raises AudioTooLong beyond the limit, UnsupportedAudio if it is damaged."""
    with path.open("rb") as packed:
        if packed.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return
        packed.seek(0)
        unpacked, size_bytes = path.with_name("unpacked"), 0
        stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        with unpacked.open("wb") as file:
            data = b""
            while not stream.eof and (data := stream.unconsumed_tail or packed.read(BLOCK_BYTES)):
                try:
                    size_bytes += file.write(stream.decompress(data, BLOCK_BYTES))
                except zlib.error as error:
                    raise UnsupportedAudio("the gzip'd body is damaged: send the audio itself") from error
                if size_bytes > limit_bytes:
                    raise AudioTooLong(f"the gzip'd body unpacks to more than {limit_bytes:,} bytes: send FLAC or MP3")
        if not stream.eof:
            raise UnsupportedAudio("the gzip'd body breaks off: send the audio itself")
    unpacked.replace(path)
