"""infra/compose.yaml as a team uses it: passwords, object store, MLflow on PostgreSQL, a run, the server behind its proxy.

nginx, PostgreSQL and the object store are stand-ins from Debian's packages; Prometheus and Grafana are left out.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from tests.containers.engine import ROOT, build, docker, needs_docker
from tests.torchserve import encoded, stems_in, wait_for

LOOPBACK = "127.0.0.2"  # beside whatever else is published on this machine
STAND_INS = Path(__file__).parent / "stand_ins"
pytestmark = [*needs_docker, pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose")]


@dataclass(frozen=True)
class Team:
    """The services of one `make up`."""

    infra: Path

    def compose(self, *arguments: str) -> str:
        files = ["-f", str(self.infra / "compose.yaml"), "-f", str(STAND_INS / "compose.yaml")]
        command = [
            "docker-compose",
            "--project-name",
            "stemwright-test",
            *files,
            "--env-file",
            str(self.infra / ".env"),
        ]
        environment = {**os.environ, "PUBLISH": LOOPBACK}
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self.logs(command)}"
        return done.stdout

    def logs(self, command: list[str]) -> str:
        return subprocess.run([*command, "logs", "--tail", "15"], capture_output=True, text=True).stdout[-6000:]

    def password(self, name: str) -> str:
        return next(line.split("=", 1)[1] for line in (self.infra / ".env").read_text().splitlines() if name in line)

    def mlflow(self, path: str, **fields: Any) -> urllib3.BaseHTTPResponse:
        named = urllib3.make_headers(basic_auth=f"admin:{self.password('MLFLOW_TRACKING_PASSWORD')}")
        with urllib3.PoolManager(retries=False) as pool:
            address = f"http://{LOOPBACK}:5000{path}"
            return pool.request("POST", address, headers={"Host": "localhost:5000", **named}, json=fields, timeout=60)

    def mlflow_answers(self) -> bool:
        """True once a real question is answered: the first one takes longer than /health."""
        try:
            return self.mlflow("/api/2.0/mlflow/experiments/search", max_results=1).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def tracked(self) -> dict[str, Any]:
        """The one run that MLflow has."""
        experiments = self.mlflow("/api/2.0/mlflow/experiments/search", max_results=10).json()["experiments"]
        ids = [experiment["experiment_id"] for experiment in experiments]
        (run,) = self.mlflow("/api/2.0/mlflow/runs/search", experiment_ids=ids).json()["runs"]
        return dict(run)

    def proxy(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """An answer over TLS, by the certificate that `make up` wrote."""
        certificate = str(self.infra / "secrets" / "tls.crt")
        names = {"server_hostname": "localhost", "assert_hostname": "localhost"}
        with urllib3.HTTPSConnectionPool(LOOPBACK, 8443, ca_certs=certificate, retries=False, **names) as pool:
            return pool.request(method, path, timeout=60, **options)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    for which in ("train", "serve"):
        build(which)
    docker("build", "--network", "host", "-t", "stemwright-stand-ins", str(STAND_INS))
    folder = tmp_path_factory.mktemp("team")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns(".env", "secrets"))
    (folder / "serving").symlink_to(ROOT / "serving")
    subprocess.run([sys.executable, ROOT / "infra" / "make_secrets.py", folder / "infra"], check=True)
    team = Team(folder / "infra")
    try:
        team.compose("up", "-d", "--no-build", "buckets", "database")
        yield team
    finally:
        team.compose("--profile", "serve", "down", "--volumes", "--timeout", "5")


def test_a_run_is_tracked_and_its_model_is_served_behind_the_proxy(team: Team) -> None:
    songs = ["songs", "/runs/songs", "--train", "3", "--test", "1", "--seconds", "4"]
    team.compose("run", "--rm", "--no-deps", "train", *songs)
    team.compose("up", "-d", "--no-build", "mlflow")
    wait_for(team.mlflow_answers, timeout_s=120)
    team.mlflow(
        "/api/2.0/mlflow/experiments/create", name="stemwright"
    )  # slow at first; a run gives MLflow eight seconds
    short = ["--steps", "2", "--batch-size", "1", "--crop-s", "1", "--validations", "1", "--valid-excerpt-s", "2"]
    to = ["--run-dir", "/runs/first", "--publish", "s3://stemwright/models/first.mar"]
    team.compose("run", "--rm", "train", "train", "--data", "/runs/songs", *to, *short)

    if team.tracked()["info"]["status"] != "FINISHED":  # MLflow was too slow for the run's end: sync brings the rest
        team.compose("run", "--rm", "train", "sync", "--run-dir", "/runs/first", "--to", "http://mlflow:5000")
    tracked = team.tracked()
    assert tracked["info"]["status"] == "FINISHED"
    assert "best/usdr_db" in {metric["key"] for metric in tracked["data"]["metrics"]}
    assert ".mar\n" in team.compose("exec", "-T", "store", "find", "/data/mlflow/artifacts"), (
        "the archive is not in the store"
    )

    team.compose("--profile", "serve", "up", "-d", "--no-build")
    page = team.proxy("GET", "/")
    assert page.status == 200 and b"<title>" in page.data
    key = (team.infra / "secrets" / "keys.map").read_text().split('"')[1]
    mixture = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * 44_100, 2)).astype(np.float32)
    song = encoded(mixture, 44_100)
    assert team.proxy("POST", "/predictions/stemwright", body=song).status == 401
    answer = team.proxy("POST", "/predictions/stemwright", body=song, headers={"X-Api-Key": key})
    assert answer.status == 200, answer.data[:1000]
    np.testing.assert_allclose(sum(stems_in(answer.data).values()), mixture, atol=1e-4)
