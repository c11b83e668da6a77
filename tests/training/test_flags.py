import argparse
import dataclasses

import pytest

from training.config import Budget
from training.errors import ConfigError
from training.flags import add_flags, resumed, started, with_flags
from training.presets import classic


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(arguments))


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
