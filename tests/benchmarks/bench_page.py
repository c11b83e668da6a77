"""The cost of a long song in the browser: python -m pytest -q -s tests/benchmarks/bench_page.py

Ten minutes of 44.1 kHz stereo, four stems, from a real server to Debian's Chromium. Memory is the resident memory of the
tab's process, looked at five times a second from the drop until a while of playing; asserted is the bound of 1.5 GB.
"""

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from playwright.sync_api import sync_playwright

from serving.model.archive import write_archive
from serving.model.networks import build
from serving.page.server import page_server
from tests.browser.conftest import CHROMIUM, MAX_DURATION_S, QUIET, SPEC
from tests.torchserve import serving, wait_until_ready

RATE_HZ, SONG_S, TIMEOUT_MS = 44_100, 600, 900_000


def tab_bytes() -> int:
    """Resident memory of the largest of this process's tabs."""
    sizes = [0]
    for process in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                sizes.append(process.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
    return max(sizes)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_ten_minutes_fit_a_tab(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-3_000, 3_000, (SONG_S * RATE_HZ, 2), dtype=np.int16)
    soundfile.write(tmp_path / "Long.flac", noise, RATE_HZ)
    torch.manual_seed(0)
    write_archive(tmp_path / "tiny.mar", SPEC, build(SPEC), {})
    sizes: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            sizes.append(tab_bytes())

    with (
        serving(tmp_path / "tiny.mar", tmp_path / "log", {"STEMWRIGHT_MAX_DURATION_S": str(MAX_DURATION_S)}) as server,
        sync_playwright() as playwright,
    ):
        wait_until_ready(server)
        page = page_server(server.endpoint)
        threading.Thread(target=page.serve_forever, daemon=True).start()
        tab = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET).new_page()
        tab.set_default_timeout(TIMEOUT_MS)
        tab.goto(f"http://127.0.0.1:{page.server_port}/")
        tab.wait_for_selector("#wishes:not([hidden])")
        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.monotonic()
        tab.set_input_files("#files", tmp_path / "Long.flac")
        tab.wait_for_selector(".lane.whole")
        first_s = time.monotonic() - started
        tab.wait_for_selector("[data-state=done]")
        done_s = time.monotonic() - started
        tab.get_by_label("Play").click()
        tab.get_by_label("A semitone up").click()
        tab.wait_for_timeout(5_000)
        stop.set()
        watcher.join()
        page.shutdown()
    print(
        f"\n{SONG_S} s, four stems: the tab takes {max(sizes) / 1e9:.2f} GB; first lane after {first_s:.0f} s of {done_s:.0f} s"
    )
    assert max(sizes) < 1.5e9
