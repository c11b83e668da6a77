"""The rules of the layout: which room may import which, and the one room that some things live in."""

import ast
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVING = sorted((ROOT / "serving").rglob("*.py"))
TRAINING = sorted((ROOT / "training").rglob("*.py"))

TOP_LEVEL = {
    *("README.md", "pyproject.toml", "training", "serving", "infra", "tests", "Dockerfile.train", "Dockerfile.serve"),
    *("Makefile", "constraints.txt", "LICENSE", ".ci", ".gitignore", ".dockerignore"),
}

# A room is a folder or a module beside the folders. From the upper ones to the lower ones, as in DESIGN.
MAY_IMPORT = {
    "training/__main__": "training/commands training/run training/errors serving/version serving/errors",
    "training/commands": "training/doctor training/demo training/experiments training/run training/optimization "
    "training/evaluation training/tracking training/data training/progress training/flags "
    "training/presets training/config training/errors serving/__main__ serving/model serving/settings",
    "training/doctor": "training/preflight training/optimization training/tracking training/errors serving/endpoint "
    "serving/model serving/storage serving/version serving/errors",
    "training/demo": "training/evaluation training/data training/config training/errors serving/audio serving/storage",
    "training/preflight": "training/tracking training/errors serving/storage serving/errors",
    "training/experiments": "training/evaluation training/tracking training/data training/progress training/config "
    "training/errors serving/catalogue serving/model serving/audio",
    "training/run": "training/preflight training/optimization training/evaluation training/tracking training/checkpoints "
    "training/data training/progress training/config training/errors serving/model serving/storage "
    "serving/version serving/errors",
    "training/optimization": "training/checkpoints training/data training/progress training/config training/errors "
    "serving/model",
    "training/evaluation": "training/data training/progress training/presets training/config training/errors "
    "serving/model serving/audio",
    "training/tracking": "training/progress training/config training/errors serving/audio serving/storage",
    "training/checkpoints": "training/progress training/errors serving/storage serving/errors",
    "training/data": "training/transfer training/progress training/errors serving/model serving/audio serving/storage "
    "serving/errors",
    "training/transfer": "training/progress training/errors serving/storage serving/errors",
    "training/progress": "",
    "training/flags": "training/presets training/config training/errors serving/model",
    "training/presets": "training/config serving/model",
    "training/config": "training/errors serving/model serving/version serving/errors",
    "training/errors": "",
    "serving/__init__": "serving/client serving/model",
    "serving/__main__": "serving/page serving/endpoint serving/catalogue serving/songs serving/client serving/model "
    "serving/storage serving/settings serving/errors",
    "serving/page": "",
    "serving/endpoint": "serving/songs serving/client serving/model serving/audio serving/storage serving/settings "
    "serving/version serving/errors",
    "serving/catalogue": "serving/songs serving/model serving/audio serving/storage serving/settings serving/errors",
    "serving/songs": "serving/model serving/audio serving/storage serving/errors",
    "serving/client": "serving/songs serving/model serving/audio serving/storage serving/errors",
    "serving/model": "serving/audio serving/storage serving/settings serving/errors",
    "serving/audio": "serving/errors",
    "serving/storage": "serving/settings serving/errors",
    "serving/settings": "serving/errors",
    "serving/version": "",
    "serving/errors": "",
}

# `except Exception` hides mistakes. Each of these says why it has to catch whatever comes.
CATCH_ALL = {
    "serving/endpoint/answer.py": "a worker lives on, whatever one request did; the caller gets a 500, the log all of it",
    "serving/model/source.py": "MLflow lets the exceptions of every store behind it through; it goes on as a StorageError",
    "training/transfer/parallel.py": "the error of a thread is raised in the thread that waits for its work",
    "training/tracking/stored_run.py": "MLflow's stores, drivers and plug-ins raise what they like; the sender tries again",
}

VAGUE_WORDS = ("What", "Where", "Whether", "Who", "Of")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(paths: list[Path], package: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in paths if any(name.split(".")[0] == package for name in imports(p))}


def naming(paths: list[Path], pattern: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in paths if re.search(pattern, p.read_text())}


def room(module: str) -> str:
    """The room that a module is in, by its dotted name."""
    return "/".join([*module.split("."), "__init__"][:2])


def arrows() -> dict[str, dict[str, str]]:
    """The rooms that each room imports, anywhere in its files, inside of functions and for types, too; and a file that does."""
    found: dict[str, dict[str, str]] = {}
    for path in SERVING + TRAINING:
        name = path.relative_to(ROOT).with_suffix("")
        here = room(".".join(name.parts))
        for imported in imports(path):
            if imported.split(".")[0] in ("serving", "training") and room(imported) != here:
                found.setdefault(here, {})[room(imported)] = f"{name}.py imports {imported}"
    return found


