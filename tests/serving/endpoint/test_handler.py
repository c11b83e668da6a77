"""The handler between TorchServe's own context and a separator; the worker's socket is the only stand-in."""

import io
import json
import logging
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from ts.context import Context, RequestProcessor
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import list_classes_from_module

from serving.endpoint import handler
from serving.endpoint.drain import Drain
from serving.endpoint.handler import Handler
from serving.errors import AudioTooLong
from serving.model.archive import write_archive
from serving.model.spec import ModelSpec

pytestmark = pytest.mark.slow


class Socket:
    """The socket that a worker writes to."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def sendall(self, message: bytes) -> None:
        self.messages.append(bytes(message))


@pytest.fixture
def served(tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handler:
    """Run by torch, so that a test can put another network in."""
    monkeypatch.setenv("STEMWRIGHT_ENGINE", "torch")
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {"run": "r1"})
    served = Handler()
    served.initialize(context_for({}, tmp_path / "tiny.mar"))
    return served


def context_for(headers: dict[str, Any], model_dir: Path = Path()) -> Context:
    context = Context("stemwright", str(model_dir), {}, 1, None, "0.12.0")
    context.request_ids = {0: "r"}
    context.request_processor = [RequestProcessor(headers)]
    context.cl_socket = Socket()
    return context


def song(seconds: float = 0.5) -> bytes:
    wav = io.BytesIO()
    soundfile.write(wav, np.random.default_rng(0).uniform(-0.5, 0.5, int(8_000 * seconds)), 8_000, format="WAV")
    return wav.getvalue()


def refused(served: Handler, data: dict[str, Any], headers: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Status, reason phrase and JSON body of an answer that must be an error and nothing else."""
    context = context_for(headers)
    body = served.handle([data], context)
    assert not context.cl_socket.messages
    assert context.get_response_content_type(0) == "application/json"
    status, phrase = context.get_response_status(0)
    return status, phrase, json.loads(body[0])


def test_torchserve_finds_exactly_one_class() -> None:
    assert list_classes_from_module(handler) == [Handler]


def test_a_song_is_answered_in_pieces(served: Handler) -> None:
    context = context_for({"ACCEPT": "audio/wav", "x-stems": "vocals", "song": {"content-type": "audio/wav"}})
    assert served.handle([{"song": bytearray(song(seconds=70))}], context) == [b""]
    assert context.get_response_status(0) == (200, "OK")
    assert context.get_response_content_type(0) == "audio/wav"
    assert context.get_response_headers(0)["Content-Disposition"] == 'attachment; filename="vocals.wav"'
    assert len(context.cl_socket.messages) > 1
    assert max(map(len, context.cl_socket.messages)) < 1.1 * 2**20, "TorchServe's own limit is 6.5 MB"


def test_describe_tells_the_facts_of_the_archive(served: Handler, tiny_spec: ModelSpec) -> None:
    (facts,) = served.handle([{}], context_for({"describe": "True"}))
    assert facts["stems"] == tiny_spec.stems
    assert facts["origin"] == {"run": "r1"}
    assert len(facts["weights_sha256"]) == 64
    assert json.dumps(facts)


@pytest.mark.parametrize(
    ("data", "headers", "status", "error"),
    [
        ({"body": song()}, {"X-Stems": "drums"}, (400, "Bad Request"), "RequestError"),
        ({"body": song()}, {"Accept": "image/png"}, (400, "Bad Request"), "RequestError"),
        ({"a": song(), "b": b"x"}, {}, (400, "Bad Request"), "RequestError"),
        ({"body": "text, decoded"}, {}, (415, "Unsupported Media Type"), "UnsupportedAudio"),
        ({"body": {"json": "decoded"}}, {}, (415, "Unsupported Media Type"), "UnsupportedAudio"),
        ({}, {}, (415, "Unsupported Media Type"), "UnsupportedAudio"),
        ({"body": song(0)}, {}, (422, "Unprocessable Entity"), "AudioError"),
    ],
)
def test_a_bad_request_gets_a_sentence(
    served: Handler, data: dict[str, Any], headers: dict[str, str], status: tuple[int, str], error: str
) -> None:
    code, phrase, body = refused(served, data, headers)
    assert ((code, phrase), body["error"]) == (status, error)
    assert len(body["message"].split()) > 4


def test_a_song_over_the_limit_is_refused(served: Handler) -> None:
    served.settings = replace(served.settings, max_duration_s=1)
    code, _, body = refused(served, {"body": song(seconds=1.1)}, {})
    assert (code, body["error"]) == (413, "AudioTooLong")


def record(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith('{"request_id"')]
    return dict(json.loads(line))


def test_a_request_leaves_one_line_without_anything_of_the_song(
    served: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"X-Request-Id": "abc.1", "Content-Disposition": 'attachment; filename="My Song.wav"'}
    context = context_for(headers)
    with caplog.at_level(logging.INFO):
        served.handle([{"body": song(seconds=2)}], context)
    told = record(caplog)
    assert (told["request_id"], told["status"], told["audio_s"], told["channels"]) == ("abc.1", 200, 2.0, 1)
    assert told["sent_bytes"] == sum(map(len, [*context.cl_socket.messages])) - overhead(context)
    parts = told["decode_s"] + told["separate_s"] + told["encode_s"]
    assert 0 < parts <= told["seconds"] + 0.002  # each is rounded to a thousandth
    assert "My Song" not in caplog.text
    assert context.get_response_headers(0)["X-Correlation-Id"] == "abc.1"


