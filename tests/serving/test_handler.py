"""The handler between TorchServe's own context and a separator; the worker's socket is the only stand-in."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from ts.context import Context, RequestProcessor
from ts.utils.util import list_classes_from_module

from serving import handler
from serving.archive import write_archive
from serving.handler import Handler
from serving.spec import ModelSpec


class Socket:
    """What a worker writes to."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def sendall(self, message: bytes) -> None:
        self.messages.append(bytes(message))


@pytest.fixture
def served(tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path) -> Handler:
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
    served.max_duration_s = 1
    code, _, body = refused(served, {"body": song(seconds=1.1)}, {})
    assert (code, body["error"]) == (413, "AudioTooLong")


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
    whole = served.separator.network
    served.separator.network = Failing(torch.OutOfMemoryError("CUDA out of memory"), good_windows=0)
    code, _, body = refused(served, {"body": song()}, {})
    assert (code, body["error"]) == (503, "ServerError")
    served.separator.network = whole
    assert served.handle([{"body": song()}], context_for({})) == [b""]


def test_a_bug_is_logged_and_not_told(served: Handler, caplog: pytest.LogCaptureFixture) -> None:
    served.separator.network = Failing(ZeroDivisionError("secret"), good_windows=0)
    with caplog.at_level(logging.ERROR):
        code, phrase, body = refused(served, {"body": song()}, {})
    assert (code, phrase, body["error"]) == (500, "Internal Server Error", "StemwrightError")
    assert "secret" not in body["message"]
    assert "ZeroDivisionError: secret" in caplog.text


def test_an_answer_that_has_begun_is_cut_not_finished(served: Handler) -> None:
    served.separator.network = Failing(ZeroDivisionError("late"), good_windows=2)
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
    assert served.max_duration_s == 7
