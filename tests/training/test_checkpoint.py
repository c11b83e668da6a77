import copy
import dataclasses
import json
from pathlib import Path

import pytest
import safetensors
import torch

from serving.spec import ModelSpec
from training.checkpoint import RunState, load_network
from training.config import Budget, TrainConfig, classic
from training.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_spec: ModelSpec) -> TrainConfig:
    return dataclasses.replace(classic("songs", Budget(steps=10)), model=tiny_spec)


def advance(state: RunState) -> None:
    """A step of the optimizer with a loss of no meaning, so that every tensor of the state has moved."""
    magnitudes = torch.rand(2, 1, 1025, 8, generator=torch.Generator().manual_seed(state.step))
    loss = state.network.train()(magnitudes.to(torch.complex64)).abs().mean()
    loss.backward()
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-3
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.averaged.update_parameters(state.network)
    state.step += 1


def test_a_state_that_was_loaded_goes_on_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    whole = RunState(config, CPU)
    advance(whole)
    whole.trained_s, whole.best_usdr, whole.run_id, whole.validations = 1.5, -3.25, "run", 2
    whole.save(tmp_path / "state")
    resumed = RunState(dataclasses.replace(config, seed=1), CPU)
    resumed.load(tmp_path / "state")
    assert (resumed.step, resumed.trained_s, resumed.best_usdr, resumed.run_id, resumed.validations) == (
        1,
        1.5,
        -3.25,
        "run",
        2,
    )
    for state in (whole, resumed):
        advance(state)
        advance(state)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    for name, tensor in whole.averaged.state_dict().items():
        assert torch.equal(tensor, resumed.averaged.state_dict()[name]), name


def test_a_best_score_of_none_yet_survives(config: TrainConfig, tmp_path: Path) -> None:
    RunState(config, CPU).save(tmp_path / "state")
    state = RunState(config, CPU)
    state.load(tmp_path / "state")
    assert state.best_usdr == -float("inf")


def test_the_averaged_weights_are_those_written_for_the_archive(config: TrainConfig, tmp_path: Path) -> None:
    state = RunState(config, CPU)
    for _ in range(3):
        advance(state)
    state.save_averaged(tmp_path / "best", {"step": 3})
    network, facts = load_network(tmp_path / "best", config)
    assert facts == {"step": 3}
    for name, tensor in state.averaged.module.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    moved = copy.deepcopy(state.network.state_dict())
    assert any(not torch.equal(tensor, moved[name]) for name, tensor in network.state_dict().items())


def test_no_file_appears_before_it_is_complete(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(config, CPU)
    state.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    advance(state)
    with pytest.raises(OSError, match="no space"):
        state.save(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "cut", "header"])
def test_a_file_that_cannot_be_read_is_named(config: TrainConfig, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state"
    state = RunState(config, CPU)
    if damage != "missing":
        state.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * 8 + content[8:])
    with pytest.raises(CheckpointError, match=str(path)):
        state.load(path)


def test_the_file_holds_tensors_and_json_alone(config: TrainConfig, tmp_path: Path) -> None:
    RunState(config, CPU).save(tmp_path / "state")
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["step"] == 0
