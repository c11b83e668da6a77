"""Debian's Chromium, driven by Playwright. Every test of this folder is skipped by name where there is none."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.spec import AudioSpec
from serving.page.server import page_server
from tests.tiny import BANDED
from tests.torchserve import Server, serving, wait_until_ready

CHROMIUM = shutil.which("chromium")
expect.set_options(timeout=30_000)  # for busy machines
SCREENSHOTS = Path(__file__).parent / "screenshots"
# Chromium calls home otherwise, and runs as root here.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--autoplay-policy=no-user-gesture-required"]

MAX_DURATION_S = 700
SPEC = dataclasses.replace(BANDED, audio=AudioSpec(sample_rate_hz=16_000))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1200, "height": 860}, accept_downloads=True) as context:
        context.set_default_timeout(30_000)
        yield context


@pytest.fixture
def tab(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """A folder that git ignores and CI may keep."""
    SCREENSHOTS.mkdir(exist_ok=True)
    return SCREENSHOTS


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A TorchServe with a tiny model of four stems."""
    folder = tmp_path_factory.mktemp("server")
    torch.manual_seed(0)
    write_archive(folder / "tiny.mar", SPEC, build(SPEC), {"run": "r1"})
    environment = {"STEMWRIGHT_MAX_DURATION_S": str(MAX_DURATION_S), "STEMWRIGHT_MAX_REQUEST_MB": "60"}
    with serving(folder / "tiny.mar", folder / "log", environment) as server:
        wait_until_ready(server)
        yield server


@pytest.fixture(scope="session")
def address(server: Server) -> Iterator[str]:
    """The page on this machine, as `stemwright page` serves it."""
    with page_server(server.endpoint) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{page.server_port}/"
        page.shutdown()
