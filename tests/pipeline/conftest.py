"""One TorchServe for all tests that only ask it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.model.archive import write_archive
from serving.model.networks import build
from tests.torchserve import MAX_DURATION_S, SPEC, Server, encoded, serving, wait_until_ready


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "tiny.mar"
    torch.manual_seed(0)
    write_archive(path, SPEC, build(SPEC), {"run": "r1"})
    return path


@pytest.fixture(scope="session")
def server(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {
        "STEMWRIGHT_MAX_DURATION_S": str(MAX_DURATION_S),
        "STEMWRIGHT_MAX_REQUEST_MB": "10",
        "STEMWRIGHT_CORS_ORIGINS": "https://songs.example.com",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
    }
    with serving(archive, log, environment) as server:
        wait_until_ready(server)
        yield server


@pytest.fixture(scope="session")
def mixture() -> np.ndarray:
    """Nine seconds of stereo noise (n, c), three windows and a bit, at another rate than the model's."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (9 * 22_050 + 1, 2)).astype(np.float32)


@pytest.fixture(scope="session")
def song(mixture: np.ndarray) -> bytes:
    return encoded(mixture)
