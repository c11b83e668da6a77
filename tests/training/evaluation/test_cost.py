"""The cost of a model: counted where a formula knows it, measured where it can be told from something else."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training.evaluation.cost
from serving.errors import ArchiveError
from serving.model.archive import read_archive, write_archive
from serving.model.networks import build
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec
from serving.model.starter_spec import SPEC as SPLEETER
from training.errors import OutOfMemory
from training.evaluation.cost import cost, flop, gmac_per_s, noise, parameters, peak_process_bytes, speed_and_memory

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def archive(tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path) -> Path:
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, origin={})
    return tmp_path / "tiny.mar"


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate little and once: the fastest of three is for people who compare."""
    monkeypatch.setattr(training.evaluation.cost, "TIMES", 1)
    monkeypatch.setattr(training.evaluation.cost, "EXCERPT_S", 10)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_are_counted_by_their_formula(kind: type[nn.RNNBase], gates: int, directions: int) -> None:
    inputs, units, batch, frames = 10, 6, 3, 11
    network = kind(inputs, units, num_layers=2, batch_first=True, bidirectional=directions == 2)

    counted = flop(network, lambda on_meta: on_meta(torch.empty(batch, frames, inputs, device="meta")))

    first, second = inputs + units, directions * units + units
    assert counted == 2 * batch * frames * directions * gates * units * (first + second)


class Mixer(nn.Module):
    """A convolution, an LSTM over time and a projection: products that can be counted by hand."""

    def __init__(self, channels: int, bins: int, units: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.dropout = nn.Dropout()
        self.lstm = nn.LSTM(bins, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, bins)

    def forward(self, mixture: Tensor) -> Tensor:
        x = self.dropout(self.convolution(mixture.abs())).flatten(0, 1).transpose(1, 2)
        return self.expand(self.lstm(x)[0])


def test_multiply_adds_are_those_of_a_second_of_stereo(tiny_spec: ModelSpec) -> None:
    spec = replace(tiny_spec, audio=AudioSpec(16_000), chunk=ChunkSpec(length_s=4, overlap_s=1))
    bins, frames, units = 1025, 4 * 16_000 // 512 + 1, 5
    network = Mixer(2, bins, units)

    per_frame = 2 * 2 * 9 * bins + 2 * (2 * 4 * units * (bins + units) + 2 * units * bins)
    assert gmac_per_s(network, spec) == pytest.approx(per_frame * frames / 4 / 1e9, rel=1e-12)
    assert network.training and network.expand.weight.device == CPU, "the network that is counted stays as it is"

    weights = 2 * 2 * 9 + 2, 2 * 4 * units * (bins + units + 2), 2 * units * bins + bins
    assert parameters(network) == sum(weights)


def test_every_network_can_be_counted(tiny_spec: ModelSpec, tiny_banded: tuple[ModelSpec, nn.Module]) -> None:
    spleeter = replace(SPLEETER, dimensions={"bins": 16, "piece_frames": 8, "channels": (4, 8)})
    for spec in (replace(model, chunk=ChunkSpec(2, 1)) for model in (tiny_spec, tiny_banded[0], spleeter)):
        assert gmac_per_s(build(spec), spec) > 0


def test_the_cost_of_an_archive(archive: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    found = cost(archive, CPU)
    assert found.parameters == sum(weights.numel() for weights in tiny_network.parameters())
    assert found.gmac_per_s == gmac_per_s(tiny_network, tiny_spec) > 0
    assert 1e-4 < found.real_time_factor < 1
    assert 1e8 < found.peak_bytes < 1e10
    assert found.to_json().keys() == {"parameters", "gmac_per_s", "real_time_factor", "peak_bytes"}


def test_memory_is_that_of_separating_and_not_of_who_asks(archive: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    # Windows of ten seconds instead of two hold five times as much at once.
    paths = {}
    for length_s in (2, 10):
        spec = replace(tiny_spec, chunk=ChunkSpec(length_s, 1))
        network = read_archive(archive).network()
        paths[length_s] = tmp_path / f"{length_s}.mar"
        write_archive(paths[length_s], spec, network, origin={})
    held = np.ones(10**8)  # 800 MB of the process that asks
    _, of_short = speed_and_memory(paths[2], CPU)
    _, of_long = speed_and_memory(paths[10], CPU)
    print(of_short, of_long)
    assert of_short < held.nbytes
    assert of_long > of_short + 1e7


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_process_bytes()
    held = np.ones(before // 8 + 10_000_000)
    at_most = peak_process_bytes()
    assert at_most > held.nbytes
    del held
    assert peak_process_bytes() == pytest.approx(at_most, rel=0.01)


def test_where_there_is_no_proc_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.evaluation.cost, "KERNEL_STATUS", Path("/nowhere"))
    assert 1e7 < peak_process_bytes() < 1e12


def test_the_noise_is_always_the_same() -> None:
    song = noise(30)
    assert song.shape == (2, 30 * 44_100) and song.dtype == np.float32
    np.testing.assert_array_equal(song, noise(30))


def test_a_process_that_the_system_ends_is_said_to_lack_memory(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.evaluation.cost, "separate_noise", killed)
    with pytest.raises(OutOfMemory, match=r"tiny\.mar does not fit the memory of cpu"):
        speed_and_memory(archive, CPU)


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="there is no model archive at"):
        cost(tmp_path / "none.mar", CPU)
