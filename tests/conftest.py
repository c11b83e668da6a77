"""Fixtures of every test: a tiny model, and an environment without a deployment's or a user's settings."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from serving.model.networks import build
from serving.model.spec import ModelSpec
from serving.settings import ENGINES
from tests.tiny import BANDED, CLASSIC

# Python images turn bytecode off. Here hundreds of processes import the same modules, and each would compile them anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LONGEST = ("test_readme.py", "test_stops.py", "test_torchserve.py", "test_page.py")
SHARING = {
    "tests/pipeline/test_torchserve.py": ("tests/pipeline/test_proxy.py", "tests/pipeline/test_server_soak.py"),
    "tests/browser/test_page.py": ("tests/browser/",),
    "tests/pipeline/test_stops.py": (
        *("tests/pipeline/test_kills.py", "tests/pipeline/test_ranks.py"),
        *("tests/training/optimization/test_ranks.py", "tests/training/tracking/test_tracking.py"),
    ),
}
"""Files that share a TorchServe, a browser, or the process that runs are forked off; each takes seconds to start."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat what is random as often as a night allows")
    parser.addoption(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what runs networks in servers and commands; openvino converts each network of a test, which takes seconds",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["STEMWRIGHT_ENGINE"] = config.getoption("--engine")
    # A server of a test lives too shortly for Java's second compiler, which takes half of its start.
    os.environ["JDK_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def pytest_sessionstart() -> None:
    gc.disable()  # until all is imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of every collection of garbage, of which they would be most."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those that start servers: so no process works at the end while the others wait."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.get_closest_marker("slow") is None))


class LoadSharing(LoadFileScheduling):
    """Gives a file, and those that share a server with it, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((first for first, others in SHARING.items() if file.startswith(others)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return LoadSharing(config, log)


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to repeat what is random: `times(3, 50)` is 3, and 50 with --soak."""
    return lambda usual, soaked: soaked if request.config.getoption("--soak") else usual


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings of the machine it runs on, or sends anything anywhere."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "STEMWRIGHT_")) and name not in ("AWS_CA_BUNDLE", "STEMWRIGHT_ENGINE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def tiny_spec() -> ModelSpec:
    """The classic preset with hardly any weights."""
    return CLASSIC


@pytest.fixture
def tiny_banded() -> tuple[ModelSpec, nn.Module]:
    """The studio preset with hardly any weights."""
    torch.manual_seed(0)
    return BANDED, build(BANDED).eval()


@pytest.fixture
def tiny_network(tiny_spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    return build(tiny_spec).eval()
