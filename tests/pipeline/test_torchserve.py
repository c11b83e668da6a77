"""The server as it runs: a real TorchServe on an archive with random weights, asked over HTTP."""

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import urllib3

from serving.client import Client
from serving.model.separator import Separator
from serving.songs.fact_sheet import FactSheet
from serving.songs.request import Request
from tests.infra.monitoring import OF_PROMETHEUS, OF_SCRAPING, expressions, labels, names
from tests.torchserve import (
    MAX_DURATION_S,
    SPEC,
    Server,
    command,
    encoded,
    metrics,
    request,
    serving,
    stems_in,
    wait_for,
    wait_until_ready,
)

pytestmark = pytest.mark.slow


def test_a_song_becomes_stems_that_sum_to_it(server: Server, song: bytes, mixture: np.ndarray) -> None:
    answer = server.post(song)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/zip")
    stems = stems_in(answer.data)
    assert list(stems) == ["vocals", "accompaniment"]
    assert all(stem.shape == mixture.shape for stem in stems.values())
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], mixture, atol=1e-4)


def test_the_log_has_no_warnings_of_what_nobody_here_can_mend(server: Server) -> None:
    assert not [line for line in server.log.read_text().splitlines() if "WARNING" in line or "nvidia-smi" in line]


def test_the_process_that_watches_java_holds_no_torch(server: Server) -> None:
    libraries = {Path(file.path).name for file in psutil.Process(server.process.pid).memory_maps()}
    assert libraries and not [name for name in libraries if "torch" in name]


def test_one_stem_is_a_file_of_its_own(server: Server, song: bytes, mixture: np.ndarray) -> None:
    answer = server.post(song, accept="audio/flac", x_stems="vocals")
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["content-disposition"] == 'attachment; filename="vocals.flac"'
    vocals, rate_hz = soundfile.read(io.BytesIO(answer.data))
    assert (rate_hz, vocals.shape) == (22_050, mixture.shape)


def test_a_form_is_as_good_as_a_body(server: Server, song: bytes) -> None:
    form = request("POST", server.endpoint, fields={"song": ("song.wav", song)}, timeout=60)
    assert form.status == 200
    by_form, by_body = stems_in(form.data), stems_in(server.post(song).data)
    assert all(np.array_equal(by_form[stem], by_body[stem]) for stem in by_body)


@pytest.mark.parametrize("audio_format", ["FLAC", "OGG", "MP3"])
def test_other_formats_go_in(server: Server, mixture: np.ndarray, audio_format: str) -> None:
    stems = stems_in(server.post(encoded(mixture, audio_format=audio_format)).data)
    assert stems["vocals"].shape == mixture.shape


def test_the_answer_is_the_one_that_the_archive_gives_in_process(server: Server, archive: Path, song: bytes) -> None:
    wanted = Request.from_headers({"accept": "application/zip, audio/flac"}, SPEC)
    here = b"".join(wanted.answer(Separator.open(archive, "cpu", os.environ["STEMWRIGHT_ENGINE"]), song))
    there = server.post(song, accept="application/zip, audio/flac").data
    with zipfile.ZipFile(io.BytesIO(here)) as mine, zipfile.ZipFile(io.BytesIO(there)) as theirs:
        *stems, sheet = mine.namelist()
        assert [*stems, sheet] == theirs.namelist() == ["vocals.flac", "accompaniment.flac", "stems.json"]
        assert all(mine.read(name) == theirs.read(name) for name in stems)
        mine_told, theirs_told = (FactSheet.from_json(archive.read(sheet)) for archive in (mine, theirs))
    assert mine_told.files == theirs_told.files
    assert mine_told.model == theirs_told.model and len(theirs_told.model.weights_sha256) == 64
    assert theirs_told.song.sha256 == hashlib.sha256(song).hexdigest()
    assert set(theirs_told.work_s) == {"decode", "separate", "encode"}


