"""The Dockerfiles as hadolint reads them, and the labels that every image carries."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("which", ["train", "serve"])
def test_hadolint_finds_nothing(which: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", ROOT / f"Dockerfile.{which}"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout
