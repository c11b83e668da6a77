"""Sweeps whose children are runs in a real store; what they train is made up."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
import pytest

from serving.errors import RequestError
from tests.stores import new_store
from training.errors import ConfigError, TrainingError
from training.experiments.ray_hosts import on_ray
from training.experiments.sweep import drawn, grid, one_by_one, sweep
from training.tracking.sweeps import Child
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow


def test_a_sweep_goes_on_where_it_stopped_and_shows_the_best(tmp_path: Path) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    tries = grid(["learning-rate=1e-3,2e-3", "seed=0,1"])
    assert [tuple(flags.values()) for flags in tries] == [("1e-3", "0"), ("1e-3", "1"), ("2e-3", "0"), ("2e-3", "1")]
    trained: list[Mapping[str, str]] = []
    codes = {("1e-3", "1"): 143, ("2e-3", "0"): 1}

    def train(children: Sequence[Child]) -> Iterator[tuple[Child, int]]:
        for child in children:
            trained.append(child.flags)
            if (code := codes.pop(tuple(child.flags.values()), 0)) == 0:
                with Tracker.open(uri, child.run_dir, None) as tracker:
                    score = 1000 * float(child.flags["learning-rate"]) + int(child.flags["seed"])
                    tracker.summary({"best/usdr_db": score})
                (child.run_dir / "classic.mar").touch()
            yield child, code

    with pytest.raises(TrainingError, match="stopped in learning-rate=1e-3,seed=1"):
        sweep(uri, tmp_path / "sweep", tries, train)
    assert trained == tries[:2]
    with pytest.raises(TrainingError, match="learning-rate=2e-3,seed=0 failed"):
        sweep(uri, tmp_path / "sweep", tries, train)
    assert trained[2:] == tries[1:], "the first is not trained again"
    table = sweep(uri, tmp_path / "sweep", tries, train)
    assert trained[5:] == [tries[2]]
    assert next(line.split() for line in table.splitlines()) == ["3.00", "dB", "learning-rate=2e-3,seed=1"]
    assert len(table.splitlines()) == 4

    client = mlflow.MlflowClient(uri)
    (parent,) = client.search_runs(["1"], "tags.kind = 'sweep'")
    assert parent.data.metrics["best/usdr_db"] == 3.0 and parent.info.run_name == "sweep"
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name for run in children} >= {"sweep/learning-rate=1e-3,seed=0"} and len(children) == 4


def test_numbers_are_drawn_evenly_by_their_logarithm() -> None:
    tries = drawn(["learning-rate=1e-4..1e-2", "batch-size=4,8"], 400, seed=0)
    rates = [float(flags["learning-rate"]) for flags in tries]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 160 < sum(rate < 1e-3 for rate in rates) < 240
    assert {flags["batch-size"] for flags in tries} == {"4", "8"}
    assert drawn(["seed=1..5"], 3, seed=1) == drawn(["seed=1..5"], 3, seed=1)


@pytest.mark.parametrize("word", ["learning-rate", "=1", "seed="])
def test_a_try_of_nothing_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="tries nothing"):
        grid([word])


def children_of(folder: Path, *names: str) -> list[Child]:
    return [Child(name, folder / name, {"preset": name}) for name in names]


def test_each_child_is_a_command_whose_exit_code_is_told(tmp_path: Path) -> None:
    children = children_of(tmp_path, "other", "another")
    assert list(one_by_one(["--steps", "1", "--data", "d"])(children)) == [(child, 2) for child in children]


@pytest.mark.long
def test_ray_takes_a_child_to_each_host_and_tells_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEMWRIGHT_IMAGE", "of the sweep")
    children = children_of(tmp_path, "other", "another")
    ended = list(on_ray("local", ["--steps", "1", "--data", "d"])(children))
    assert sorted(child.name for child, _ in ended) == ["another", "other"] and {code for _, code in ended} == {2}


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        on_ray("127.0.0.1:9", [])