def cycle(graph: Mapping[str, object]) -> list[str]:
    """A cycle of a graph, empty for none."""
    try:
        TopologicalSorter(graph).prepare()  # type: ignore[arg-type]
    except CycleError as error:
        return list(error.args[1])
    return []


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def catches_all(path: Path) -> bool:
    """True if an `except` of the file takes whatever comes, under any name and in any tuple."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"all"}
            if caught & {"all", "Exception", "BaseException"}:
                return True
    return False


def test_rooms_import_only_what_the_table_lets_them() -> None:
    allowed = {upper: set(lower.split()) for upper, lower in MAY_IMPORT.items()}
    wrong = [why for here, there in arrows().items() for room, why in there.items() if room not in allowed[here]]
    assert not wrong


def test_the_table_allows_nothing_that_no_room_needs() -> None:
    found = arrows()
    assert not {
        (upper, room)
        for upper, lower in MAY_IMPORT.items()
        for room in lower.split()
        if room not in found.get(upper, ())
    }


def test_neither_the_table_nor_the_rooms_have_a_cycle() -> None:
    assert not cycle({upper: lower.split() for upper, lower in MAY_IMPORT.items()})
    assert not cycle(arrows())


def test_a_cycle_would_be_found() -> None:
    assert set(cycle({"a": ["b"], "b": ["c"], "c": ["a"], "d": []})) == {"a", "b", "c"}


def test_what_catches_everything_has_a_reason() -> None:
    assert {str(path.relative_to(ROOT)) for path in SERVING + TRAINING if catches_all(path)} == CATCH_ALL.keys()


def test_docstrings_name_the_thing_first() -> None:
    paths = SERVING + TRAINING + sorted((ROOT / "tests").rglob("*.py"))
    vague = [f"{p.relative_to(ROOT)}: {text}" for p in paths for text in docstrings(p) if starts_vaguely(text)]
    assert not vague


def starts_vaguely(text: str) -> bool:
    return text.split(" ", 1)[0].rstrip(",:;") in VAGUE_WORDS


def test_serving_is_complete_without_training() -> None:
    assert importers(SERVING, "training") == set()


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("boto3", {"serving/storage/s3.py"}),
        ("botocore", {"serving/storage/s3.py"}),
        (
            "mlflow",
            {
                "serving/model/source.py",
                "training/tracking/mlflow_errors.py",
                "training/tracking/copying.py",
                "training/tracking/experiment.py",
                "training/tracking/probe.py",
                "training/tracking/registry.py",
                "training/tracking/runs.py",
                "training/tracking/sweeps.py",
                "training/tracking/stored_run.py",
                "training/tracking/system_metrics.py",
            },
        ),
        ("openvino", {"serving/model/engines/openvino.py"}),
        ("ts", {"serving/endpoint/handler.py"}),
        (
            "urllib3",
            {
                "serving/client.py",
                "serving/endpoint/by_reference.py",
                "serving/endpoint/champion.py",
                "serving/endpoint/server.py",
                "serving/storage/s3.py",
            },
        ),
        ("musdb", set()),  # its list of songs is read, its code cannot be imported where there is no ffmpeg
        (
            "av",
            {
                "serving/audio/decoder_process.py",
                "serving/audio/packets.py",
                "serving/audio/pyav.py",
                "training/data/musdb18.py",
            },
        ),
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
        (r"\btorch(\.\w+)*\._[a-z]|from torch[.\w]* import _", set()),  # private names of torch
        (r"(?<!safetensors\.)torch\.(save|load)\(", {"serving/model/starter.py"}),
    ],
)
def test_a_call_has_its_room(pattern: str, homes: set[str]) -> None:
    assert naming(SERVING + TRAINING, pattern) == homes


def test_the_top_level_is_the_designs() -> None:
    ignored = [".git", ".gitattributes", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]
    found = {p.name for p in ROOT.iterdir() if not any(fnmatch(p.name, pattern) for pattern in ignored)}
    assert found == TOP_LEVEL


def test_a_class_shares_its_name_with_no_other() -> None:
    homes: dict[str, list[str]] = {}
    for path in SERVING + TRAINING:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def test_more_than_five_arguments_are_named() -> None:
    long = set()
    for path in SERVING + TRAINING:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                positional = [argument.arg for argument in node.args.posonlyargs + node.args.args]
                if len([name for name in positional if name not in ("self", "cls")]) > 5:
                    long.add(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long
