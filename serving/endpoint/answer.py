"""One request and its answer, from the first look at it to the last byte; no HTTP server.

What is wrong with a request is found before the first byte of the answer and becomes JSON with the status of its error. What
goes wrong later can only cut the connection: a chunked answer without its end, a zip without its directory.
"""

import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch

from serving.endpoint.by_reference import Place, Reach, Reference, stored
from serving.errors import AudioTooLong, RequestError, ServerError, StemwrightError, UnsupportedAudio
from serving.model.separator import Separator
from serving.model.spec import ChunkSpec
from serving.songs.request import Request, plain_name
from serving.songs.timing import Work

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
CALLER_GONE = 499  # nginx's number for it; never sent
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Answer:
    """Pieces to send, one by one; `status` and `headers` are final when the first is there.

    `request_id` is the caller's X-Request-Id where that is a plain word, else `own_id`. `limit_s` bounds the time of it all,
    looked at between pieces.
    """

    def __init__(self, own_id: str, headers: Mapping[str, str], limit_s: float) -> None:
        named = headers.get("x-request-id", "")
        self.own_id = own_id
        self.request_id = named if SANE_ID.fullmatch(named) else own_id
        self.status = HTTPStatus.OK
        # X-Request-Id itself is TorchServe's, which puts an id of its own there.
        self.headers = {"X-Correlation-Id": self.request_id}
        self.content_type = "application/json"
        self.work = Work()
        self.begun = False
        self.sent_bytes = 0
        self._request_headers = headers
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._pieces: Iterator[bytes] = iter(())

    def separate(
        self,
        separator: Separator,
        fields: Mapping[str, Any],
        max_duration_s: float,
        reach: Reach | None = None,
        max_samples: int | None = None,
    ) -> None:
        """Answer with the stems of the song that was sent as the body or as the one field of a form; of a song within
        `reach` that was named in a body of JSON."""
        body_type = self._request_headers.get("content-type", "").split(";")[0].strip().lower()
        if body_type == "application/json":
            self._pieces = self._stems_by_reference(separator, fields, max_duration_s, max_samples, reach or Reach())
        else:
            self._pieces = self._stems(separator, fields, max_duration_s, max_samples)

    def refuse(self, error: StemwrightError) -> None:
        """Answer with an error, before anything else was sent."""
        self.status = HTTPStatus(error.status)
        self.content_type = "application/json"
        self.headers.pop("Content-Disposition", None)
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers["Retry-After"] = str(RETRY_AFTER_S)
        told = json.dumps({"error": type(error).__name__, "message": str(error), "request_id": self.request_id})
        if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.headers["X-Error"] = told  # TorchServe answers so, too; a proxy that replaces its words keeps these
        self._pieces = iter([told.encode()])

    def next_piece(self) -> bytes:
        """The next bytes, b"" at the end. Raises what goes wrong once something was sent."""
        try:
            self._check_time()
            piece = next(self._pieces, b"")
            self._check_time()
        except Exception as error:
            if self.begun:
                raise
            self.refuse(for_the_caller(error, self.request_id))
            piece = next(self._pieces)
        self.begun = True
        self.sent_bytes += len(piece)
        return piece

    def close(self) -> None:
        """Let go of the song and of everything made of it."""
        if isinstance(self._pieces, Generator):
            self._pieces.close()
        self._pieces = iter(())

    def record(self, status: int) -> str:
        """One line of JSON on what was done, without anything of the song or its name."""
        audio = self.work.audio
        facts: dict[str, Any] = {
            "request_id": self.request_id,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "status": status,
            "seconds": round(time.monotonic() - self._started, 3),
            "sent_bytes": self.sent_bytes,
        }
        if audio is not None:
            facts |= {
                "audio_s": round(audio.samples / audio.rate_hz, 3),
                "rate_hz": audio.rate_hz,
                "channels": audio.channels,
                "format": audio.format,
            }
            facts |= {f"{part}_s": round(seconds, 3) for part, seconds in self.work.seconds.items()}
        return json.dumps(facts)

    def _stems(
        self, separator: Separator, fields: Mapping[str, Any], max_duration_s: float, max_samples: int | None
    ) -> Iterator[bytes]:
        request = Request.from_headers(self._request_headers, separator.spec)
        self._announce(request)
        with on_disk(audio_of(fields)) as song:
            yield from request.answer(separator, song, max_duration_s, self.work, max_samples)

    def _stems_by_reference(
        self,
        separator: Separator,
        fields: Mapping[str, Any],
        max_duration_s: float,
        max_samples: int | None,
        reach: Reach,
    ) -> Iterator[bytes]:
        request = Request.from_headers(self._request_headers, separator.spec)
        named = Reference.from_json(audio_of(fields))
        request = replace(request, song_name=request.song_name or plain_name(Place.of(named.uri).name))
        if named.output is not None:
            reach.check_output(named.output)
            request = replace(request, zipped=True)
        else:
            self._announce(request)
        with reach.song(named.uri) as path:
            pieces = request.answer(separator, path, max_duration_s, self.work, max_samples)
            if named.output is not None:
                pieces = stored(pieces, request.audio_format, reach, named.output)
            yield from pieces

    def _announce(self, request: Request) -> None:
        self.content_type = request.content_type
        self.headers["Content-Disposition"] = request.content_disposition

    def _check_time(self) -> None:
        if time.monotonic() - self._started > self._limit_s:
            raise AudioTooLong(f"the song takes more than {self._limit_s:g} s of work here: send it in parts")


def audio_of(fields: Mapping[str, Any]) -> bytes | bytearray:
    """The bytes sent as the body or as the one field of a form."""
    if len(fields) > 1:
        raise RequestError(f"the form has {len(fields)} fields: send one, with the audio")
    audio = next(iter(fields.values()), b"")
    # Text and JSON come decoded where TorchServe is told to do that, as it is elsewhere than here.
    if not isinstance(audio, bytes | bytearray):
        raise UnsupportedAudio("the body is text and no audio: send the file itself, with an audio Content-Type")
    return audio


@contextmanager
def on_disk(audio: bytes | bytearray) -> Iterator[Path]:
    """The bytes as a file. A bytearray is emptied: TorchServe would hold it for as long as the song is worked on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "the audio")  # what messages call it
        path.write_bytes(audio)
        if isinstance(audio, bytearray):
            audio.clear()
        yield path


def for_the_caller(error: Exception, request_id: str) -> StemwrightError:
    """What to say of an error. A bug is logged, and no more is said than that it is one."""
    if isinstance(error, StemwrightError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        logger.error("request %s: out of memory: %s", request_id, error)
        return ServerError("the server has too little memory left for this song: try again later, or send it in parts")
    logger.error("request %s failed", request_id, exc_info=error)
    return StemwrightError("the server made a mistake: its log says which")


def window_count(audio_s: float, chunk: ChunkSpec) -> int:
    """How many windows a song is cut into."""
    return max(1, math.ceil((audio_s - chunk.overlap_s) / (chunk.length_s - chunk.overlap_s)))
