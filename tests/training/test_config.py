import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from training.config import (
    Budget,
    TrainConfig,
    add_flags,
    classic,
    launched,
    read_config,
    resumed,
    started,
    tracking_uri,
    with_flags,
)
from training.errors import ConfigError


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(arguments))


def test_the_classic_preset_keeps_the_numbers_of_the_plan() -> None:
    model = classic("songs", Budget(steps=1)).model
    assert (model.audio.sample_rate_hz, model.stft.n_fft, model.stft.hop_samples, model.stft.bins) == (
        22_050,
        2048,
        512,
        1025,
    )
    assert 30 * model.audio.sample_rate_hz == 661_500
    assert model.stft.frames(model.chunk.length_s * model.audio.sample_rate_hz) == 646


def test_json_gives_the_same_configuration() -> None:
    config = classic("s3://bucket/songs", Budget(minutes=3))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_stored_configuration_of_another_version_is_refused() -> None:
    facts = classic("songs", Budget(steps=1)).to_json()
    with pytest.raises(ConfigError, match="has no surprise"):
        TrainConfig.from_json({**facts, "surprise": 1})


def test_flags_take_the_place_of_the_presets_values_and_of_no_others() -> None:
    config = classic("songs", Budget(steps=1))
    changed = with_flags(config, parse("--steps", "7", "--batch-size", "3", "--learning-rate", "0.5", "--seed", "9"))
    assert (changed.budget.steps, changed.batches.batch_size, changed.optimization.learning_rate, changed.seed) == (
        7,
        3,
        0.5,
        9,
    )
    assert dataclasses.replace(changed.batches, batch_size=config.batches.batch_size) == config.batches
    assert changed.model == config.model


def test_a_run_is_planned_by_steps_or_by_minutes() -> None:
    for budget in (Budget(), Budget(steps=1, minutes=1)):
        with pytest.raises(ConfigError, match="--steps or --minutes"):
            classic("songs", budget)


@pytest.mark.parametrize(
    ("flag", "bounds"),
    [
        *(
            (f"{flag}=0", "above 0")
            for flag in ("--steps", "--batch-size", "--crop-s", "--learning-rate", "--patience")
        ),
        ("--validations=0", "above 0"),
        ("--clip-norm=-1", "above 0"),
        ("--learning-rate=inf", "above 0"),
        ("--learning-rate=nan", "above 0"),
        ("--seed=-1", "0 or more"),
        ("--seed=9223372036854775808", "0 or more and below 9"),
        ("--weight-decay=-1", "0 or more"),
        ("--warmup=-0.5", "0 or more and below 1"),
        ("--warmup=1", "0 or more and below 1"),
        ("--valid-share=5", "above 0 and below 1"),
        ("--valid-excerpt-s=0.5", "1 or more"),
        ("--ema-decays=1", "0 or more and below 1"),
        ("--ema-decays=0.9,-0.1", "0 or more and below 1"),
    ],
)
def test_a_number_out_of_bounds_names_its_flag(flag: str, bounds: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag.partition('=')[0]} .*it has to be {bounds}"):
        with_flags(classic("songs", Budget(steps=1)), parse(flag))


def test_a_run_that_goes_on_keeps_its_preset_and_the_unit_of_its_length() -> None:
    stored = classic("songs", Budget(minutes=3))
    assert resumed(stored, None, {}) == resumed(stored, "classic", {"data": None}) == stored
    assert resumed(stored, None, {"minutes": 5.0, "data": "elsewhere"}) == dataclasses.replace(
        stored, budget=Budget(minutes=5), data="elsewhere"
    )
    with pytest.raises(ConfigError, match="--preset studio is not that of the run, classic"):
        resumed(stored, "studio", {})
    with pytest.raises(
        ConfigError, match=r"--steps does not fit .* in minutes: give its new length with --minutes, .* 3 now"
    ):
        resumed(stored, None, {"steps": 100})


def test_a_new_run_has_the_flags_that_were_given() -> None:
    assert started(None, {"data": "songs", "steps": 7}) == classic("songs", Budget(steps=7))
    with pytest.raises(ConfigError, match="--data is missing"):
        started("studio", {"steps": 7})


def test_flags_of_every_kind() -> None:
    flags = parse("--ema-decays", "0.5,0.75", "--deterministic", "--init", "x.mar", "--patience", "2")
    config = with_flags(classic("songs", Budget(steps=1)), flags)
    assert config.optimization.ema_decays == (0.5, 0.75) and config.validation.patience == 2
    assert config.deterministic and not config.compile and config.init == "x.mar"


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
