"""Answers that a healthy server gives rarely: clipped stems, a song without proof of its end, zips that break off."""

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import BrowserContext, Page, expect

from serving.page.server import PREDICTIONS, page_server
from tests.torchserve import encoded

pytestmark = pytest.mark.slow

MODEL = {"stems": ["vocals", "accompaniment"], "origin": {}}
SHEET = {
    "version": 1,
    "song": {
        "name": "a.wav",
        "samples": 8_000,
        "rate_hz": 8_000,
        "channels": 1,
        "note": "the song ends without proof of its end",
    },
    "files": {
        "vocals": {"name": "vocals.wav", "size_bytes": 1, "peak": 1.12, "clipped_samples": 5},
        "accompaniment": {"name": "accompaniment.wav", "size_bytes": 1, "peak": 0.5, "clipped_samples": 0},
    },
}


def zipped(suffix: str = "WAV", large: bool = False) -> bytes:
    """A zip as the server writes it: to a file that cannot seek, so that sizes follow the bytes."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 1))
    noise[:64, 0] = np.frombuffer(b"PK\x07\x08" * 32, dtype="<i2") / 2**15  # what looks like the end of a member
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for stem in MODEL["stems"]:
            with archive.open(zipfile.ZipInfo(f"{stem}.{suffix.lower()}"), "w", force_zip64=large) as member:
                member.write(encoded(noise, 8_000, suffix))
        with archive.open(zipfile.ZipInfo("stems.json"), "w") as member:
            member.write(json.dumps(SHEET).encode())
    return pipe.getvalue()


@contextmanager
def page_before(context: BrowserContext, *answers: bytes | tuple[int, bytes]) -> Iterator[Page]:
    """The page, to which a song is given, before a server that gives these answers in turn: a zip, or a status and a body."""
    left = iter(answers)

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(MODEL).encode() if "describe" in self.headers else next(left)
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        with page_server(f"http://127.0.0.1:{upstream.server_port}{PREDICTIONS}") as page:
            for server in (upstream, page):
                threading.Thread(target=server.serve_forever, daemon=True).start()
            tab = context.new_page()
            tab.goto(f"http://127.0.0.1:{page.server_port}/")
            expect(tab.get_by_text("This model gives vocals and accompaniment.")).to_be_visible()
            tab.set_input_files("#files", {"name": "a.wav", "mimeType": "audio/wav", "buffer": b"a song"})
            yield tab
            page.shutdown()
        upstream.shutdown()


@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_peaks_clipping_and_notes_are_shown(context: BrowserContext, large: bool) -> None:
    with page_before(context, zipped(large=large)) as tab:
        expect(tab.locator("[data-state=done]")).to_be_visible()
        expect(tab.locator(".lane[data-stem=vocals] .facts")).to_have_text("peak +1.0 dB 5 samples clipped")
        expect(tab.locator(".lane[data-stem=accompaniment] .facts")).to_have_text("peak \N{MINUS SIGN}6.0 dB")
        expect(tab.locator(".note")).to_have_text("Note: the song ends without proof of its end.")
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Download Accompaniment").click()
        samples, rate_hz = soundfile.read(download.value.path())
        assert (rate_hz, samples.shape) == (8_000, (8_000,))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_zip_that_breaks_off_is_no_success(context: BrowserContext, share: float) -> None:
    whole = zipped()
    with page_before(context, whole[: int(share * len(whole))]) as tab:
        expect(tab.locator("[data-state=failed] .status")).to_contain_text("broke off")


def test_what_is_no_zip_is_told(context: BrowserContext) -> None:
    with page_before(context, b"<html>" * 100) as tab:
        expect(tab.locator("[data-state=failed] .status")).to_contain_text("no zip of stems")


def test_a_busy_server_is_asked_again_until_the_song_is_cancelled(context: BrowserContext) -> None:
    busy = json.dumps({"code": 503, "type": "ServiceUnavailableException", "message": "use scale workers API"}).encode()
    with page_before(context, (503, busy), zipped()) as tab:
        expect(tab.locator(".status")).to_have_text("The server is busy. Next try in 4 s")
        tab.get_by_role("button", name="Cancel").click()
        expect(tab.locator("[data-state=cancelled] .status")).to_have_text("Cancelled")
        tab.get_by_role("button", name="Try again").click()
        expect(tab.locator("[data-state=done] .status")).to_have_text("0:01 · 2 stems")


def test_a_refusal_without_words_gets_some(context: BrowserContext) -> None:
    with page_before(context, (413, b"")) as tab:
        expect(tab.locator("[data-state=failed] .status")).to_contain_text("larger than this server takes: send FLAC")
