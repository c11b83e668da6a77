"""A Python client of the separation endpoint: it sends a song and receives all of its stems, or none."""

import io
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

import numpy as np
import soundfile
import urllib3

from serving.audio import Audio
from serving.audio.audio_io import read
from serving.audio.delivery import FACT_SHEET, arriving
from serving.audio.encoding import AUDIO_TYPES, AudioFormat
from serving.errors import (
    AudioError,
    AudioTooLong,
    Forbidden,
    RequestError,
    ServerError,
    StemwrightError,
    UnsupportedAudio,
)
from serving.model.spec import Quality
from serving.songs.fact_sheet import ModelFacts, SongFile, received
from serving.storage.progress import Progress, no_progress

CONNECT_TIMEOUT_S = 10
BACKOFF_S = 0.5
LONGEST_WAIT_S = 120
PIECE_BYTES = 1 << 20
ERRORS: dict[int, type[StemwrightError]] = {
    error.status: error for error in (RequestError, Forbidden, AudioError, UnsupportedAudio, AudioTooLong)
}


class TryAgain(Exception):
    """An error that may pass, with the seconds to wait if the server names them."""

    def __init__(self, error: ServerError, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after_s = error, after_s


@dataclass(frozen=True)
class Description:
    """A served model: its default stems, and the sha256 of its weights, "" if the server does not state it."""

    name: str
    stems: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True)
class Client:
    """One endpoint: `http://host:port`, `host:port`, or a full address that ends in /predictions/<model>.

    `api_key` is for a proxy that requires one. `timeout_s` bounds silence, not the time of a whole song. If the server is
    busy, unreachable, lost, or has lost its worker, a request is sent up to `attempts` times, after the seconds that the
    server names or after waits that double.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 300
    attempts: int = 5

    @property
    def endpoint(self) -> str:
        url = (self.url if "://" in self.url else f"http://{self.url}").rstrip("/")
        return url if "/predictions/" in urlsplit(url).path else f"{url}/predictions/stemwright"

    def describe(self) -> Description:
        """Ask the server about its model. Raises ServerError if no answer comes."""
        headers = {"describe": "true", "Content-Type": "application/octet-stream"}  # TorchServe's parameter
        if self.api_key is not None:
            headers["X-Api-Key"] = self.api_key
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "facts.json")
            self._fetch(b"", headers, answer, no_progress)
            facts = told_by(answer.read_bytes())
        if not facts.get("stems"):
            raise ServerError(f"{self.endpoint} does not say which stems it gives: check that it is Stemwright")
        name, weights_sha256 = facts.get("name", facts.get("architecture", "")), facts.get("weights_sha256", "")
        return Description(str(name), tuple(facts["stems"]), str(weights_sha256))

    def stems(self) -> tuple[str, ...]:
        """The stems that the model gives. Raises ServerError if no answer comes."""
        return self.describe().stems

    def separate(
        self,
        song: Path | bytes | Audio,
        rate_hz: int | None = None,
        *,
        stems: Sequence[str] | None = None,
        quality: Quality = "fast",
        on_progress: Progress = no_progress,
    ) -> dict[str, Audio]:
        """Separate a song: a file, a file's bytes, or audio (c, n) at `rate_hz`. Returns stems (c, n) by name.

        Samples are floats and not clipped. Raises as `save` does.
        """
        if isinstance(song, np.ndarray):
            if rate_hz is None:
                raise RequestError("the rate of the audio is not known: give rate_hz with an array")
            file = io.BytesIO()
            soundfile.write(file, song.T, rate_hz, format="WAV", subtype="FLOAT")
            song = file.getvalue()
        with tempfile.TemporaryDirectory() as folder:
            saved = self.save(
                song, Path(folder), stems=stems, bit_depth="float", quality=quality, on_progress=on_progress
            )
            return {stem: read(path)[0] for stem, path in saved.items()}

    def save(
        self,
        song: Path | bytes,
        out: Path,
        *,
        stems: Sequence[str] | None = None,
        audio_format: AudioFormat = "wav",
        bit_depth: str | None = None,
        quality: Quality = "fast",
        on_progress: Progress = no_progress,
    ) -> dict[str, Path]:
        """Separate a song; returns the file `out`/<stem>.<format> of each stem requested, by default of all. The fact sheet
        is `out`/stems.json.

        Raises RequestError, UnsupportedAudio, AudioTooLong or AudioError with the server's message if it refuses the song,
        ServerError if no complete answer comes, OSError if files cannot be written. After an error nothing new is left.
        """
        types = {audio_format: name for name, audio_format in AUDIO_TYPES.items()}
        # A zip even for one stem: its checksums reveal what a connection lost.
        headers = {"Accept": f"application/zip, {types[audio_format]}", "Content-Type": "application/octet-stream"}
        if stems is not None:
            headers["X-Stems"] = ",".join(stems)
        if bit_depth is not None:
            headers["X-Bit-Depth"] = bit_depth
        if quality != "fast":
            headers["X-Quality"] = quality
        if self.api_key is not None:
            headers["X-Api-Key"] = self.api_key
        if isinstance(song, Path):
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(printable_name(song.name), safe='')}"
        with arriving(out) as scratch:
            archive = scratch / ".stems.zip"
            self._fetch(song, headers, archive, on_progress)
            try:
                arrived = unpack_stems(archive, audio_format)
            except zipfile.BadZipFile as error:
                raise ServerError(f"{self.endpoint} sent a damaged zip ({error}): ask again") from error
            archive.unlink()
            if not arrived or (stems is not None and set(arrived) != set(stems)):
                raise ServerError(
                    f"{self.endpoint} sent the stems {', '.join(arrived) or '(none)'}: check that it is Stemwright"
                )
            if not (scratch / FACT_SHEET).is_file():
                model = self.describe()
                facts = ModelFacts(model.name, model.weights_sha256)
                sheet = received(SongFile.of(song).with_sha256(song), facts, quality, audio_format, arrived)
                (scratch / FACT_SHEET).write_bytes(sheet.to_json())
        return {stem: out / path.name for stem, path in arrived.items()}

    def _fetch(self, song: Path | bytes, headers: dict[str, str], target: Path, on_progress: Progress) -> None:
        """Post the song and write the answer's body to `target`, in up to `attempts` attempts."""
        for attempt in range(self.attempts):
            try:
                self._post(song, headers, target, on_progress)
                return
            except TryAgain as trouble:
                if attempt + 1 == self.attempts:
                    raise trouble.error from trouble
                wait_s = BACKOFF_S * 2**attempt if trouble.after_s is None else trouble.after_s
                time.sleep(min(wait_s, LONGEST_WAIT_S))

    def _post(self, song: Path | bytes, headers: dict[str, str], target: Path, on_progress: Progress) -> None:
        try:
            with ExitStack() as stack:
                file = stack.enter_context(opened(song))
                size_bytes = file.seek(0, io.SEEK_END)
                file.seek(0)
                pool = stack.enter_context(urllib3.PoolManager())
                response = pool.request(
                    "POST",
                    self.endpoint,
                    body=body_in_pieces(file, size_bytes, on_progress),
                    headers=headers | {"Content-Length": str(size_bytes)},
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=self.timeout_s),
                    preload_content=False,
                )
                stack.callback(response.close)
                if response.status != 200:
                    body = response.read()
                    error = error_of(self.endpoint, response.status, body, size_bytes)
                    if isinstance(error, ServerError) and may_pass(response.status, body):
                        raise TryAgain(error, retry_after_s(response))
                    raise error
                total_bytes, received_bytes = int(response.headers.get("Content-Length", "0")), 0
                with target.open("wb") as archive:
                    for data in response.stream(PIECE_BYTES):
                        received_bytes += archive.write(data)
                        on_progress("receive", received_bytes, total_bytes)
        except urllib3.exceptions.HTTPError as error:
            told = ServerError(f"{self.endpoint} gave no complete answer ({error}): check that it runs")
            lost = urllib3.exceptions.ProtocolError, urllib3.exceptions.NewConnectionError
            if isinstance(error, (*lost, urllib3.exceptions.ConnectTimeoutError)):
                raise TryAgain(told) from error
            raise told from error


