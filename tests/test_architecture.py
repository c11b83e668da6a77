"""The rules of the layout: which package may import which, and the one room that some things live in."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVING = sorted((ROOT / "serving").rglob("*.py"))
TRAINING = sorted((ROOT / "training").rglob("*.py"))

TOP_LEVEL = {
    *("README.md", "pyproject.toml", "training", "serving", "infra", "tests", "Dockerfile.train", "Dockerfile.serve"),
    *("Makefile", "constraints.txt", "LICENSE", ".ci", ".gitignore", ".dockerignore"),
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(paths: list[Path], package: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in paths if any(name.split(".")[0] == package for name in imports(p))}


def naming(paths: list[Path], pattern: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in paths if re.search(pattern, p.read_text())}


def test_serving_is_complete_without_training() -> None:
    assert importers(SERVING, "training") == set()


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("boto3", {"serving/storage/storage.py"}),
        ("botocore", {"serving/storage/storage.py"}),
        ("mlflow", {"serving/model/source.py", "training/tracking/tracking.py", "training/tracking/registry.py"}),
        ("openvino", {"serving/model/engines/openvino.py"}),
        ("ts", {"serving/endpoint/handler.py"}),
        (
            "urllib3",
            {
                "serving/client.py",
                "serving/endpoint/by_reference.py",
                "serving/endpoint/server.py",
                "serving/storage/storage.py",
            },
        ),
        ("musdb", {"training/data/musdb18.py"}),
        ("pickle", set()),
    ],
)
def test_a_package_has_its_room(package: str, homes: set[str]) -> None:
    assert importers(SERVING + TRAINING, package) == homes


@pytest.mark.parametrize(
    ("pattern", "homes"),
    [
        (r"(torch|librosa)\.i?stft\(", {"serving/model/spectrogram.py"}),
        (r"os\.(environ|getenv)", {"serving/settings.py", "training/config.py"}),
        (r"(?<!safetensors\.)torch\.(save|load)\(", {"serving/model/starter.py"}),
        (r"except( Base)?Exception:|except:", set()),
    ],
)
def test_a_call_has_its_room(pattern: str, homes: set[str]) -> None:
    assert naming(SERVING + TRAINING, pattern) == homes


def test_the_top_level_is_the_designs() -> None:
    ignored = [".git", ".gitattributes", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]
    found = {p.name for p in ROOT.iterdir() if not any(fnmatch(p.name, pattern) for pattern in ignored)}
    assert found == TOP_LEVEL
