"""infra/compose.yaml as a team uses it: `make up`, and the commands of infra/README.md.

nginx, PostgreSQL, Prometheus and the object store are stand-ins from Debian's and Python's packages, as no registry gives their
images here. Grafana has none and is left out. Where `docker compose` is not there, Debian's docker-compose 1.29 does the same.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from tests.containers.engine import ROOT, build, docker, engine_answers, needs_docker
from tests.readme import commands
from tests.torchserve import encoded, stems_in, wait_for
from training.demo.songs import write_songs

LOOPBACK = "127.0.0.2"  # beside whatever else is published on this machine
PROJECT = "stemwright-test"
STAND_INS = Path(__file__).parent / "stand_ins"
SHORT = "--steps 2 --batch-size 1 --crop-s 1 --validations 1 --valid-excerpt-s 2"
HAS_PLUGIN = engine_answers() and docker("compose", "version", check=False).returncode == 0
COMPOSE = ["docker", "compose"] if HAS_PLUGIN else ["docker-compose"]
NO_COMPOSE = not HAS_PLUGIN and shutil.which("docker-compose") is None
pytestmark = [*needs_docker, pytest.mark.skipif(NO_COMPOSE, reason="no Docker Compose")]


@dataclass(frozen=True)
class Team:
    """A checkout of its own, with the services of one `make up`."""

    folder: Path

    @property
    def command(self) -> list[str]:
        files = ["-f", str(self.folder / "infra" / "compose.yaml"), "-f", str(STAND_INS / "compose.yaml")]
        return [*COMPOSE, "--project-name", PROJECT, *files]

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PUBLISH": LOOPBACK}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        command = [*self.command, "logs", "--tail", "15"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout[-6000:]

    def compose(self, *arguments: str) -> str:
        return self.run(*self.command, *arguments)

    def as_readme_says(self, line: str) -> str:
        """A line of infra/README.md with this project's files, folder, and a short run."""
        words = shlex.split(line.replace("$PWD", str(self.folder)).replace("--minutes 30", SHORT))
        assert words[:4] == ["docker", "compose", "-f", "infra/compose.yaml"]
        return self.compose(*words[4:])

    def make_up(self) -> str:
        return self.run("make", "up", f"COMPOSE={shlex.join(self.command)}")

    def containers(self) -> dict[str, dict[str, Any]]:
        """The engine's facts of each running service."""
        ids = docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").stdout.split()
        facts = json.loads(docker("inspect", *ids).stdout)
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in facts}

    def published(self) -> dict[str, set[str]]:
        """The addresses at which a service answers on this machine."""
        ports = {name: one["NetworkSettings"]["Ports"] for name, one in self.containers().items()}
        doors = {name: [door for found in own.values() for door in found or []] for name, own in ports.items()}
        return {name: {f"{door['HostIp']}:{door['HostPort']}" for door in own} for name, own in doors.items() if own}

    def password(self, name: str) -> str:
        """One that `make up` wrote."""
        lines = (self.folder / "infra" / ".env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith(name))

    def mlflow(self, path: str, **fields: Any) -> Any:
        """An answer of MLflow to its admin."""
        named = urllib3.make_headers(basic_auth=f"admin:{self.password('MLFLOW_TRACKING_PASSWORD')}")
        with urllib3.PoolManager(retries=False) as pool:
            address = f"http://{LOOPBACK}:5000/api/2.0/mlflow{path}"
            answer = pool.request("POST", address, headers={"Host": "localhost:5000", **named}, json=fields, timeout=60)
        assert answer.status == 200, answer.data[:1000]
        return answer.json()

    def proxy(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """An answer over TLS, by the certificate that `make up` wrote."""
        certificate = str(self.folder / "infra" / "secrets" / "tls.crt")
        names = {"server_hostname": "localhost", "assert_hostname": "localhost"}
        with urllib3.HTTPSConnectionPool(LOOPBACK, 8443, ca_certs=certificate, retries=False, **names) as pool:
            return pool.request(method, path, timeout=60, **options)

    def scraped(self, query: str) -> list[str]:
        """The series that Prometheus has for a query, a line each."""
        asked = ["exec", "-T", "prometheus", "promtool", "query", "instant", "http://localhost:9090", query]
        return [line for line in self.compose(*asked).splitlines() if "=>" in line]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    for which in ("train", "serve"):
        build(which)
    docker("build", "--network", "host", "-t", "stemwright-stand-ins", str(STAND_INS))
    team = Team(tmp_path_factory.mktemp("team"))
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        ".dockerignore",
        "Dockerfile.train",
        "Dockerfile.serve",
    ):
        shutil.copy(ROOT / name, team.folder)
    for name in ("infra", "serving", "training"):
        ours = shutil.ignore_patterns(".env", "secrets", "__pycache__")
        shutil.copytree(ROOT / name, team.folder / name, ignore=ours)
    try:
        team.make_up()
        yield team
    finally:
        profiles = ["--profile", "train", "--profile", "serve", "--profile", "monitoring"]
        team.compose(*profiles, "down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="module")
def trained(team: Team) -> Team:
    """After the first run, as infra/README.md says it."""
    push, train, _ = commands("sh compose", "infra/README.md")
    write_songs(team.folder / "songs", train=3, test=1, seconds=4, seed=0)
    team.as_readme_says(push)
    team.as_readme_says(train)
    return team


def test_a_second_make_up_changes_nothing(team: Team) -> None:
    before = {name: one["Id"] for name, one in team.containers().items()}
    passwords = (team.folder / "infra" / ".env").read_text()
    assert before.keys() == {"store", "database", "mlflow"}
    team.make_up()
    assert {name: one["Id"] for name, one in team.containers().items()} == before
    assert (team.folder / "infra" / ".env").read_text() == passwords


def test_a_run_is_in_mlflow_and_its_archive_in_the_store(trained: Team) -> None:
    ids = [found["experiment_id"] for found in trained.mlflow("/experiments/search", max_results=10)["experiments"]]
    (run,) = trained.mlflow("/runs/search", experiment_ids=ids)["runs"]
    assert run["info"]["status"] == "FINISHED"
    assert "best/usdr_db" in {metric["key"] for metric in run["data"]["metrics"]}
    stored = trained.compose("exec", "-T", "store", "find", "/data", "-name", "*.mar").split()
    assert "/data/stemwright/models/first.mar" in stored
    assert [path for path in stored if path.startswith("/data/mlflow/artifacts/")], "MLflow has no archive"
    tables = ["psql", "-h", "/run/postgresql", "-U", "mlflow", "-Atc", "SELECT count(*) FROM runs"]
    assert (
        trained.compose(
            "exec", "-T", "-e", f"PGPASSWORD={trained.password('DATABASE_PASSWORD')}", "database", *tables
        ).strip()
        == "1"
    )


def test_its_model_is_served_behind_the_proxy_and_watched(trained: Team) -> None:
    _, _, serve = commands("sh compose", "infra/README.md")
    trained.as_readme_says(serve)
    trained.compose("--profile", "monitoring", "up", "-d", "prometheus")
    assert trained.published() == {"mlflow": {f"{LOOPBACK}:5000"}, "proxy": {f"{LOOPBACK}:8443"}}

    page, described = trained.proxy("GET", "/"), trained.proxy("GET", "/openapi.yaml")
    assert page.status == 200 and b"<title>" in page.data
    assert described.data == (ROOT / "serving" / "endpoint" / "openapi.yaml").read_bytes()

    mixture = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * 44_100, 2)).astype(np.float32)
    song = encoded(mixture, 44_100)
    assert trained.proxy("POST", "/predictions/stemwright", body=song).status == 401
    key = (trained.folder / "infra" / "secrets" / "keys.map").read_text().split('"')[1]
    answer = trained.proxy("POST", "/predictions/stemwright", body=song, headers={"X-Api-Key": key})
    assert answer.status == 200, answer.data[:1000]
    np.testing.assert_allclose(sum(stems_in(answer.data).values()), mixture, atol=1e-4)

    wait_for(lambda: bool(trained.scraped('up{job="stemwright"} == 1')), timeout_s=60)
    wait_for(lambda: bool(trained.scraped('stemwright_requests_total{status="200"} > 0')), timeout_s=60)
