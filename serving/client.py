"""A Python client of the separation endpoint: a song goes up; all of its stems arrive whole, or none."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import urllib3

from serving.delivery import unpack
from serving.encoding import AudioFormat
from serving.errors import AudioError, AudioTooLong, RequestError, ServerError, StemwrightError, UnsupportedAudio

CONNECT_TIMEOUT_S = 10
BACKOFF_S = 0.5
ERRORS: dict[int, type[StemwrightError]] = {
    error.status: error for error in (RequestError, AudioError, UnsupportedAudio, AudioTooLong)
}


@dataclass(frozen=True)
class Client:
    """One endpoint: `http://host:port`, or its full address that ends in /predictions/<model>.

    `timeout_s` is the longest silence to be borne, not the time of a whole song. `attempts` counts connections that are
    refused and answers of 503; a request that breaks off on its way is not sent again.
    """

    url: str
    timeout_s: float = 300
    attempts: int = 5

    @property
    def endpoint(self) -> str:
        url = self.url.rstrip("/")
        return url if "/predictions/" in urlsplit(url).path else f"{url}/predictions/stemwright"

    def separate(
        self, source: Path | bytes, out: Path, *, stems: Sequence[str] | None = None, audio_format: AudioFormat = "wav"
    ) -> dict[str, Path]:
        """Separate a song; gives the file `out`/<stem>.<format> of each stem: of those asked for, or of all there are.

        Raises RequestError, UnsupportedAudio, AudioTooLong or AudioError where the server refuses the song, with its own
        message, and ServerError where no complete answer comes. Nothing is left in `out` then.
        """
        # A zip even for one stem: its checksums show what a connection has lost.
        headers = {"Accept": f"application/zip, audio/{audio_format}", "Content-Type": "application/octet-stream"}
        if stems is not None:
            headers["X-Stems"] = ",".join(stems)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
            archive = Path(folder, "stems.zip")
            try:
                self.fetch(source, headers, archive)
                arrived = unpack(archive, audio_format)
            except urllib3.exceptions.HTTPError as error:
                raise ServerError(f"{self.endpoint} gave no complete answer ({error}): check that it runs") from error
            except zipfile.BadZipFile as error:
                raise ServerError(f"{self.endpoint} sent a damaged zip ({error}): ask again") from error
            if not arrived or (stems is not None and set(arrived) != set(stems)):
                raise ServerError(
                    f"{self.endpoint} sent the stems {', '.join(arrived) or '(none)'}: check that it is Stemwright"
                )
            return {stem: path.replace(out / path.name) for stem, path in arrived.items()}

    def fetch(self, source: Path | bytes, headers: dict[str, str], target: Path) -> None:
        """Post the song and write the answer's body to `target`."""
        retries = urllib3.Retry(
            total=self.attempts - 1,
            read=0,
            redirect=0,
            status_forcelist=[503],
            allowed_methods=None,
            backoff_factor=BACKOFF_S,
            raise_on_status=False,
        )
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=self.timeout_s)
        with ExitStack() as stack:
            body, size_bytes = opened(source, stack)
            pool = stack.enter_context(urllib3.PoolManager())
            response = pool.request(
                "POST",
                self.endpoint,
                body=body,
                headers=headers | {"Content-Length": str(size_bytes)},
                retries=retries,
                timeout=timeout,
                preload_content=False,
            )
            stack.callback(response.close)
            if response.status != 200:
                raise refusal(self.endpoint, response.status, response.read(), size_bytes)
            with target.open("wb") as file:
                shutil.copyfileobj(response, file)


def opened(source: Path | bytes, stack: ExitStack) -> tuple[IO[bytes] | bytes, int]:
    """The body of a request, which a file is streamed into, and its size."""
    if not isinstance(source, Path):
        return source, len(source)
    if not source.is_file():
        raise AudioError(f"{source} is not a file: check the path")
    return stack.enter_context(source.open("rb")), source.stat().st_size


def refusal(endpoint: str, status: int, body: bytes, size_bytes: int) -> StemwrightError:
    """The error that an answer other than 200 stands for."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = ""
    if status in ERRORS and message:
        return ERRORS[status](message)
    if status == 413:  # TorchServe itself, whose answer is empty
        return AudioTooLong(
            f"{endpoint} takes no request of {size_bytes:,} bytes: send FLAC or MP3, or raise its limit"
        )
    return ServerError(f"{endpoint} answered {status} ({message or 'without a message'}): see the log of the server")
