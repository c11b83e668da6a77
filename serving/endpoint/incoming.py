"""The song of a request: sent in its body or in the one field of a form, or named in a body of JSON."""

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
    """The most that one request may ask for: bytes of a body, also once gzip has unpacked it, audio, addresses within reach,
    and seconds of silence while a named song is fetched."""

    max_body_bytes: int = 200 * 10**6
    song: Limits = NO_LIMITS
    reach: Reach = field(default_factory=Reach)
    patience_s: float = FETCH_S

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Raises ServerError for settings that cannot be used."""
        reach = Reach.of(settings.allowed_uris, settings.max_reference_mb * 10**6)
        song = Limits(settings.max_duration_s, settings.max_million_samples * 10**6)
        patience_s = min(FETCH_S, settings.response_timeout_s / 2)
        return cls(settings.max_request_mb * 10**6, song, reach, patience_s)


class Incoming(Protocol):
    """A song on its way. `name` is its file's, "" where it is not known. Its stems go to the address `output`, into the
    answer without one."""

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> str | None: ...

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        """Write the song to a path. Yields a space for every few seconds of it where the answer may begin with spaces."""
        ...


@dataclass(frozen=True)
class Sent:
    """A song whose bytes came with the request, `limit_bytes` at most once it is unpacked."""

    audio: bytes | bytearray
    name: str
    limit_bytes: int
    output: None = None

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        yield from ()
        path.write_bytes(self.audio)
        if isinstance(self.audio, bytearray):
            self.audio.clear()  # TorchServe would hold it for as long as the song is worked on
        unpack_gzip(path, self.limit_bytes)
        return SongFile.of(path, self.name or path.name)


@dataclass(frozen=True)
class Named:
    """A song that lies within reach, and is fetched for `patience_s` at most."""

    place: Address
    reach: Reach
    output: str | None
    patience_s: float

    @property
    def name(self) -> str:
        return self.place.name

    def arrive(self, path: Path) -> Generator[bytes, None, SongFile]:
        """Write the song to a path. Raises RequestError where it takes longer than allowed."""
        fetching = awaited(lambda patience: self.reach.fetch(self.place, path, patience), self.patience_s)
        # A zip cannot begin with spaces.
        etag = (yield from fetching) if self.output else run_to_end(fetching)
        unpack_gzip(path, self.reach.limit_bytes)
        return SongFile.of(path, self.name, etag)


def incoming(headers: Mapping[str, str], fields: Mapping[str, Any], bounds: Bounds) -> Incoming:
    """Find the song of a request. Raises RequestError or UnsupportedAudio where there is none, Forbidden out of reach."""
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
    """Take the bytes sent as the body or as the one field of a form."""
    if len(fields) > 1:
        raise RequestError(f"the form has {len(fields)} fields: send one, with the audio")
    body = next(iter(fields.values()), b"")
    # Text and JSON come decoded where TorchServe is told to do that, as it is elsewhere than here.
    if not isinstance(body, bytes | bytearray):
        raise UnsupportedAudio("the body is text and no audio: send the file itself, with an audio Content-Type")
    return body


def run_to_end(fetching: Generator[bytes, None, str | None]) -> str | None:
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(fetching)
        except StopIteration as end:
            value: str | None = end.value
            return value


def unpack_gzip(path: Path, limit_bytes: int) -> None:
    """Unpack a file that gzip has packed, in its place. Raises AudioTooLong beyond the limit, UnsupportedAudio if damaged."""
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
