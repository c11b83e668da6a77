"""Fixtures of every test: a tiny model, and an environment without a deployment's or a user's settings."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from serving.model.networks import build
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec

LONGEST = ("test_readme.py", "test_demo.py", "test_catalogue.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat what is random as often as a night allows")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those that start servers: so no process works at the end while the others wait."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.get_closest_marker("slow") is None))


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to repeat what is random: `times(3, 50)` is 3, and 50 with --soak."""
    return lambda usual, soaked: soaked if request.config.getoption("--soak") else usual


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings of the machine it runs on, or sends anything anywhere."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "STEMWRIGHT_")) and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("STEMWRIGHT_ENGINE", "torch")  # a conversion for OpenVINO takes seconds; test_engines makes some
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def tiny_spec() -> ModelSpec:
    """The classic preset with hardly any weights."""
    return ModelSpec(
        architecture="classic",
        dimensions={"channels": (4, 4, 8), "fold": 8, "memory_inputs": 8, "memory_units": 4},
        stems=("vocals", "accompaniment"),
        audio=AudioSpec(sample_rate_hz=22_050),
        stft=StftSpec(n_fft=2048, hop_samples=512),
        chunk=ChunkSpec(length_s=15, overlap_s=1),
    )


@pytest.fixture
def tiny_banded() -> tuple[ModelSpec, nn.Module]:
    """The studio preset with hardly any weights."""
    spec = ModelSpec(
        architecture="banded",
        dimensions={
            **{"band_bins": (64, 128, 320), "band_widths": (2, 8, 20)},
            **{"channels": (4, 6, 8), "paths": 1, "units": 4, "memory_inputs": 8, "memory_units": 4},
        },
        stems=("vocals", "drums", "bass", "other"),
        audio=AudioSpec(sample_rate_hz=44_100),
        stft=StftSpec(n_fft=1024, hop_samples=256),
        chunk=ChunkSpec(length_s=4, overlap_s=1),
    )
    torch.manual_seed(0)
    return spec, build(spec).eval()


@pytest.fixture
def tiny_network(tiny_spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    return build(tiny_spec).eval()