def test_requests_wait_for_each_other(server: Server, song: bytes) -> None:
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(server.post, [song] * 4))
    assert [answer.status for answer in answers] == [200] * 4
    assert len({stems_in(answer.data)["vocals"].tobytes() for answer in answers}) == 1


NOISE = np.random.default_rng(1).uniform(-0.5, 0.5, (8_000, 1))
BAD_REQUESTS = {
    "a stem that is not there": (encoded(NOISE), {"x_stems": "drums"}, 400, "RequestError"),
    "a type that is not there": (encoded(NOISE), {"accept": "image/png"}, 400, "RequestError"),
    "too long": (encoded(np.zeros((8_000 * MAX_DURATION_S + 1, 1)), 8_000, "FLAC"), {}, 413, "AudioTooLong"),
    "nothing": (b"", {}, 415, "UnsupportedAudio"),
    "text": (b"hello", {"content_type": "text/plain"}, 415, "UnsupportedAudio"),
    "JSON": (b'{"instances": [1]}', {"content_type": "application/json"}, 400, "RequestError"),
    "bytes of no format": (bytes(range(256)) * 999, {}, 415, "UnsupportedAudio"),
    "no samples": (encoded(NOISE[:0]), {}, 422, "AudioError"),
    "samples that are no numbers": (encoded(NOISE * np.nan, subtype="FLOAT"), {}, 422, "AudioError"),
    "half a file": (encoded(NOISE, audio_format="FLAC")[:4_000], {}, 422, "AudioError"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_bad_input_gets_a_sentence_and_costs_no_worker(server: Server, what: str) -> None:
    body, headers, status, error = BAD_REQUESTS[what]
    worker = server.worker_pid()
    answer = server.post(body, **headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    told = answer.json()
    assert told["error"] == error
    assert len(told["message"].split()) > 4
    assert server.worker_pid() == worker
    assert server.post(encoded(NOISE)).status == 200


def test_a_request_over_the_limit_is_refused(server: Server) -> None:
    assert server.post(bytes(11_000_000)).status == 413
    assert server.post(encoded(NOISE)).status == 200


def facts(server: Server) -> dict[str, Any]:
    address = f"http://127.0.0.1:{server.management_port}/models/stemwright?customized=true"
    told: dict[str, Any] = request("GET", address, timeout=10).json()[0]["customizedMetadata"]
    return told


def test_the_origin_is_told_on_the_management_port_alone(server: Server, archive: Path) -> None:
    inspected = subprocess.run(command("inspect", str(archive)), capture_output=True, check=True)
    told = facts(server)
    assert told["weights_sha256"] == json.loads(inspected.stdout)["weights_sha256"]
    assert (told["origin"], told["device"]) == ({"run": "r1"}, "cpu")
    public = {"name", "version", "weights_sha256", "stems", "offered", "sample_rate_hz", "formats", "qualities"}
    asked = request("GET", server.endpoint, headers={"Describe": "True"}, timeout=10).json()
    assert asked == {name: told[name] for name in public}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "invocations",
        "models/stemwright/invoke",
        "stemwright/predict",
        "predictions/stemwright/2",
        "predictions/stemwright",
    ],
)
def test_no_way_into_the_public_port_gives_the_origin(path: str, method: str, server: Server) -> None:
    head = f"{method} /{path} HTTP/1.0\r\nDescribe: True\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    for more, body in (("", ""), (f"{form}Content-Length: 7\r\n", "--x--\r\n"), ("Content-Length: 0\r\n", "")):
        with socket.create_connection(("127.0.0.1", int(server.port)), timeout=10) as caller:
            caller.sendall(f"{head}{more}\r\n{body}".encode())
            told = caller.recv(100_000)
        assert b"HTTP/1.1" in told
        assert b'"origin"' not in told and b'"r1"' not in told


SECRETS = (b"Secret Song", b"SECRETBODY", b"secretbody")
UNREADABLE = {
    "a form with an unknown encoding": (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="Secret Song.wav"\r\n'
        b"Content-Transfer-Encoding: SECRETBODY\r\n\r\nSECRETBODY\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
    ),
    "a file that curl calls a form": (b"SECRETBODY=%zzSECRETBODY", "application/x-www-form-urlencoded"),
    "half a form": (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="Secret Song.wav"\r\n\r\nSECRETBODY',
        "multipart/form-data; boundary=x",
    ),
}


def test_nothing_of_a_song_or_its_name_is_logged(server: Server) -> None:
    for body, content_type in UNREADABLE.values():
        assert server.post(body, content_type=content_type).status >= 400
    for path in (
        "Secret%20Song.wav",
        "predictions/stemwright/Secret%20Song.wav",
        "predictions/stemwright?Secret%20Song",
    ):
        request("PUT", f"http://127.0.0.1:{server.port}/{path}", body=b"SECRETBODY", timeout=10)
    server.post(encoded(NOISE), x_request_id="after", content_disposition='attachment; filename="Secret Song.wav"')
    record(server, "after")
    log = server.log.read_bytes().replace(b"%20", b" ")
    assert log.count(b"a request could not be read") >= 2
    for secret in SECRETS:
        assert secret not in log


def test_a_page_of_the_origin_that_is_set_may_ask_and_no_other_is_named(server: Server) -> None:
    preflight = {"Origin": "https://songs.example.com", "Access-Control-Request-Method": "POST"}
    answer = request("OPTIONS", server.endpoint, headers=preflight, timeout=10)
    assert answer.status == 200
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"x-stems", "accept", "x-bit-depth", "x-quality", "content-disposition", "content-type"} <= set(allowed)
    for got in (answer, server.post(encoded(NOISE), origin="https://evil.example.com"), server.post(b"no song")):
        assert got.headers["access-control-allow-origin"] == "https://songs.example.com"
    assert "X-Correlation-Id" in server.post(encoded(NOISE)).headers["access-control-expose-headers"]


