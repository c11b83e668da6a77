"""A device that was asked for is taken or refused in one sentence; without a wish both programs say what they took."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from serving.__main__ import main as serving_main
from serving.errors import ServerError
from serving.model.archive import write_archive
from serving.model.device import device_of
from serving.model.spec import ModelSpec
from tests.encoders import encode, song
from training.__main__ import main
from training.commands import options

pytestmark = pytest.mark.slow


def test_what_is_there_is_taken() -> None:
    usual = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of(None) == device_of("auto") == usual
    assert device_of("auto", "cpu") == device_of("cpu") == torch.device("cpu")
    assert options.chosen_device(argparse.Namespace(device=None)).type == usual.type


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"cuda:{torch.cuda.device_count()}", f"there is no .* here, torch sees {torch.cuda.device_count()} GPUs"),
        ("cuda:77", "there is no cuda:77 here, torch sees .* GPUs"),
        ("gpu", "there is no device gpu"),
        ("mps", r"mps cannot be used here \(.+\)"),
    ],
)
def test_what_is_not_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ServerError, match=f"^{reason}: set STEMWRIGHT_DEVICE to auto"):
        device_of(name, "cpu")
    with pytest.raises(ServerError, match=f"^{reason}: set --device to auto"):
        options.chosen_device(argparse.Namespace(device=name))


def test_both_programs_say_it(
    tiny_spec: ModelSpec,
    tiny_network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = str(tmp_path / "tiny.mar")
    write_archive(Path(archive), tiny_spec, tiny_network, {})
    (tmp_path / "song.wav").write_bytes(encode(song(seconds=0.5), "wav", "pcm_s16le"))
    separate = ["separate", str(tmp_path / "song.wav"), "--model", archive, "--out", str(tmp_path / "stems")]
    missing = f"cuda:{torch.cuda.device_count()}"
    monkeypatch.setenv("STEMWRIGHT_DEVICE", missing)
    assert serving_main(separate) == 1
    monkeypatch.setenv("STEMWRIGHT_DEVICE", "auto")
    assert main(["tour", str(tmp_path / "song.wav"), "--model", archive, "--device", missing]) == 1
    assert capsys.readouterr().err.count(f"there is no {missing} here") == 2
    assert main(["doctor", "--model", archive, "--device", missing]) == 1
    assert f"there is no {missing} here" in capsys.readouterr().out
    assert main(["doctor", "--device", "gpu"]) == 1
    assert capsys.readouterr().err == "error: there is no device gpu: set --device to auto, cpu or cuda:0\n"

    monkeypatch.setenv("STEMWRIGHT_DEVICE", "cpu")
    assert serving_main(separate) == 0
    assert f"separating on cpu, {torch.get_num_threads()} threads, torch, " in capsys.readouterr().err
    assert main(["tour", str(tmp_path / "song.wav"), "--model", archive, "--out", str(tmp_path / "tour")]) == 0
    assert "computing on " in capsys.readouterr().err
