"""A server that follows `models:/name@champion`, over promotions, a rollback and an archive that is broken."""

import signal
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch

from serving.model.archive import read_archive, write_archive
from serving.model.networks import build
from tests.stores import new_store
from tests.torchserve import SPEC, encoded, serving, wait_for
from tests.training.tracking.test_tracking import FACTS
from training.tracking.registry import find_version, point, point_back, register
from training.tracking.tracking import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.long]

NAME = "stemwright-2stems"
CALLERS = 4


def version(uri: str, folder: Path, seed: int, broken: bool = False) -> str:
    """Register an archive of a tiny network; the first letters of its weights' sha256."""
    torch.manual_seed(seed)
    with Tracker.open(uri, folder / f"run-{seed}", None) as tracker:
        path = folder / f"run-{seed}" / "tiny.mar"
        write_archive(path, SPEC, build(SPEC), origin={})
        weights = read_archive(path).weights_sha256[:12]
        if broken:
            with zipfile.ZipFile(path) as whole, zipfile.ZipFile(path.with_name("broken.mar"), "w") as members:
                for name in whole.namelist():
                    content = whole.read(name)
                    members.writestr(name, content[:-1] + b"?" if name == "weights.safetensors" else content)
            path.with_name("broken.mar").replace(path)
        tracker.archive(path, replace(FACTS, scores={}))
    register(uri, str(tracker.run_id))
    return weights


def own_bytes(process: psutil.Process) -> int:
    """Memory that would be free without a process and its children."""
    return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True)))


def test_promotions_and_a_rollback_drop_no_request(tmp_path: Path, times: Callable[[int, int], int]) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(uri)
    weights = [version(uri, tmp_path, seed) for seed in (1, 2, 3, 4)]
    version(uri, tmp_path, 5, broken=True)
    champions = [find_version(uri, f"models:/{NAME}/{number}") for number in (1, 2, 3, 4, 5)]
    point(uri, champions[0], "champion", "the first")

    with serving(f"models:/{NAME}@champion", tmp_path / "log", {"MLFLOW_TRACKING_URI": uri}) as server:
        wait_for(lambda: "\nready: " in server.log.read_text(), timeout_s=240)  # a registry first, then a server
        song = encoded(np.random.default_rng(0).uniform(-0.1, 0.1, (4_000, 2)), 8_000)
        answers: Counter[tuple[Any, ...]] = Counter()
        ended = threading.Event()

        def call() -> None:
            while not ended.is_set():
                answer = server.post(song)
                assert not answer.data or answer.data.startswith(b"PK")
                made_by = (answer.headers.get(f"X-Model-{fact}", "") for fact in ("Version", "Weights"))
                answers[answer.status, *made_by] += 1

        def change(words: str) -> None:
            """Ask the server to look, and wait until it says these words and has answered some more."""
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: words in server.log.read_text(), timeout_s=120)
            at_least = answers.total() + times(20, 200)
            wait_for(lambda: answers.total() >= at_least, timeout_s=120)

        callers = [threading.Thread(target=call) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            java = psutil.Process(server.process.pid)
            workers = len(java.children(recursive=True))
            bytes_before = own_bytes(java)
            wait_for(lambda: answers.total() >= times(20, 200), timeout_s=120)
            for before, champion in pairwise(champions[:4]):
                point(uri, champion, "champion", "better")
                change(f"serving version {champion.number} of models:/{NAME}@champion in place of {before.number}")
            point_back(uri, NAME, "champion")
            change(f"serving version 3 of models:/{NAME}@champion in place of 4")
            point(uri, champions[4], "champion", "broken")
            change(f"version 3 of models:/{NAME}@champion stays: ")
        finally:
            ended.set()
            for caller in callers:
                caller.join()
        assert {status for status, *_ in answers} == {200}, answers
        assert {tuple(made_by) for _, *made_by in answers} == set(zip("1234", weights, strict=True)), answers
        assert server.post(song).headers["X-Model-Weights"] == weights[2], "the broken one changed nothing"
        assert len(java.children(recursive=True)) == workers, "one model in memory"
        assert own_bytes(java) < 1.3 * bytes_before
        assert answers.total() >= times(100, 1000)
        print(f"{answers.total()} answers, all 200: {dict(answers)}")
    assert not java.is_running()
