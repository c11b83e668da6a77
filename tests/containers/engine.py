"""The Docker engine of this machine, where one answers."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

# As production runs them: nothing writable but what is said, no privileges.
HARDENED = [
    *("--network", "host", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
]


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, (
        f"docker {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done


def engine_answers() -> bool:
    return shutil.which("docker") is not None and docker("info", check=False).returncode == 0


needs_docker = [pytest.mark.docker, pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers")]


def build(which: str) -> str:
    """Build an image from the code as it is; gives its tag."""
    tag = f"stemwright-{which}"
    docker("build", "--network", "host", "-f", f"{ROOT}/Dockerfile.{which}", "-t", tag, str(ROOT))
    return tag


def state_of(container: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(docker("inspect", container).stdout)[0]["State"]
    return facts


def wait_until_healthy(container: str) -> None:
    for _ in range(240):
        state = state_of(container)
        assert state["Running"], docker("logs", container).stdout[-4000:]
        if state["Health"]["Status"] == "healthy":
            return
        time.sleep(0.5)
    raise AssertionError(f"not healthy within two minutes:\n{docker('logs', container).stdout[-4000:]}")


def wait_for_line(container: str, text: str) -> None:
    for _ in range(240):
        logs = docker("logs", container)
        if text in logs.stdout + logs.stderr:
            return
        assert state_of(container)["Running"], logs.stderr[-4000:]
        time.sleep(0.5)
    raise AssertionError(f"{text!r} did not appear within two minutes")
