"""A GPU gives what a CPU gives, and goes on where its memory is too small. Skipped where there is none."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from serving.audio import Audio
from serving.model.networks import build
from serving.model.separator import GPU_BATCH_WINDOWS, Separator
from serving.model.spec import ChunkSpec
from tests.steppers import state_of, stepper_of
from training.config import Batches, Budget, TrainConfig
from training.data.augment import augment, chances, samples_to_cut
from training.optimization.machine import Machine
from training.optimization.step import Stepper
from training.presets import PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STEPS = 3


@pytest.fixture(params=PRESETS)
def config(request: pytest.FixtureRequest) -> TrainConfig:
    config: TrainConfig = PRESETS[request.param]("songs", Budget(steps=10))
    return dataclasses.replace(config, batches=Batches(batch_size=4, crop_s=1.0), precision="float32")


@pytest.fixture
def excerpts(config: TrainConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 4, 2, samples_to_cut(config.crop_samples))
    return torch.randint(-(2**13), 2**13, shape, generator=generator, dtype=torch.int16)


@pytest.fixture
def limit_memory() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Leave this process three times the memory that a call takes."""

    def limit(call: Callable[[], object]) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        most = 3 * torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.get_device_properties(GPU).total_memory)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def song(seconds: int) -> Audio:
    return (0.1 * np.random.default_rng(0).standard_normal((2, seconds * 44_100))).astype(np.float32)


def distance_db(one: Audio, other: Audio) -> float:
    """How far the difference is below the sound."""
    return float(10 * np.log10(np.square(other).sum() / np.square(one - other).sum()))


def losses(config: TrainConfig, device: torch.device, excerpts: Tensor, pieces: int = 1) -> list[float]:
    torch.manual_seed(0)
    stepper = stepper_of(config, device)
    stepper.pieces = pieces
    found = []
    for _ in range(STEPS):
        stepper(excerpts, 1e-3)
        found.append(stepper.report().loss)
    return found


def skip_where_weights_take_most(config: TrainConfig) -> None:
    if config.preset == "spleeter":
        pytest.skip("the limit is three times what one window takes, and the weights take most of that: eight fit")


def test_augmentation_is_that_of_a_cpu(excerpts: Tensor) -> None:
    stems, draws = excerpts / 32768, chances(0, 0, 4, 4)
    on_cpu = augment(stems, draws)
    on_gpu = augment(stems.to(GPU), draws)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)


def test_steps_are_those_of_a_cpu(config: TrainConfig, excerpts: Tensor) -> None:
    torch.set_float32_matmul_precision("highest")
    np.testing.assert_allclose(losses(config, GPU, excerpts), losses(config, CPU, excerpts), rtol=0, atol=0.02)


def test_steps_in_half_precision_are_close(config: TrainConfig, excerpts: Tensor) -> None:
    wanted = losses(config, GPU, excerpts)
    for precision in ("bfloat16", "float16"):
        found = losses(dataclasses.replace(config, precision=precision), GPU, excerpts)
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=0.1, err_msg=precision)


def test_songs_are_separated_as_on_a_cpu(config: TrainConfig) -> None:
    network = build(config.model)
    on_cpu = Separator(config.model, network, CPU).separate(song(20), 44_100)
    on_gpu = Separator(config.model, network, GPU).separate(song(20), 44_100)
    for stem, wanted in on_cpu.items():
        assert distance_db(on_gpu[stem], wanted) > 45, stem


def test_recorded_passes_are_those_of_the_network(
    config: TrainConfig, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_float32_matmul_precision("highest")

    def run(other: Tensor) -> list[float]:
        torch.manual_seed(0)
        state = state_of(config, GPU)
        before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
        stepper = Stepper(state, config.batches, Machine(GPU))
        stepper.fit(other)
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
        found = []
        for batch in (excerpts, other, excerpts):
            stepper(batch, 1e-3)
            found.append(stepper.report().loss)
        assert (stepper.forward is state.network) == without
        separator = Separator(config.model, state.averages[0].network, GPU)
        found.append(float(np.std(separator.separate(song(5), 44_100)["vocals"])))
        return found

    without = False
    recorded = run(excerpts.flip(0))
    assert capsys.readouterr().err == ""
    without = True
    monkeypatch.setattr(Stepper, "record", lambda *_: None)
    np.testing.assert_allclose(recorded, run(excerpts.flip(0)), rtol=2e-3, atol=0)


def test_a_batch_of_windows_that_does_not_fit_is_halved(
    config: TrainConfig, limit_memory: Callable[[Callable[[], object]], None]
) -> None:
    skip_where_weights_take_most(config)
    model = dataclasses.replace(config.model, chunk=ChunkSpec(length_s=20, overlap_s=1))
    separator = Separator(model, build(model), GPU)
    limit_memory(lambda: separator.separate(song(20), 44_100))
    stems = separator.separate(song(150), 44_100)
    assert separator.batch_windows < GPU_BATCH_WINDOWS
    np.testing.assert_allclose(sum(stems.values()), song(150), rtol=0, atol=1e-5)


def test_a_training_batch_that_does_not_fit_is_cut(
    config: TrainConfig, limit_memory: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_weights_take_most(config)
    monkeypatch.setattr(Stepper, "record", lambda *_: None)
    alone = dataclasses.replace(config, batches=Batches(batch_size=1, crop_s=6.0), precision=None)
    together = dataclasses.replace(config, batches=Batches(batch_size=8, crop_s=6.0), precision=None)
    excerpts = torch.randint(
        -(2**13),
        2**13,
        (8, 4, 2, samples_to_cut(together.crop_samples)),
        dtype=torch.int16,
    )
    state = state_of(together, GPU)
    limit_memory(lambda: Stepper(state, alone.batches, Machine(GPU)).fit(excerpts[:1]))
    stepper = Stepper(state, together.batches, Machine(GPU))
    stepper.fit(excerpts)
    assert stepper.pieces > 1
    stepper(excerpts, 1e-3)
    assert np.isfinite(stepper.report().loss)
