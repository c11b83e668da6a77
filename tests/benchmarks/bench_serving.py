"""What TorchServe adds to a separation, and what many callers cost: python -m pytest -q -s tests/benchmarks/bench_serving.py

A 4-minute stereo song, `classic` with random weights, a real server. Ratios of one run on one machine.
"""

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
import urllib3

from serving.archive import write_archive
from serving.networks import build
from serving.request import Request
from serving.separator import Separator, resample, to_rows
from serving.spec import ModelSpec
from tests.torchserve import Server, serving, wait_until_ready
from training.config import Budget, classic

RATE_HZ = 44_100
SONG_S = 240
LONG_S = 7_200
"""Half an hour of work for a CPU; a third of it shows as well that memory does not depend on the length."""
SHORT_S = 20
CALLERS = 16


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return classic("", Budget(steps=1)).model


@pytest.fixture(scope="module")
def archive(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "classic.mar"
    torch.manual_seed(0)
    write_archive(path, spec, build(spec), {})
    return path


@pytest.fixture(scope="module")
def server(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    threads = str(torch.get_num_threads())
    environment = {
        "STEMWRIGHT_QUEUE_SIZE": str(CALLERS),
        "STEMWRIGHT_MAX_DURATION_S": "8000",
        "OMP_NUM_THREADS": threads,
    }
    with serving(archive, log, environment) as server:
        wait_until_ready(server)
        yield server


def song(seconds: int, seed: int = 0) -> bytes:
    """An MP3, which is small enough to be posted however long it is."""
    file = io.BytesIO()
    chance = np.random.default_rng(seed)
    with soundfile.SoundFile(file, "w", RATE_HZ, 2, format="MP3") as encoder:
        for _ in range(seconds):
            encoder.write(chance.uniform(-0.1, 0.1, (RATE_HZ, 2)))
    return file.getvalue()


@dataclass
class Visit:
    """One song through the server: when its bytes came, and the most memory that the worker held."""

    seconds: float = 0.0
    first_byte_s: float = 0.0
    answer_bytes: int = 0
    peak_bytes: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self, worker: psutil.Process) -> None:
        while not self.done.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, worker.memory_info().rss)


def visit(server: Server, body: bytes) -> Visit:
    """Ask, and throw the answer away as it comes."""
    found = Visit()
    watcher = threading.Thread(target=found.watch, args=(psutil.Process(server.worker_pid()),))
    watcher.start()
    started = time.perf_counter()
    try:
        with urllib3.PoolManager(retries=False) as pool:
            answer = pool.request("POST", server.endpoint, body=body, timeout=3_000, preload_content=False)
            assert answer.status == 200
            for piece in answer.stream(1 << 20):
                found.first_byte_s = found.first_byte_s or time.perf_counter() - started
                found.answer_bytes += len(piece)
    finally:
        found.done.set()
        watcher.join()
    found.seconds = time.perf_counter() - started
    return found


def network_alone_s(separator: Separator, body: bytes) -> float:
    """Seconds of the bare network on the spectrograms of the windows that the song is cut into."""
    audio, _ = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    chunk = separator.spec.chunk
    hop, length = (chunk.length_s - chunk.overlap_s) * RATE_HZ, chunk.length_s * RATE_HZ
    starts = range(0, max(1, len(audio) - chunk.overlap_s * RATE_HZ), hop)
    total = 0.0
    with torch.inference_mode():
        for start in starts:
            window = np.ascontiguousarray(audio[start : start + length].T)
            at_model_rate = resample(window, RATE_HZ, separator.spec.audio.sample_rate_hz)
            spectrogram = separator.stft(torch.from_numpy(to_rows(at_model_rate, separator.spec.audio.channels)))
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=separator.bfloat16):
                separator.network(spectrogram)
            total += time.perf_counter() - started
    return total


def test_a_song_over_http_beside_in_process_and_the_bare_network(server: Server, archive: Path) -> None:
    separator, body = Separator.open(archive, "cpu"), song(SONG_S)
    audio, _ = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    mixture = np.ascontiguousarray(audio.T)
    separator.separate(mixture[:, : 20 * RATE_HZ], RATE_HZ)  # warms up
    visit(server, song(SHORT_S))

    started = time.perf_counter()
    separator.separate(mixture, RATE_HZ)
    in_process_s = time.perf_counter() - started
    network_s = network_alone_s(separator, body)
    request = Request.from_headers({}, separator.spec)
    started = time.perf_counter()
    answer_bytes = sum(map(len, request.answer(separator, body)))
    file_to_file_s = time.perf_counter() - started
    over_http = visit(server, body)

    windows = SONG_S / (separator.spec.chunk.length_s - separator.spec.chunk.overlap_s)
    first_in_windows = over_http.first_byte_s / (in_process_s / windows)
    print(
        f"\n{torch.get_num_threads()} threads, {SONG_S} s of MP3: HTTP {over_http.seconds:.1f} s, file to file in process "
        f"{file_to_file_s:.1f} s, separation {in_process_s:.1f} s, network {network_s:.1f} s: "
        f"HTTP / separation {over_http.seconds / in_process_s:.3f} (wanted 1.10), HTTP / file to file "
        f"{over_http.seconds / file_to_file_s:.3f}, separation / network {in_process_s / network_s:.3f} (wanted 1.15), "
        f"first byte after {first_in_windows:.2f} windows (wanted 2)"
    )
    assert over_http.answer_bytes == answer_bytes


def test_many_callers_beside_one_at_a_time(server: Server) -> None:
    bodies = [song(SHORT_S, seed) for seed in range(CALLERS)]
    started = time.perf_counter()
    for body in bodies:
        visit(server, body)
    alone_s = time.perf_counter() - started
    started = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda body: visit(server, body), bodies))
    together_s = time.perf_counter() - started
    print(
        f"\n{CALLERS} callers with {SHORT_S} s each: throughput {alone_s / together_s:.3f} times that of one at a time "
        f"(wanted 0.9), {CALLERS * SHORT_S / together_s:.1f} seconds of audio a second"
    )


def test_memory_of_a_long_song_beside_a_short_one(server: Server) -> None:
    visit(server, song(SONG_S))
    short, long = (visit(server, song(seconds)) for seconds in (SONG_S, LONG_S))
    more_mb = (long.peak_bytes - short.peak_bytes) / 1e6
    print(
        f"\nworker at most {short.peak_bytes / 1e6:.0f} MB for {SONG_S} s, {long.peak_bytes / 1e6:.0f} MB for {LONG_S} s: "
        f"{more_mb:+.0f} MB, of them {(len(song(LONG_S)) - len(song(SONG_S))) / 1e6:.0f} MB the song as it was sent"
    )