def test_a_packed_body_is_unpacked(server: Server, song: bytes) -> None:
    plain = stems_in(server.post(song).data)
    packed = stems_in(server.post(gzip.compress(song), content_encoding="gzip").data)
    assert all(np.array_equal(packed[stem], plain[stem]) for stem in plain)
    assert server.post(gzip.compress(bytes(11_000_000)), content_encoding="gzip").status == 413
    refused = server.post(song, content_encoding="br")
    assert (refused.status, refused.json()["error"]) == (415, "UnsupportedAudio")


def test_metrics_tell_what_was_done(server: Server, song: bytes, mixture: np.ndarray) -> None:
    def counted() -> dict[str, float]:
        """The metrics once all that was asked so far is in them: a worker's arrive in order, some time after its answers."""
        refused = 'stemwright_requests_total{status="415",}'
        before = metrics(server).get(refused, 0)
        assert server.post(b"hello").status == 415
        wait_for(lambda: metrics(server).get(refused, 0) > before)
        return metrics(server)

    server.post(song)
    before = counted()
    assert server.post(song).status == 200
    after = counted()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['stemwright_requests_total{status="200",}'] == 1
    assert grown["stemwright_audio_seconds_total"] == pytest.approx(len(mixture) / 22_050)
    assert grown["stemwright_windows_total"] == 3
    assert grown["stemwright_real_time_factor_count"] == 1
    for part in ("decode", "separate", "encode"):
        assert 0 < grown[f'stemwright_work_seconds_total{{part="{part}",}}'] < 10
    assert any(name.startswith("ts_queue_latency_microseconds") for name in after)
    (info,) = [name for name in after if name.startswith("stemwright_model_info")]
    assert facts(server)["weights_sha256"] in info


def test_alerts_and_dashboard_ask_for_metrics_that_a_server_has(server: Server, song: bytes) -> None:
    assert server.post(song).status == 200 and server.post(b"hello").status == 415
    wait_for(lambda: 'stemwright_requests_total{status="415",}' in metrics(server))
    port = server.said(r"^ready: .*metrics port (\d+)")
    text = request("GET", f"http://127.0.0.1:{port}/metrics", timeout=10).data.decode()
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | set(re.findall(r"^\w+_bucket", text, re.MULTILINE))
    known = set(re.findall(r'(\w+)="', text)) | OF_SCRAPING
    for expression in expressions():
        assert names(expression) <= there | OF_PROMETHEUS, expression
        assert labels(expression) <= known, expression


