"""The expressions of infra/monitoring, and the metrics and labels that they ask for."""

import json
import re
from pathlib import Path

import yaml

MONITORING = Path(__file__).parent.parent.parent / "infra" / "monitoring"
OF_PROMETHEUS = {"up"}
OF_SCRAPING = {"job", "instance", "gpu"}
"""Labels that Prometheus adds: its own two, and the one that infra/monitoring asks users to set."""
OPERATORS = {"sum", "by", "rate", "absent", "unless", "on", "or", "ignoring", "group_left", "histogram_quantile"}
OF_GRAFANA = {"label_values"}
GROUPING = r"\b(?:by|on|ignoring|group_left) ?\(([^)]*)\)"


def expressions() -> list[str]:
    """Those of the alerts and of the dashboard."""
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [rule["expr"] for group in rules for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    plain = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|' + GROUPING, " ", expression)
    plain = plain.replace(", instance)", ")")
    words = set(re.findall(r"\b[A-Za-z_]\w*", plain)) - OPERATORS - OF_GRAFANA
    return {word for word in words if not re.match(r"e\d", word)}


def labels(expression: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    selected = re.findall(r'(\w+) ?(?:=~|!~|!=|=) ?"', expression)
    grouped = [label for labels in re.findall(GROUPING, expression) for label in labels.split(",")]
    return {*selected, *map(str.strip, grouped)}
