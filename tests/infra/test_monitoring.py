"""Alerts and dashboard ask for metrics that the server really has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.endpoint.metrics import METRICS, OF_TORCHSERVE

MONITORING = Path(__file__).parent.parent.parent / "infra" / "monitoring"
KNOWN = {metric.name: set(metric.labels) for metric in (*METRICS, *(m for ms in OF_TORCHSERVE.values() for m in ms))}
OF_PROMETHEUS = {"up"}
OPERATORS = {"sum", "by", "rate", "absent", "unless", "on", "or", "ignoring", "group_left", "histogram_quantile"}
OF_GRAFANA = {"label_values"}


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [rule["expr"] for group in rules for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    plain = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|on|ignoring|group_left) ?\([^)]*\)', " ", expression)
    plain = plain.replace(", instance)", ")")
    words = set(re.findall(r"\b[A-Za-z_]\w*", plain)) - OPERATORS - OF_GRAFANA
    return {word for word in words if not re.match(r"e\d", word)}


@pytest.mark.parametrize("expression", expressions())
def test_the_server_has_every_metric_that_is_asked_for(expression: str) -> None:
    found = {name.removesuffix("_bucket") for name in names(expression)}
    assert found and found <= KNOWN.keys() | OF_PROMETHEUS


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_alerts_ring_when_they_should() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yaml"], cwd=MONITORING, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
