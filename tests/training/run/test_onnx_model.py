"""A model that has left Python gives the stems of `separate`, in an environment that has no torch."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from packaging.requirements import Requirement
from torch import nn

from serving.model import starter_spec
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec
from training.__main__ import main
from training.run import onnx_model

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytestmark = pytest.mark.slow

RATE_HZ = 11_025
FRONT_END = {"stft": StftSpec(256, 64), "audio": AudioSpec(8_000), "chunk": ChunkSpec(4, 1)}
BANDED = {
    **{"band_bins": (64, 64), "band_widths": (2, 4)},
    **{"channels": (4, 8), "paths": 1, "units": 4, "memory_inputs": 8, "memory_units": 4},
}
SPLEETER = replace(starter_spec.SPEC, dimensions={"bins": 64, "piece_frames": 64, "channels": (4, 8)}, **FRONT_END)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed packages that example.py asks for and what they require, and no other."""
    folder = tmp_path_factory.mktemp("site")
    wanted, seen = ["numpy", "onnxruntime", "soundfile", "soxr"], set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            package = distribution(name)
            for file in package.files or ():
                top = file.parts[0]
                if top not in ("..", "__pycache__") and not (folder / top).is_symlink():
                    (folder / top).symlink_to(Path(str(package.locate_file(top))))
            needed = (Requirement(line) for line in package.requires or ())
            wanted += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


def python(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Python with the packages of one folder and no others."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def spec_of(architecture: str, tiny_spec: ModelSpec, tiny_banded: tuple[ModelSpec, nn.Module]) -> ModelSpec:
    if architecture == "classic":
        return replace(tiny_spec, dimensions={**tiny_spec.dimensions, "channels": (4, 8)}, **FRONT_END)
    if architecture == "banded":
        return replace(tiny_banded[0], dimensions=BANDED, **FRONT_END)
    return SPLEETER


def distance_db(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()))


@pytest.mark.parametrize(
    "architecture",
    [
        "spleeter",
        pytest.param("classic", marks=pytest.mark.long),  # LSTMs take the exporter half a minute and more
        pytest.param("banded", marks=pytest.mark.long),
    ],
)
def test_its_program_gives_the_stems_of_separate(
    architecture: str,
    tiny_spec: ModelSpec,
    tiny_banded: tuple[ModelSpec, nn.Module],
    without_torch: Path,
    tmp_path: Path,
) -> None:
    spec = spec_of(architecture, tiny_spec, tiny_banded)
    torch.manual_seed(0)
    write_archive(tmp_path / "x.mar", spec, build(spec).eval(), {})
    assert main(["export", "--model", str(tmp_path / "x.mar"), "--onnx", str(tmp_path / "x")]) == 0
    program = tmp_path / "x" / "example.py"
    assert len(program.read_text().splitlines()) <= 200

    checked = python(without_torch, program, tmp_path / "x" / "vectors.npz")
    assert checked.returncode == 0, checked.stderr
    distances = [float(line.split()[1]) for line in checked.stdout.splitlines()]
    assert len(distances) == 1 + len(spec.stems)
    assert min(distances) > 90, checked.stdout

    separator = Separator.open(tmp_path / "x.mar", "cpu")
    for channels, seconds in ((1, 1), (2, 9), (3, 2)):
        song = np.random.default_rng(channels).uniform(-0.5, 0.5, (channels, seconds * RATE_HZ + 7)).astype(np.float32)
        soundfile.write(tmp_path / "song.wav", song.T, RATE_HZ, subtype="FLOAT")
        done = python(without_torch, program, tmp_path / "song.wav", tmp_path / "stems")
        assert done.returncode == 0, done.stderr
        for stem, wanted in separator.separate(song, RATE_HZ).items():
            found, _ = soundfile.read(tmp_path / "stems" / f"{stem}.wav", dtype="float32", always_2d=True)
            assert distance_db(found.T, wanted) > 90, (channels, stem)


def test_the_environment_of_the_program_has_no_torch(without_torch: Path) -> None:
    assert "No module named 'torch'" in python(without_torch, "-c", "import torch").stderr
    assert "No module named 'serving'" in python(without_torch, "-c", "import serving").stderr


def test_a_full_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "x.mar").write_bytes(b"")
    assert main(["export", "--model", str(tmp_path / "x.mar"), "--onnx", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_model_that_strays_from_torch_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = onnx_model.gains
    monkeypatch.setattr(onnx_model, "gains", lambda network, x: 1.001 * gains(network, x))
    write_archive(tmp_path / "x.mar", SPLEETER, build(SPLEETER).eval(), {})
    assert main(["export", "--model", str(tmp_path / "x.mar"), "--onnx", str(tmp_path / "x")]) == 1
    assert "60.0 dB from torch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]


def test_words_that_contradict_each_other_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "x.mar", "--to", str(tmp_path / "y.mar")]) == 1
    assert "--onnx" in capsys.readouterr().err
    assert main(["export", "--model", "x.mar", "--onnx", str(tmp_path / "x"), "--register"]) == 1
    assert "leave them out" in capsys.readouterr().err
