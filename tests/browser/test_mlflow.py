"""MLflow's own page as a person sees it, with three runs of Stemwright in it, and their report."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Page, expect

from tests.mlflow_server import MlflowServer
from training.config import Budget, classic
from training.tracking.experiment import COLUMNS, scores_link
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow

RATE_HZ = 44_100
SONGS = ("A - Ash", "B - Birch", "C - Cedar")


def excerpt(seed: int) -> np.ndarray:
    """Two seconds (c, n) of a few sines."""
    at_s = np.arange(2 * RATE_HZ) / RATE_HZ
    tones = np.random.default_rng(seed).uniform(100, 2000, 4)
    return np.tile(0.1 * np.sin(2 * np.pi * np.outer(tones, at_s)).sum(axis=0), (2, 1)).astype(np.float32)


def picture_of(audio: np.ndarray, title: str) -> Figure:
    """Quicker than the spectrograms that training draws."""
    figure = Figure()
    figure.suptitle(title)
    figure.subplots().specgram(audio[0], Fs=RATE_HZ)
    return figure


def log_run(uri: str, run_dir: Path, learning_rate: float, usdr_db: float) -> str:
    """A run as training logs one, without the training. Its best validation is not its last."""
    config = classic("s3://bucket/songs", Budget(steps=300))
    with Tracker.open(uri, run_dir, None) as tracker:
        optimization = type(config.optimization)(learning_rate=learning_rate)
        tracker.describe(type(config)(**{**vars(config), "optimization": optimization}), {"device": "cpu"})
        tracker.data(config.data, "0" * 64, "training", songs=80, measured=80, seconds=18_000)
        tracker.data(config.data, "0" * 64, "validation", songs=14, measured=14, seconds=3_000)
        for step in range(0, 300, 10):
            tracker.numbers({"train/loss": 5 - step / 100, "train/learning_rate": learning_rate}, step)
        for number, worse_db in enumerate((3.0, 0.0, 1.0)):
            stems = {"vocals_usdr_db": usdr_db - worse_db - 1, "accompaniment_usdr_db": usdr_db - worse_db + 1}
            numbers = {"usdr_db": usdr_db - worse_db, **stems}
            tracker.numbers({f"valid/{name}": value for name, value in numbers.items()}, 100 * (number + 1))
            mixture, target = excerpt(number), excerpt(number + 10)
            title = f"{SONGS[0]}, step {100 * (number + 1)}, vocals {usdr_db - worse_db:.2f} dB"
            tracker.picture("vocals", picture_of(target, title), number)
            if worse_db == 0:
                tracker.summary(
                    {f"best/{name}": value for name, value in {**numbers, "step": 100 * (number + 1)}.items()}
                )
                tracker.summary({"cost/real_time_factor": 0.05, "cost/parameters": 9e6})
                rows = [[song, round(usdr_db + n - 1, 3)] for n, song in enumerate(SONGS)]
                tracker.table("songs.json", ["song", "usdr_db"], rows)
                tracker.listen({"mixture": mixture + target, "vocals": target, "vocals_true": target}, RATE_HZ)
                tracker.note(f"**{usdr_db:.2f} dB** uSDR")
    assert tracker.run_id is not None
    return tracker.run_id


class Shown:
    """A server with three runs, whose ids are by name."""

    def __init__(self, uri: str, runs: dict[str, str]) -> None:
        self.uri, self.runs = uri, runs


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("mlflow")
    server = MlflowServer(folder)
    server.start()
    facts = {"slow": (1e-3, 6.25), "middle": (2e-3, 7.5), "fast": (4e-3, 5.125)}
    with contextlib.ExitStack() as last:
        last.callback(server.kill)
        yield Shown(server.uri, {name: log_run(server.uri, folder / name, *values) for name, values in facts.items()})


@pytest.fixture
def wide(tab: Page) -> Page:
    tab.set_viewport_size({"width": 1800, "height": 1000})
    tab.set_default_timeout(30_000)  # MLflow's page takes seconds to start on a busy machine
    expect.set_options(timeout=30_000)
    return tab


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_the_printed_link_opens_the_scores_sorted_by_the_best(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(scores_link(shown.uri, "1"))
    rows = wide.locator(".ag-center-cols-container .ag-row")
    expect(rows).to_have_count(3)
    expect(wide.locator('.ag-row [col-id="metrics.`best/usdr_db`"]')).to_have_text(["7.5", "6.25", "5.125"])
    wide.screenshot(path=screenshots / "mlflow_scores.png")
    cells = wide.locator(".ag-center-cols-container .ag-row").first.locator("[col-id]")
    columns = cells.evaluate_all(
        "cells => cells.sort((a, b) => a.offsetLeft - b.offsetLeft).map(cell => cell.getAttribute('col-id'))"
    )
    assert columns == list(COLUMNS)[: len(columns)] and len(columns) >= 5


def test_charts_of_three_runs_begin_with_the_best_scores(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART")
    expect(wide.get_by_text("best/step").first).to_be_visible()
    wide.screenshot(path=screenshots / "mlflow_charts.png")
    lines = wide.locator("body").inner_text().splitlines()
    assert [line for line in lines if line in ("best", "cost", "train", "valid")] == ["best", "cost", "train", "valid"]


def test_the_pictures_of_the_runs_follow_one_slider(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART")
    wide.get_by_placeholder("Search metric charts").fill("vocals$")
    picture = wide.locator("img[src*='get-artifact'], img[src^='blob:'], img[src*='images']").first
    expect(picture).to_be_visible()
    first = picture.get_attribute("src")
    slider = wide.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    wait_until(wide, lambda: picture.get_attribute("src") != first)
    wide.screenshot(path=screenshots / "mlflow_pictures.png")


def test_songs_stand_beside_runs_in_the_table_mode(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=ARTIFACT")
    expect(wide.get_by_role("combobox", name='Select "group by" columns')).to_contain_text("song")
    expect(wide.get_by_role("combobox", name=re.compile("selected option: usdr_db"))).to_be_visible()
    for text in (SONGS[0], "4.125", "6.5"):
        expect(wide.get_by_text(text, exact=True).first).to_be_visible()
    wide.screenshot(path=screenshots / "mlflow_songs.png")


def test_an_excerpt_plays(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs/{shown.runs['middle']}/artifacts/listen/vocals_true.flac")
    player = wide.locator("audio")
    expect(player).to_be_visible()
    player.evaluate("player => player.play()")
    wait_until(wide, lambda: player.evaluate("player => player.currentTime") > 0.2)
    assert player.evaluate("player => player.readyState") == 4
    wide.screenshot(path=screenshots / "mlflow_listen.png")
