"""MLflow's own page as a person sees it, with three runs of Stemwright in it, and their report."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from playwright.sync_api import Frame, Page, expect

from tests.mlflow_server import MlflowServer
from training.config import Budget
from training.evaluation.compare import Comparison, Row
from training.evaluation.cost import Cost
from training.evaluation.evaluate import Evaluation, Excerpt
from training.experiments.report import Collector, report
from training.presets import classic
from training.tracking.experiment import COLUMNS, scores_link
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow
another_view = pytest.mark.long
"""For views of MLflow's page after the first, which take its server and five seconds each."""

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


@another_view
def test_charts_of_three_runs_begin_with_the_best_scores(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART")
    expect(wide.get_by_text("best/step").first).to_be_visible()
    wide.screenshot(path=screenshots / "mlflow_charts.png")
    lines = wide.locator("body").inner_text().splitlines()
    assert [line for line in lines if line in ("best", "cost", "train", "valid")] == ["best", "cost", "train", "valid"]


@another_view
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


@another_view
def test_songs_stand_beside_runs_in_the_table_mode(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=ARTIFACT")
    expect(wide.get_by_role("combobox", name='Select "group by" columns')).to_contain_text("song")
    expect(wide.get_by_role("combobox", name=re.compile("selected option: usdr_db"))).to_be_visible()
    for text in (SONGS[0], "4.125", "6.5"):
        expect(wide.get_by_text(text, exact=True).first).to_be_visible()
    wide.screenshot(path=screenshots / "mlflow_songs.png")


@another_view
def test_an_excerpt_plays(shown: Shown, wide: Page, screenshots: Path) -> None:
    wide.goto(f"{shown.uri}/#/experiments/1/runs/{shown.runs['middle']}/artifacts/listen/vocals_true.flac")
    player = wide.locator("audio")
    expect(player).to_be_visible()
    player.evaluate("player => player.play()")
    wait_until(wide, lambda: player.evaluate("player => player.currentTime") > 0.2)
    assert player.evaluate("player => player.readyState") == 4
    wide.screenshot(path=screenshots / "mlflow_listen.png")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two songs, with models that give each stem a share of the mixture: their attacks are those of the mixture."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    collected = Collector()
    scores = []
    for name in SONGS[:2]:
        attacks = np.zeros(3 * RATE_HZ, np.float32)
        for start in range(RATE_HZ // 4, 3 * RATE_HZ, RATE_HZ // 2):
            attacks[start : start + 2000] = rng.uniform(-0.3, 0.3, 2000)
        vocals, rest = np.stack([attacks, attacks]), np.stack([attacks, -attacks]) / 2
        audio = {"mixture": vocals + rest, "vocals": vocals, "accompaniment": rest}
        excerpt = Excerpt(name, audio, RATE_HZ)
        found = {
            name: {"vocals": share * audio["mixture"], "accompaniment": (1 - share) * audio["mixture"]}
            for name, share in (("first", 0.5), ("second", 0.8))
        }
        collected(excerpt, found)
        scores.append(
            {one: excerpt.scores(list(stems), np.stack(list(stems.values()))) for one, stems in found.items()}
        )
    rows = [
        Row(one, Evaluation(tuple(song[one] for song in scores)), Cost(1, 1.0, 0.1, 1)) for one in ("first", "second")
    ]
    comparison = Comparison(tuple(rows), (), torch.device("cpu"))
    path = folder / "report.html"
    path.write_text(report(comparison, collected, "first against second", {"first": [(1, 2.0), (2, 3.0)]}, {}))
    assert path.stat().st_size < 4_000_000
    return path


IN_STEP = """async () => {
    const song = songs[0];
    const buffers = await Promise.all(song.tracks.map(decoded));
    const first = buffers[0].getChannelData(0);
    const start = first.findIndex(value => Math.abs(value) > 0.05);
    return buffers.map(buffer => {
        const samples = buffer.getChannelData(0), peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        return 1000 * (samples.findIndex(value => Math.abs(value) > 0.2 * peak) - start) / buffer.sampleRate;
    });
}"""


def hears(frame: Page | Frame, tab: Page) -> None:
    """Play, change over to another track meanwhile, and see that all of them are in step and the head moves."""
    frame.get_by_role("button", name="Play").first.click()
    wait_until(tab, lambda: frame.evaluate("() => playing !== null && position(playing) > 0.3"))
    frame.get_by_role("button", name="vocals, second").first.click()
    wait_until(
        tab, lambda: frame.evaluate("() => playing.gains[3].gain.value > 0.9 && playing.gains[0].gain.value < 0.1")
    )
    assert all(abs(offset_ms) < 20 for offset_ms in frame.evaluate(IN_STEP))


def test_the_report_opens_from_disk_and_its_players_are_in_step(page: Path, wide: Page, screenshots: Path) -> None:
    said: list[str] = []
    wide.on("console", lambda message: said.append(message.text))
    wide.on("pageerror", lambda error: said.append(str(error)))
    wide.goto(page.as_uri())
    expect(wide.get_by_text(re.compile("is better on vocals by"))).to_be_visible()
    hears(wide, wide)
    wide.screenshot(path=screenshots / "report.png", full_page=True)
    assert said == []


def test_the_report_plays_inside_mlflow(shown: Shown, page: Path, wide: Page, screenshots: Path) -> None:
    run = shown.runs["middle"]
    mlflow.MlflowClient(shown.uri).log_artifact(run, str(page))
    wide.goto(f"{shown.uri}/#/experiments/1/runs/{run}/artifacts/report.html")
    wide.locator("iframe").wait_for()
    wait_until(wide, lambda: len(wide.frames) > 1 and wide.frames[-1].get_by_role("button", name="Play").count() > 0)
    hears(wide.frames[-1], wide)
    wide.screenshot(path=screenshots / "mlflow_report.png")
