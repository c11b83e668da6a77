"""The answer to one request, piece by piece, without an HTTP server.

An error before the first piece becomes JSON with the error's status. A later one can only cut the connection: the chunked
answer then lacks its end, a zip its directory.
"""

import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch

from serving.audio.delivery import FACT_SHEET
from serving.endpoint.by_reference import stored
from serving.endpoint.incoming import Bounds, incoming
from serving.errors import AudioTooLong, ServerError, StemwrightError
from serving.model.separator import Separator
from serving.model.spec import ChunkSpec
from serving.songs.request import Request, plain_name
from serving.songs.timing import Work

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
CALLER_GONE = 499  # nginx's number for it; never sent
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Answer:
    """An answer in pieces. `status` and `headers` are final with the first piece.

    `request_id` is the caller's X-Request-Id if that is a plain word, else `own_id`. `limit_s` bounds the time of the whole
    answer and is checked between pieces.
    """

    def __init__(self, own_id: str, headers: Mapping[str, str], limit_s: float) -> None:
        named = headers.get("x-request-id", "")
        self.own_id = own_id
        self.request_id = named if SANE_ID.fullmatch(named) else own_id
        self.status = HTTPStatus.OK
        # TorchServe puts an id of its own into X-Request-Id.
        self.headers = {"X-Correlation-Id": self.request_id}
        self.content_type = "application/json"
        self.work = Work()
        self.begun = False
        self.sent_bytes = 0
        self._request_headers = headers
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._pieces: Iterator[bytes] = iter(())

    def separate(self, separator: Separator, fields: Mapping[str, Any], bounds: Bounds) -> None:
        """Answer with the stems of the song that the request sends or names."""
        self._pieces = self._stems(separator, fields, bounds)

    def refuse(self, error: StemwrightError) -> None:
        """Answer with an error before anything else was sent."""
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
        """Return the next bytes, b"" at the end. Raises errors after the first piece; earlier ones become the answer."""
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
        """Remove the song and everything made of it."""
        if isinstance(self._pieces, Generator):
            self._pieces.close()
        self._pieces = iter(())

    def record(self, status: int) -> str:
        """Describe the work in one line of JSON, without the song or its name."""
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

    def _stems(self, separator: Separator, fields: Mapping[str, Any], bounds: Bounds) -> Iterator[bytes]:
        request = Request.from_headers(self._request_headers, separator.spec)
        song = incoming(self._request_headers, fields, bounds)
        name = request.song_name or plain_name(song.name)
        request = replace(request, song_name=name, zipped=request.zipped or song.output is not None)
        if song.output is None:
            self._announce(request)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "the audio")  # the song's name in messages
            file = yield from song.arrive(path)
            if song.output is None:
                yield from request.answer(separator, path, bounds.song, self.work, file)
                return
            stems = Path(folder, "stems")
            steps = request.writing(separator, path, stems, limits=bounds.song, work=self.work, song=file)
            files = [*request.paths(stems).values(), stems / FACT_SHEET]
            yield from stored(steps, files, bounds.reach, song.output)

    def _announce(self, request: Request) -> None:
        self.content_type = request.content_type
        self.headers["Content-Disposition"] = request.content_disposition

    def _check_time(self) -> None:
        if time.monotonic() - self._started > self._limit_s:
            raise AudioTooLong(f"the song takes more than {self._limit_s:g} s of work here: send it in parts")


def for_the_caller(error: Exception, request_id: str) -> StemwrightError:
    """Turn any error into one for the caller. A bug is logged; the caller only learns that there is one."""
    if isinstance(error, StemwrightError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        logger.error("request %s: out of memory: %s", request_id, error)
        return ServerError("the server has too little memory left for this song: try again later, or send it in parts")
    logger.error("request %s failed", request_id, exc_info=error)
    return StemwrightError("the server made a mistake: its log says which")


def window_count(audio_s: float, chunk: ChunkSpec) -> int:
    """The number of windows that a song is cut into."""
    return max(1, math.ceil((audio_s - chunk.overlap_s) / (chunk.length_s - chunk.overlap_s)))
