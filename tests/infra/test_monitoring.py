"""Alerts and dashboard ask for metrics that the server knows; test_torchserve.py compares them with those of a real one."""

import shutil
import subprocess

import pytest

from serving.endpoint.metrics import METRICS, OF_TORCHSERVE
from tests.infra.monitoring import MONITORING, OF_PROMETHEUS, expressions, names

KNOWN = {metric.name: set(metric.labels) for metric in (*METRICS, *(m for ms in OF_TORCHSERVE.values() for m in ms))}


@pytest.mark.parametrize("expression", expressions())
def test_the_server_has_every_metric_that_is_asked_for(expression: str) -> None:
    found = {name.removesuffix("_bucket") for name in names(expression)}
    assert found and found <= KNOWN.keys() | OF_PROMETHEUS


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
@pytest.mark.parametrize("check", ["test rules rules_test.yaml", "check config prometheus.yaml"])
def test_alerts_ring_when_they_should_and_prometheus_reads_its_settings(check: str) -> None:
    done = subprocess.run(["promtool", *check.split()], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