def unpack_stems(archive: Path, audio_format: AudioFormat) -> dict[str, Path]:
    """Unpack a zip of stems, and the fact sheet beside it; returns the stems by name.

    Raises BadZipFile if a checksum is wrong or a member is no stem of this format.
    """
    with zipfile.ZipFile(archive) as members:
        names = [name for name in members.namelist() if name != FACT_SHEET]
        unknown = [name for name in names if not re.fullmatch(rf"[a-z][a-z0-9_-]*\.{audio_format}", name)]
        if unknown:
            raise zipfile.BadZipFile(f"it holds {unknown[0]}")
        members.extractall(archive.parent)
    return {name.rpartition(".")[0]: archive.with_name(name) for name in names}


def printable_name(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode(errors="replace")


def opened(song: Path | bytes) -> IO[bytes]:
    if not isinstance(song, Path):
        return io.BytesIO(song)
    if not song.is_file():
        raise AudioError(f"{song} is not a file: check the path")
    return song.open("rb")


def body_in_pieces(file: IO[bytes], size_bytes: int, on_progress: Progress) -> Iterator[bytes]:
    """Yield the body of a request and report how much of it has been taken."""
    while data := file.read(PIECE_BYTES):
        yield data
        on_progress("send", file.tell(), size_bytes)


def retry_after_s(response: urllib3.BaseHTTPResponse) -> float | None:
    """The seconds that an answer asks to wait; None if it names none that can be read."""
    try:
        return urllib3.Retry().get_retry_after(response)
    except urllib3.exceptions.InvalidHeader:
        return None


def may_pass(status: int, body: bytes) -> bool:
    """True if the same request may succeed later.

    503 says so. Stemwright's own other errors are final. Errors from before it may pass: TorchServe lost its worker (507,
    500), or a proxy lost TorchServe (502).
    """
    return status == 503 or (status >= 500 and "error" not in told_by(body))


def told_by(body: bytes) -> dict[str, Any]:
    """The JSON of an answer; {} if it has none."""
    try:
        facts = json.loads(body)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def error_of(endpoint: str, status: int, body: bytes, size_bytes: int) -> StemwrightError:
    """The error that an answer other than 200 stands for."""
    message = str(told_by(body).get("message", ""))
    if status in ERRORS and message:
        return ERRORS[status](message)
    if status == 413:  # TorchServe's own answer is empty
        return AudioTooLong(
            f"{endpoint} takes no request of {size_bytes:,} bytes: send FLAC or MP3, or raise its limit"
        )
    return ServerError(f"{endpoint} answered {status} ({message or 'without a message'}): see the log of the server")
