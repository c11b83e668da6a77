"""Engines: each gives torch's stems, and the choice among them is told."""

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from serving.errors import EngineError
from serving.model.archive import write_archive
from serving.model.engines import start_engine
from serving.model.networks import Network, build
from serving.model.processor import computes_bfloat16
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, ModelSpec, StftSpec
from serving.model.starter_spec import SPEC
from tests.stubs import Share

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")

openvino = pytest.importorskip("serving.model.engines.openvino", reason="the extra openvino is not installed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def mixtures(batch: int, channels: int, bins: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + frames)
    return torch.randn(batch, channels, bins, frames, dtype=torch.complex64, generator=generator)


@pytest.fixture
def small() -> tuple[ModelSpec, Network]:
    """The starter with hardly any weights: of all networks it is converted in the least time."""
    dimensions = {"bins": 64, "piece_frames": 64, "channels": (4, 8)}
    spec = replace(SPEC, dimensions=dimensions, stft=StftSpec(512, 128), audio=AudioSpec(8_000))
    torch.manual_seed(0)
    return spec, build(spec).eval()


@pytest.fixture(params=["classic", "banded"])
def model(
    request: pytest.FixtureRequest,
    tiny_spec: ModelSpec,
    tiny_network: Network,
    tiny_banded: tuple[ModelSpec, Network],
) -> tuple[ModelSpec, Network]:
    return (tiny_spec, tiny_network) if request.param == "classic" else tiny_banded


def test_openvino_gives_torchs_stems_for_any_batch_channels_and_frames(
    model: tuple[ModelSpec, Network], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda: False)
    spec, network = model
    engine = openvino.OpenVinoEngine.start(network, spec, type(network).__name__, cache)
    assert "float32" in engine.description
    with torch.inference_mode():
        for batch, channels, frames in ((1, 2, 40), (3, 1, 9), (1, 5, 1), (2, 2, 70)):
            mixture = mixtures(batch, channels, network.bins_heard, frames)
            assert openvino.distance_db(engine(mixture), network(mixture)) > 80


def test_a_conversion_is_kept_by_the_hash_of_the_weights(
    small: tuple[ModelSpec, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, network = small
    converted: list[object] = []
    convert = openvino.openvino.convert_model
    monkeypatch.setattr(openvino.openvino, "convert_model", lambda *a, **k: (converted.append(1), convert(*a, **k))[1])
    for weights in ("one", "one", "two"):
        openvino.OpenVinoEngine.start(network, spec, weights, tmp_path)
    assert len(converted) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("distance", "taken"), [(44.9, "float32"), (45.0, "bfloat16")])
def test_bfloat16_is_taken_from_45_db_on(
    tiny_spec: ModelSpec,
    tiny_network: Network,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    distance: float,
    taken: str,
) -> None:
    distances = iter([distance, 130.0])
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda: True)
    monkeypatch.setattr(openvino, "distance_db", lambda *_: next(distances))
    engine = openvino.OpenVinoEngine.start(tiny_network, tiny_spec, "Classic", cache)
    assert taken in engine.description


@pytest.mark.skipif(not computes_bfloat16(), reason="this processor has no bfloat16")
def test_products_run_in_bfloat16_and_leave_float32_as_it_was(
    tiny_spec: ModelSpec, tiny_network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, _, _ = openvino.converted(tiny_network, tiny_spec, "Classic", cache)
    rounded = openvino.with_rounded_factors(converted)
    graph = openvino.RUNTIME.compile_model(rounded, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).get_runtime_model()
    facts = [dict(node.get_rt_info()) for node in graph.get_ops()]
    assert {f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) == "MatMul"} == {"bf16"}
    monkeypatch.setattr(openvino, "BFLOAT16_DB", float("inf"))
    description = openvino.OpenVinoEngine.start(tiny_network, tiny_spec, "Classic", cache).description
    assert float(description.split("float32, ")[1].split()[0]) > 120, description


def test_an_engine_that_strays_from_torch_is_not_taken(
    tiny_spec: ModelSpec,
    tiny_network: Network,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(openvino, "distance_db", lambda *_: 30.0)
    with pytest.raises(EngineError, match=r"30\.0 dB from torch"):
        start_engine("openvino", tiny_spec, tiny_network, CPU, weights_sha256="Classic", cache=cache)
    assert (
        "torch" in start_engine("auto", tiny_spec, tiny_network, CPU, weights_sha256="Classic", cache=cache).description
    )
    assert "engine torch, because OpenVINO" in caplog.text


def test_openvino_tells_its_makers_nothing() -> None:
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_a_network_without_a_core_runs_in_torch(tiny_spec: ModelSpec, cache: Path) -> None:
    network: nn.Module = Share(0.5, 0.5)
    assert "torch" in start_engine("auto", tiny_spec, network, CPU, weights_sha256="x", cache=cache).description
    with pytest.raises(EngineError, match="no real-valued core"):
        start_engine("openvino", tiny_spec, network, CPU, weights_sha256="x", cache=cache)


def test_a_missing_openvino_names_the_remedy(
    tiny_spec: ModelSpec, tiny_network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.engines.find_spec", lambda _: None)
    assert "torch" in start_engine("auto", tiny_spec, tiny_network, CPU, weights_sha256="x", cache=cache).description
    with pytest.raises(EngineError, match="pip install"):
        start_engine("openvino", tiny_spec, tiny_network, CPU, weights_sha256="x", cache=cache)


@pytest.mark.skipif(not computes_bfloat16(), reason="this processor has no bfloat16")
def test_what_a_network_keeps_in_float32_is_computed_in_it(small: tuple[ModelSpec, Network], tmp_path: Path) -> None:
    spec, network = small
    assert {"vocals.down.0", "vocals.up.1"} <= set(network.kept_float32)
    distances = []
    everything = tuple(name for name, _ in network.named_modules())
    for number, kept in enumerate((everything, ())):
        network.kept_float32 = kept
        converted, mixture, stems = openvino.converted(network, spec, str(number), tmp_path)
        core = openvino.compiled(converted, "bf16")
        with torch.inference_mode():
            distances.append(openvino.distance_db(network(mixture, core), stems))
    assert distances[0] > distances[1] + 2, distances


def test_songs_of_many_lengths_are_not_held_in_memory(
    tiny_spec: ModelSpec, tiny_network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda: False)
    engine = openvino.OpenVinoEngine.start(tiny_network, tiny_spec, "Classic", cache)
    held = []
    with torch.inference_mode():
        for lengths in (range(200, 180, -1), range(180, 20, -1)):
            for frames in lengths:
                engine(mixtures(1, 1, tiny_network.bins_heard, frames))
            held.append(psutil.Process().memory_info().rss)
    assert held[1] - held[0] < 150e6, held  # what oneDNN keeps of its own is less


def test_a_signal_is_heard_after_engines_have_come_and_gone(
    tiny_spec: ModelSpec, tiny_network: Network, cache: Path
) -> None:
    engine = openvino.OpenVinoEngine.start(tiny_network, tiny_spec, "Classic", cache)
    engine = openvino.OpenVinoEngine.start(tiny_network, tiny_spec, "Classic", cache)  # before the first has gone
    del engine
    child = os.fork()  # it has this thread's stack for signals, and may end by one
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.raise_signal(signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_song_of_several_windows_is_the_same_in_both_engines(
    small: tuple[ModelSpec, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda: False)
    write_archive(tmp_path / "x.mar", *small, {})
    song = torch.rand(2, 2 * small[0].chunk.length_s * 8_000, generator=torch.Generator().manual_seed(0)).numpy()
    eager = Separator.open(tmp_path / "x.mar", CPU).separate(song, 8_000)
    other = Separator.open(tmp_path / "x.mar", CPU, "openvino", tmp_path / "cache").separate(song, 8_000)
    for stem, wanted in eager.items():
        torch.testing.assert_close(torch.from_numpy(other[stem]), torch.from_numpy(wanted), rtol=0, atol=1e-5)
