"""The page as the proxy serves it: its key, and its way over HTTP/2."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect

from tests import nginx
from tests.browser.progress import note_statuses, statuses_noted
from tests.nginx import proxy_of
from tests.torchserve import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not nginx.IS_THERE, reason="nginx or openssl is not installed"),
]


def give_key(tab: Page, key: str) -> None:
    tab.get_by_role("textbox", name="API key").fill(key)
    tab.get_by_role("button", name="Continue").click()


def test_the_key_is_asked_for_once_and_what_is_sent_is_counted(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "Early.flac", np.zeros(16_000), 16_000)
    (tmp_path / "Large.wav").write_bytes(bytes(20_000_000))  # more than lies between tab and network
    with proxy_of(server.port, tmp_path) as proxy, browser.new_context(ignore_https_errors=True) as context:
        tab = context.new_page()
        tab.goto(proxy)
        expect(tab.get_by_role("textbox", name="API key")).to_be_focused()
        tab.keyboard.press("Escape")
        tab.set_input_files("#files", tmp_path / "Early.flac")
        tab.get_by_role("button", name="Give the key").click()
        give_key(tab, "basil")
        expect(tab.get_by_text("The server does not know this key.")).to_be_visible()
        give_key(tab, nginx.KEY)
        expect(tab.get_by_text("This model gives")).to_be_visible()
        expect(tab.locator("[data-state=done]")).to_be_visible()
        assert tab.evaluate("[...Object.values(sessionStorage), ...Object.values(localStorage)]") == [nginx.KEY]
        tab.reload()
        expect(tab.get_by_text("This model gives")).to_be_visible()
        note_statuses(tab)
        tab.set_input_files("#files", tmp_path / "Large.wav")
        expect(tab.locator("[data-state=failed] .status")).to_contain_text("no audio")
        assert tab.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        seen = statuses_noted(tab)
        sent = [float(match[1]) for text in seen if (match := re.fullmatch(r"Sending (\S+) MB of 20 MB", text))]
        assert sent == sorted(sent), seen
        assert any(0 < part < 20 for part in sent), seen
        assert tab.request.get(f"{proxy}/openapi.yaml").ok