def test_a_request_is_found_again_by_its_id(server: Server) -> None:
    answer = server.post(b"hello", x_request_id="from-the-caller")
    assert answer.headers["x-correlation-id"] == answer.json()["request_id"] == "from-the-caller"
    wait_for(lambda: '"from-the-caller"' in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if '"from-the-caller"' in line]
    assert json.loads(line)["status"] == 415


@contextmanager
def asking(server: Server, song: bytes, request_id: str) -> Iterator[socket.socket]:
    """A caller who has sent a song and may read or leave."""
    with socket.create_connection(("127.0.0.1", int(server.port))) as caller:
        head = "POST /predictions/stemwright HTTP/1.1\r\nHost: x\r\nX-Quality: best\r\n"
        head += f"X-Request-Id: {request_id}\r\n"
        caller.sendall(f"{head}Content-Length: {len(song)}\r\n\r\n".encode() + song)
        yield caller


def record(server: Server, request_id: str) -> dict[str, Any]:
    """The record of a request in the log, once it is there."""
    wanted = f'"request_id": "{request_id}"'
    wait_for(lambda: wanted in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if wanted in line]
    facts: dict[str, Any] = json.loads(line)
    return facts


@pytest.fixture(scope="module")
def long_song(mixture: np.ndarray) -> bytes:
    """Almost as long as the server allows, and soft so that it is small."""
    return encoded(np.tile(0.001 * mixture, (26, 1)), audio_format="FLAC")


def test_the_work_for_a_caller_who_has_gone_ends(server: Server, long_song: bytes) -> None:
    with asking(server, long_song, "gone") as caller:
        caller.recv(100)
    assert record(server, "gone")["status"] == 499
    assert server.post(encoded(NOISE)).status == 200


def test_the_work_for_a_caller_who_has_gone_ends_while_others_wait(server: Server, long_song: bytes) -> None:
    with ExitStack() as stays:
        with asking(server, long_song, "leaves") as caller:
            caller.recv(100)
            stays.enter_context(asking(server, long_song, "stays"))
            with asking(server, long_song, "leaves-the-queue"):
                pass
        whole = record(server, "stays")
        assert whole["status"] == 200, whole
        for gone in ("leaves-the-queue", "leaves"):
            ended = record(server, gone)
            assert (ended["status"], ended["seconds"] < whole["seconds"]) == (499, True), (ended, whole)


def test_no_credential_reaches_a_worker_or_the_log(server: Server) -> None:
    assert "AWS_SECRET_ACCESS_KEY=***" in server.log.read_text()
    assert "hush-hush" not in server.log.read_text()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        assert "AWS_SECRET_ACCESS_KEY" not in process.environ()


def test_a_client_learns_the_stems(server: Server) -> None:
    assert Client(server.endpoint).stems() == ("vocals", "accompaniment")


def test_the_command_line_gives_the_same_files_over_http_and_here(
    server: Server, archive: Path, song: bytes, tmp_path: Path
) -> None:
    (tmp_path / "song.wav").write_bytes(song)
    options = ["--stems", "accompaniment", "--format", "flac", "--out"]
    for where in (["--server", server.endpoint, *options, "http"], ["--model", str(archive), *options, "here"]):
        subprocess.run(command("separate", "song.wav", *where), cwd=tmp_path, check=True)
    assert [path.name for path in (tmp_path / "http" / "song").glob("*.flac")] == ["accompaniment.flac"]
    here, there = (tmp_path / where / "song" / "accompaniment.flac" for where in ("here", "http"))
    assert here.read_bytes() == there.read_bytes()


