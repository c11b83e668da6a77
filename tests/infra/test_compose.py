"""The services of infra/compose.yaml: command lines that the program reads, bounds, and closed ports."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import training.__main__
from tests.readme import commands

INFRA = Path(__file__).parent.parent.parent / "infra"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((INFRA / "compose.yaml").read_text())["services"])


def test_nothing_is_published_but_the_three_doors_and_those_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    doors = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert doors.keys() == {"mlflow", "proxy", "grafana"}
    assert all(port.startswith("${PUBLISH:-127.0.0.1}:") for ports in doors.values() for port in ports)


def test_every_service_is_bounded_and_has_no_privileges(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
        assert service["restart"] in ("no", "on-failure:5"), name
        assert "mem_limit" in service or name in ("train", "buckets"), name


def test_a_service_waits_for_those_that_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        needed = service.get("depends_on", {})
        for other, how in needed.items() if isinstance(needed, dict) else []:
            healthy = how["condition"] == "service_healthy"
            own_check = "healthcheck" in services[other] or services[other]["image"] == "stemwright-serve"
            assert own_check or not healthy, f"{name} waits for {other}, which nobody looks at"


def test_songs_are_finished_before_the_server_is_killed(services: dict[str, dict[str, Any]]) -> None:
    def grace_s(name: str) -> int:
        return int(services[name]["stop_grace_period"].removesuffix("s"))

    assert grace_s("serve") > 25 and grace_s("proxy") >= grace_s("serve") and grace_s("train") > 10


def test_the_command_in_its_head_is_the_programs() -> None:
    head = (INFRA / "compose.yaml").read_text().split("\n\n")[0].replace("\\\n#", "")
    command = re.search(r"run --rm train (train .*)", head)
    assert command
    training.__main__.parser().parse_args(command[1].split())


def test_the_commands_of_the_readme_are_the_programs(services: dict[str, dict[str, Any]]) -> None:
    push, train, up = (shlex.split(line) for line in commands("sh compose", "infra/README.md"))
    for words in (push, train):
        training.__main__.parser().parse_args(words[words.index("train") + 1 :])
    assert up[up.index("--profile") + 1] in services["serve"]["profiles"]


@pytest.mark.slow
def test_passwords_are_fresh_and_every_one_that_compose_asks_for_is_there(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        make = [sys.executable, INFRA / "make_secrets.py", folder]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        before = (folder / ".env").read_text()
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        assert (folder / ".env").read_text() == before, "a second run made others"
        written.append(dict(line.split("=", 1) for line in before.splitlines() if "=" in line and line[0] != "#"))
    asked = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    assert asked <= written[0].keys()
    assert all(written[0][name] != written[1][name] for name in asked | {"AWS_SECRET_ACCESS_KEY"})
    mounted = set(re.findall(r"\./secrets/([\w.]+)", (INFRA / "compose.yaml").read_text()))
    assert mounted == {path.name for path in (tmp_path / "one" / "secrets").iterdir()}
