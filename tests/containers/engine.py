"""The Docker engine of this machine, asked by its command."""

import json
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, (
        f"docker {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done


def engine_answers() -> bool:
    return shutil.which("docker") is not None and docker("info", check=False).returncode == 0


def build(which: str) -> str:
    """Build one of the two images under its own name; gives the name."""
    tag = f"stemwright-{which}"
    docker("build", "--network", "host", "-f", f"{ROOT}/Dockerfile.{which}", "-t", tag, str(ROOT))
    return tag


def wait_until_healthy(container: str) -> None:
    for _ in range(240):
        state = json.loads(docker("inspect", container).stdout)[0]["State"]
        assert state["Running"], logs(container)
        if state["Health"]["Status"] == "healthy":
            return
        time.sleep(0.5)
    raise AssertionError(f"not healthy within two minutes:\n{logs(container)}")


def wait_for_line(container: str, text: str) -> None:
    for _ in range(240):
        if text in logs(container):
            return
        assert json.loads(docker("inspect", container).stdout)[0]["State"]["Running"], logs(container)
        time.sleep(0.5)
    raise AssertionError(f"{text!r} did not appear within two minutes:\n{logs(container)}")


def logs(container: str) -> str:
    """The end of a container's output, both streams one after the other."""
    said = docker("logs", container, check=False)
    return said.stdout[-4000:] + said.stderr[-4000:]