def overhead(context: Context) -> int:
    """The bytes that the protocol of TorchServe adds to the pieces."""
    empty = context_for({})
    empty.request_processor = context.request_processor
    send_intermediate_predict_response([b""], empty.request_ids, "Intermediate", 200, empty)
    return len(empty.cl_socket.messages[0]) * len(context.cl_socket.messages)


@pytest.mark.parametrize("named", ["", "two words", "x" * 129, 'quo"te', "new\nline", "ü"])
def test_an_id_that_is_no_plain_word_is_replaced(served: Handler, named: str) -> None:
    context = context_for({"X-Request-Id": named})
    (body,) = served.handle([{"body": b"no audio"}], context)
    assert json.loads(body)["request_id"] == context.get_response_headers(0)["X-Correlation-Id"] == "r"


def test_work_beyond_the_time_limit_is_refused_and_costs_nothing_more(served: Handler) -> None:
    served.settings = replace(served.settings, request_timeout_s=0)
    code, _, body = refused(served, {"body": song()}, {})
    assert (code, body["error"]) == (413, "AudioTooLong")
    assert "more than 0 s of work" in body["message"]
    served.settings = replace(served.settings, request_timeout_s=60)
    assert served.handle([{"body": song()}], context_for({})) == [b""]


def test_an_answer_over_its_time_is_cut_between_windows(served: Handler) -> None:
    context = context_for({"Accept": "audio/wav", "X-Stems": "vocals"})
    slow = served.separator.engine.network

    class Slow(nn.Module):
        def forward(self, mixture: torch.Tensor) -> torch.Tensor:
            time.sleep(0.3)
            stems: torch.Tensor = slow(mixture)
            return stems

    served.separator.engine.network = Slow()
    served.settings = replace(served.settings, request_timeout_s=1)
    with pytest.raises(AudioTooLong):
        served.handle([{"body": song(seconds=150)}], context)
    assert context.cl_socket.messages, "what was ready has been sent"


def test_a_server_that_stops_finishes_what_it_works_on_and_refuses_the_rest(served: Handler, tmp_path: Path) -> None:
    served.drain = Drain(tmp_path)
    network = served.separator.engine.network
    at_work = threading.Event()

    class Announcing(nn.Module):
        def forward(self, mixture: torch.Tensor) -> torch.Tensor:
            at_work.set()
            time.sleep(0.2)
            stems: torch.Tensor = network(mixture)
            return stems

    served.separator.engine.network = Announcing()
    answers: list[list[Any]] = []
    worker = threading.Thread(target=lambda: answers.append(served.handle([{"body": song()}], context_for({}))))
    assert served.drain.quiet
    worker.start()
    assert at_work.wait(timeout=10)
    served.drain.begin()
    assert not served.drain.quiet
    worker.join()
    assert answers == [[b""]], "finished, not refused"

    context = context_for({})
    (body,) = served.handle([{"body": song()}], context)
    assert context.get_response_status(0)[0] == 503
    assert context.get_response_headers(0)["Retry-After"] == "5"
    assert "stopping" in json.loads(body)["message"]
    assert not served.drain.quiet, "it may still be on its way"
    time.sleep(1.1)
    assert served.drain.quiet


def test_no_caller_at_all_ends_the_work(served: Handler, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:  # a port that nobody is connected to
        closed.bind(("127.0.0.1", 0))
        served.settings = replace(served.settings, run_dir=str(tmp_path), http_port=closed.getsockname()[1])
        context = context_for({})
        with caplog.at_level(logging.INFO):
            assert served.handle([{"body": song(seconds=70)}], context) == [b""]
    assert context.cl_socket.messages == []
    assert record(caplog)["status"] == 499


class Failing(nn.Module):
    """A network that breaks when its turn has come."""

    def __init__(self, error: Exception, good_windows: int) -> None:
        super().__init__()
        self.error, self.good_windows = error, good_windows

    def forward(self, mixture: torch.Tensor) -> torch.Tensor:
        self.good_windows -= 1
        if self.good_windows < 0:
            raise self.error
        return torch.stack([mixture, torch.zeros_like(mixture)], dim=1)


def test_a_full_device_costs_one_request(served: Handler) -> None:
    whole = served.separator.engine.network
    served.separator.engine.network = Failing(torch.OutOfMemoryError("CUDA out of memory"), good_windows=0)
    code, _, body = refused(served, {"body": song()}, {})
    assert (code, body["error"]) == (503, "ServerError")
    served.separator.engine.network = whole
    assert served.handle([{"body": song()}], context_for({})) == [b""]


def test_a_bug_is_logged_and_not_told(served: Handler, caplog: pytest.LogCaptureFixture) -> None:
    served.separator.engine.network = Failing(ZeroDivisionError("secret"), good_windows=0)
    with caplog.at_level(logging.ERROR):
        code, phrase, body = refused(served, {"body": song()}, {})
    assert (code, phrase, body["error"]) == (500, "Internal Server Error", "StemwrightError")
    assert "secret" not in body["message"]
    assert "ZeroDivisionError: secret" in caplog.text


def test_an_answer_that_has_begun_is_cut_not_finished(served: Handler) -> None:
    served.separator.engine.network = Failing(ZeroDivisionError("late"), good_windows=2)
    context = context_for({"Accept": "audio/wav", "X-Stems": "vocals"})
    with pytest.raises(ZeroDivisionError):
        served.handle([{"body": song(seconds=100)}], context)
    assert context.cl_socket.messages


def test_the_worker_takes_its_limit_from_the_environment(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    monkeypatch.setenv("STEMWRIGHT_MAX_DURATION_S", "7")
    served = Handler()
    served.initialize(context_for({}, tmp_path / "tiny.mar"))
    assert served.settings.max_duration_s == 7
