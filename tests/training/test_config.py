import json
from pathlib import Path

import pytest

from training.config import Budget, TrainConfig, launched, read_config, tracking_uri
from training.errors import ConfigError
from training.presets import classic


def test_json_gives_the_same_configuration() -> None:
    config = classic("s3://bucket/songs", Budget(minutes=3))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_stored_configuration_of_another_version_is_refused() -> None:
    facts = classic("songs", Budget(steps=1)).to_json()
    with pytest.raises(ConfigError, match="has no surprise"):
        TrainConfig.from_json({**facts, "surprise": 1})


def test_a_run_is_planned_by_steps_or_by_minutes() -> None:
    for budget in (Budget(), Budget(steps=1, minutes=1)):
        with pytest.raises(ConfigError, match="--steps or --minutes"):
            classic("songs", budget)


def test_a_process_knows_its_rank_from_torchrun() -> None:
    assert launched({}) == (0, 1, 0)
    assert launched({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == (3, 4, 1)


def test_progress() -> None:
    assert Budget(steps=8).progress(2, 1e9) == 0.25
    assert Budget(minutes=2).progress(10**9, 30.0) == 0.25
    assert Budget(minutes=2).progress(10**9, 30.0, closing_s=60) == 0.5
    assert Budget(minutes=2).progress(10**9, 30.0, closing_s=120) == 1.0
    assert Budget(steps=8).progress(9, 0.0) == 1.0


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_config(tmp_path)


def test_tracking_is_beside_the_run_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    assert tracking_uri(tmp_path / "run", {}) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert tracking_uri(tmp_path / "run", {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}) == "http://mlflow:5000"
