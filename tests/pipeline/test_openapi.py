"""serving/endpoint/openapi.yaml says what the server does: every status, header and kind of body in it is provoked."""

import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
import yaml

from tests import nginx
from tests.nginx import proxy_of
from tests.torchserve import Server, encoded, request, serving, wait_until_ready

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]
ROOT = Path(__file__).parent.parent.parent
CONTRACT = yaml.safe_load((ROOT / "serving" / "endpoint" / "openapi.yaml").read_text())
OPERATION = CONTRACT["paths"]["/predictions/stemwright"]["post"]
SILENCE = encoded(np.zeros((8_000, 1)), 8_000, "FLAC")
STEM = {"X-Stems": "vocals"}
JSON = {"Content-Type": "application/json"}
OURS = re.compile("content-disposition|retry-after|x-(?!content-type-options|frame-options).*")
"""Headers that a caller may read; the others are HTTP's own, or tell browsers to be careful."""
Seen = dict[str, list[urllib3.BaseHTTPResponse]]


@pytest.fixture(scope="module")
def small(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with room for one request beside the one in work, and a bucket that nobody answers for."""
    environment = {
        **{"STEMWRIGHT_QUEUE_SIZE": "1", "STEMWRIGHT_MAX_DURATION_S": "120", "STEMWRIGHT_ALLOWED_URIS": "s3://songs/"},
        **{"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        **{"AWS_MAX_ATTEMPTS": "1"},
    }
    with serving(archive, tmp_path_factory.mktemp("small") / "log", environment) as server:
        wait_until_ready(server)
        yield server


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or what it refers to."""
    if "$ref" not in node:
        return node
    place: dict[str, Any] = CONTRACT
    for name in node["$ref"].removeprefix("#/").split("/"):
        place = place[name]
    return place


def promised(with_proxy: bool) -> dict[str, dict[str, Any]]:
    """The responses of the contract by status, as they are before or behind the proxy."""
    responses = {status: resolved(response) for status, response in OPERATION["responses"].items()}
    return {status: response for status, response in responses.items() if with_proxy or not response.get("x-proxy")}


def provoke(ask: Callable[..., urllib3.BaseHTTPResponse]) -> Seen:
    """Answers by status."""
    song = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2)), 8_000)
    named = {"Content-Disposition": "attachment; filename=a.wav", **STEM}
    answers = [
        ask(song, **{"Accept": kind, **named})
        for kind in OPERATION["responses"]["200"]["content"]
        if "json" not in kind
    ]
    answers += [
        ask(b"", describe="true"),
        ask(song, **{"X-Stems": "kazoo"}),
        ask(b'{"uri": "s3://others/a.wav"}', **JSON),
        ask(b'{"uri": "s3://songs/a.wav"}', **JSON),
        ask(encoded(np.zeros((8_000 * 121, 1)), 8_000, "FLAC")),
        ask(b"buy milk"),
        ask(encoded(np.zeros((0, 1)), 8_000)),
        *busy(ask),
    ]
    seen: Seen = {}
    for answer in answers:
        seen.setdefault(str(answer.status), []).append(answer)
    return seen


def busy(ask: Callable[..., urllib3.BaseHTTPResponse]) -> list[urllib3.BaseHTTPResponse]:
    """The refusals among the answers to many songs at once."""
    long = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, (8_000 * 100, 1)), 8_000, "FLAC")
    answers: list[urllib3.BaseHTTPResponse] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(long, **{"X-Quality": "best"}))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer.status != 200]


def check(seen: Seen, with_proxy: bool) -> None:
    responses = promised(with_proxy)
    assert seen.keys() == responses.keys()
    for status, answers in seen.items():
        kinds = {answer.headers.get("content-type", "").split(";")[0] for answer in answers}
        assert kinds == set(responses[status]["content"]), status
        headers = {name: resolved(header) for name, header in responses[status].get("headers", {}).items()}
        for name, header in headers.items():
            if with_proxy or not header.get("x-proxy"):
                assert any(name in answer.headers for answer in answers), f"{name} of {status}"
        if with_proxy:
            told_of = {name.lower() for answer in answers for name in answer.headers if OURS.fullmatch(name.lower())}
            assert told_of == {name.lower() for name in headers}, status
        schema = resolved(responses[status]["content"].get("application/json", {}).get("schema", {}))
        forms = [set(resolved(form)["required"]) for form in schema.get("oneOf", [schema])]
        told = [a.json().keys() for a in answers if a.headers.get("content-type", "").startswith("application/json")]
        assert all(any(form <= facts for form in forms) for facts in told), (status, told)
        if with_proxy:
            assert all(any(form <= facts for facts in told) for form in forms), (status, told)


def test_the_server_keeps_the_contract(small: Server) -> None:
    def ask(body: bytes, **headers: str) -> urllib3.BaseHTTPResponse:
        return request(
            "POST", small.endpoint, body=body, headers={"Content-Type": "audio/x-any", **headers}, timeout=60
        )

    check(provoke(ask), with_proxy=False)


@pytest.mark.skipif(not nginx.IS_THERE, reason="nginx or openssl is not installed")
def test_the_proxy_keeps_the_contract(small: Server, tmp_path: Path) -> None:
    with proxy_of(small.port, tmp_path) as proxy:

        def ask(body: bytes, **headers: str) -> urllib3.BaseHTTPResponse:
            return nginx.post(proxy, body, **{"Content-Type": "audio/x-any", **headers})

        seen = provoke(ask)
        seen["401"] = [nginx.post(proxy, SILENCE, key=None)]
    (tmp_path / "away").mkdir()
    with proxy_of(9, tmp_path / "away") as proxy:
        seen["503"].append(nginx.post(proxy, SILENCE))
    check(seen, with_proxy=True)


def test_every_request_header_is_understood(small: Server) -> None:
    """Each example and each value of each header in the contract is taken."""
    for parameter in OPERATION["parameters"]:
        schema, examples = parameter["schema"], [each["value"] for each in parameter.get("examples", {}).values()]
        for value in [*schema.get("enum", []), *examples, *filter(None, [parameter.get("example")])]:
            answer = small.post(
                SILENCE, **{parameter["name"]: value, **({} if parameter["name"] == "X-Stems" else STEM)}
            )
            assert answer.status == 200, (parameter["name"], value, answer.data)


def test_a_zip_ends_with_a_fact_sheet(small: Server) -> None:
    with zipfile.ZipFile(io.BytesIO(small.post(SILENCE).data)) as members:
        assert members.namelist()[-1] == "stems.json"
        sheet = json.loads(members.read("stems.json"))
    schema = CONTRACT["components"]["schemas"]["FactSheet"]
    parts = schema["properties"]
    assert set(schema["required"]) == sheet.keys()
    for part in ("song", "model", "work_s"):
        assert set(parts[part]["required"]) <= sheet[part].keys()
    assert sheet["files"].keys() == set(sheet["stems"])
    for file in sheet["files"].values():
        assert set(parts["files"]["additionalProperties"]["required"]) <= file.keys()


def test_ping_answers_as_its_example(small: Server) -> None:
    answer = request("GET", re.sub("/predictions/.*", "/ping", small.endpoint), timeout=10)
    assert (
        answer.json() == CONTRACT["paths"]["/ping"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    )
