"""The time that TorchServe adds to a separation, and the cost of many callers and long songs:

    python -m pytest -s tests/benchmarks/bench_serving.py

`classic` with random weights, a real server. Ratios of one machine, the median of rounds in which rivals take turns.
"""

import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
import urllib3

from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.separator import Separator, resample
from serving.model.spec import ModelSpec
from serving.songs.request import Request
from tests.torchserve import Server, encoded, serving, stems_in, wait_until_ready
from training.config import Budget
from training.presets import classic

RATE_HZ = 44_100
SONG_S = 240
ROUNDS = 5
LONG_S = 7_200
MORE_MEMORY_BYTES = 150 * 10**6
SHORT_S = 20
CALLERS = 16
COMPANY_S = 300
"""How long many callers are there together."""


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
        "STEMWRIGHT_REQUEST_TIMEOUT_S": "8000",
        "OMP_NUM_THREADS": threads,
    }
    with serving(archive, log, environment) as server:
        wait_until_ready(server)
        yield server


def song(seconds: int, audio_format: str = "MP3") -> bytes:
    """An MP3, or a FLAC with sounds of two bits: small enough to be posted however long they are."""
    file = io.BytesIO()
    chance = np.random.default_rng(0)
    loudest = 0.1 if audio_format == "MP3" else 1.5 / 32_768
    with soundfile.SoundFile(file, "w", RATE_HZ, 2, format=audio_format) as encoder:
        for _ in range(seconds):
            encoder.write(chance.uniform(-loudest, loudest, (RATE_HZ, 2)))
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
            spectrogram = separator.stft(torch.from_numpy(at_model_rate[None]))
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=separator.engine.bfloat16):
                separator.network(spectrogram)
            total += time.perf_counter() - started
    return total


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_a_song_over_http_beside_in_process_and_the_bare_network(server: Server, archive: Path) -> None:
    separator, body = Separator.open(archive, "cpu"), song(SONG_S)
    audio, _ = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    mixture = np.ascontiguousarray(audio.T)
    request = Request.from_headers({}, separator.spec)
    separator.separate(mixture[:, : 20 * RATE_HZ], RATE_HZ)  # warms up
    visit(server, song(SHORT_S))

    windows = SONG_S / (separator.spec.chunk.length_s - separator.spec.chunk.overlap_s)
    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        network_s = network_alone_s(separator, body)
        separation_s = timed(lambda: separator.separate(mixture, RATE_HZ))
        file_to_file_s = timed(lambda: sum(map(len, request.answer(separator, body))))
        over_http = visit(server, body)
        for name, value in {
            "seconds of the network": network_s,
            "seconds of separation": separation_s,
            "seconds from file to file in process": file_to_file_s,
            "seconds over HTTP": over_http.seconds,
            "HTTP / separation (wanted 1.10)": over_http.seconds / separation_s,
            "HTTP / file to file": over_http.seconds / file_to_file_s,
            "separation / network (wanted 1.15)": separation_s / network_s,
            "first byte, in windows of separation (wanted 2)": over_http.first_byte_s / (separation_s / windows),
        }.items():
            rounds.setdefault(name, []).append(value)
    print(f"\n{torch.get_num_threads()} threads, {SONG_S} s of MP3, median (least, most) of {ROUNDS} rounds:")
    for name, values in rounds.items():
        print(f"  {name}: {statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})")
    assert over_http.answer_bytes == sum(map(len, request.answer(separator, body)))


def test_a_song_over_http_by_engine(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    body = song(SONG_S)
    times_s: dict[str, list[float]] = {"torch": [], "openvino": []}
    with ExitStack() as stack:
        servers = {}
        for engine in times_s:
            (tmp_path / engine).mkdir()
            environment = {"STEMWRIGHT_ENGINE": engine, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            servers[engine] = stack.enter_context(serving(archive, tmp_path / engine / "log", environment))
            wait_until_ready(servers[engine])
            visit(servers[engine], song(SHORT_S))
        for _ in range(ROUNDS):
            for engine, server in servers.items():
                times_s[engine].append(visit(server, body).seconds)
        named = servers["openvino"].said("engine (openvino, [^\n]*)")
    ratios = [torch_s / openvino_s for torch_s, openvino_s in zip(*times_s.values(), strict=True)]
    print(
        f"\n{torch.get_num_threads()} threads, {SONG_S} s of MP3 over HTTP, {named}: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}, {max(ratios):.2f}) times as fast as torch, which took {statistics.median(times_s['torch']):.1f} s"
    )


def test_many_callers_beside_one_at_a_time(server: Server) -> None:
    """In rounds of one song from each caller. Answers are checked when the clock stands still."""
    noise = np.random.default_rng(0)
    mixtures = [noise.uniform(-0.4, 0.4, (SHORT_S * RATE_HZ, 2)).astype(np.float32) for _ in range(CALLERS)]
    bodies = [encoded(mixture, RATE_HZ, "FLAC") for mixture in mixtures]
    answers: list[urllib3.BaseHTTPResponse] = []
    ratios, together_s = [], 0.0

    def check() -> None:
        for mixture, answer in zip(mixtures, answers, strict=True):
            assert answer.status == 200
            stems = stems_in(answer.data)
            np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], mixture, atol=1e-4)

    with ThreadPoolExecutor(CALLERS) as callers:
        while together_s < COMPANY_S:
            alone_s = timed(lambda: answers.extend(map(server.post, bodies)))
            check()
            answers.clear()
            round_s = timed(lambda: answers.extend(callers.map(server.post, bodies)))
            check()
            answers.clear()
            together_s += round_s
            ratios.append(alone_s / round_s)
    print(
        f"\n{CALLERS} callers with {SHORT_S} s each, {together_s:.0f} s, {CALLERS * len(ratios)} answers, each its caller's: "
        f"throughput {statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f}) times that of one at a time "
        f"(wanted 0.9), {CALLERS * SHORT_S * len(ratios) / together_s:.1f} seconds of audio a second"
    )


@pytest.mark.parametrize("audio_format", ["FLAC", "MP3"])
def test_a_long_song_costs_no_more_memory_than_a_short_one(audio_format: str, server: Server, spec: ModelSpec) -> None:
    visit(server, song(SONG_S, audio_format))
    bodies = song(SONG_S, audio_format), song(LONG_S, audio_format)
    short, long = (visit(server, body) for body in bodies)
    more_bytes = long.peak_bytes - short.peak_bytes
    window_s = long.seconds * (spec.chunk.length_s - spec.chunk.overlap_s) / LONG_S
    print(
        f"\n{audio_format}: worker at most {short.peak_bytes / 1e6:.0f} MB for {SONG_S} s, {long.peak_bytes / 1e6:.0f} MB for "
        f"{LONG_S} s: {more_bytes / 1e6:+.0f} MB (wanted 150 at most), with {len(bodies[1]) / 1e6:.0f} MB posted; "
        f"{long.seconds:.0f} s, first byte after {long.first_byte_s:.1f} s, the time of "
        f"{long.first_byte_s / window_s:.1f} windows (wanted 2)"
    )
    assert more_bytes < MORE_MEMORY_BYTES