@contextmanager
def begun(server: Server, song: bytes) -> Iterator[urllib3.BaseHTTPResponse]:
    """An answer whose first bytes are here, so a worker certainly works on it. `data` waits for the rest."""
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("POST", server.endpoint, body=song, preload_content=False, timeout=60)
        assert answer.status == 200, answer.data
        yield answer


def test_two_servers_run_side_by_side_and_sigterm_finishes_and_leaves_nothing(
    server: Server, archive: Path, mixture: np.ndarray, tmp_path: Path
) -> None:
    with serving(archive, tmp_path / "log", {}) as second:
        wait_until_ready(second)
        ready = psutil.Process().environ() | {"STEMWRIGHT_MANAGEMENT_PORT": second.management_port}
        assert subprocess.run(command("ready"), env=ready, check=False).returncode == 0
        family = psutil.Process(second.process.pid).children(recursive=True)
        folder = Path(second.said(r"Listening on port: (\S+)/temporary/"))
        assert len(family) == 2, "Java and a worker"
        assert folder.is_dir()

        long = encoded(np.tile(mixture, (12, 1)), audio_format="FLAC")
        with begun(second, long) as answer:
            second.process.terminate()
            wait_for(lambda: "\nstopping: " in second.log.read_text())
            late = second.post(encoded(NOISE))
            assert (late.status, late.headers["retry-after"]) == (503, "5"), late.data
            assert "stopping" in late.json()["message"]
            whole = stems_in(answer.data)
        assert whole["vocals"].shape == (12 * len(mixture), 2), "what was in work is finished"
        assert second.process.wait(timeout=20) == 0
        assert_gone(family)
        assert not folder.exists()
        assert subprocess.run(command("ready"), env=ready, check=False).returncode == 1
    assert server.post(encoded(NOISE)).status == 200, "the first runs on"


def assert_gone(processes: list[psutil.Process]) -> None:
    """Ended within a second; a process that was killed may wait for its new parent to notice."""
    for _ in range(20):
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return
        time.sleep(0.05)
    raise AssertionError(alive)


def failure(model: Path, log: Path, **environment: str) -> str:
    """The last line of a server that cannot start and must say so soon."""
    started = time.monotonic()
    with serving(model, log, environment) as failing:
        assert failing.process.wait(timeout=120) == 1, log.read_text()
    assert time.monotonic() - started < 40
    return log.read_text().splitlines()[-1]


def test_a_missing_archive_fails_at_once(tmp_path: Path) -> None:
    line = failure(tmp_path / "missing.mar", tmp_path / "log")
    assert re.fullmatch(r"ArchiveError: there is no model archive at .*/missing\.mar: check the path", line)


def test_another_zip_is_no_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.mar", "w") as other:
        other.writestr("README", "hello")
    line = failure(tmp_path / "other.mar", tmp_path / "log")
    assert line == "ArchiveError: other.mar is no model archive of Stemwright: it has no separator.json"


def test_damaged_weights_fail_in_seconds_with_the_reason(archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mar"
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(damaged, "w") as bad:
        for name in good.namelist():
            data = bytearray(good.read(name))
            if name == "weights.safetensors":
                data[-1] ^= 1
            bad.writestr(name, bytes(data))
    line = failure(damaged, tmp_path / "log")
    assert re.match(r"ServerError: the model cannot be loaded: the weights in .* have sha256", line), line


def test_a_gpu_that_is_not_there_is_one_sentence(archive: Path, tmp_path: Path) -> None:
    line = failure(archive, tmp_path / "log", STEMWRIGHT_DEVICE="cuda:77")
    assert line.startswith("ServerError: the model cannot be loaded: there is no cuda:77 here, torch sees "), line


def test_a_port_in_use_is_named(server: Server, archive: Path, tmp_path: Path) -> None:
    taken = server.management_port
    line = failure(archive, tmp_path / "log", STEMWRIGHT_MANAGEMENT_PORT=taken)
    assert line.startswith(f"ServerError: cannot listen on 127.0.0.1:{taken}")
