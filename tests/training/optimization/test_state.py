import json
from pathlib import Path

import pytest
import safetensors
import torch

from serving.model.spec import ModelSpec
from training.checkpoints.tensor_file import read_tensors, write_tensors
from training.config import Optimization
from training.errors import CheckpointError
from training.optimization.state import RunState, load_network, optimizer_of

CPU = torch.device("cpu")


def new_state(model: ModelSpec, *, seed: int = 0, precision: str | None = None) -> RunState:
    return RunState(model, Optimization(), CPU, seed=seed, precision=precision)


def advance(state: RunState) -> None:
    """A step of the optimizer with a loss of no meaning, so that every tensor of the state has moved."""
    magnitudes = torch.rand(2, 1, 1025, 8, generator=torch.Generator().manual_seed(state.step))
    loss = state.network.train()(magnitudes.to(torch.complex64)).abs().mean()
    loss.backward()
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-3
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.statistics.remember()
    state.step += 1
    for average in state.averages:
        average.update(state.network, state.step)


def networks(state: RunState) -> list[torch.nn.Module]:
    return [state.network, *(average.network for average in state.averages)]


@pytest.mark.slow
def test_a_state_that_was_restored_goes_on_bit_for_bit(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    whole = new_state(tiny_spec)
    advance(whole)
    facts = {"trained_s": 1.5, "best_usdr": -3.25, "run_id": "run", "validations": 2, "stale_validations": 1}
    facts["songs"] = [(0, ["A", "B"]), (7, ["C"])]
    vars(whole).update(facts)
    whole.write(tmp_path / "state")
    resumed = new_state(tiny_spec, seed=1)
    resumed.restore(*read_tensors(tmp_path / "state"))
    assert {name: getattr(resumed, name) for name in facts} == facts and resumed.step == 1
    for state in (whole, resumed):
        advance(state)
        advance(state)
    for ours, theirs in zip(networks(whole), networks(resumed), strict=True):
        assert not [n for n, tensor in ours.state_dict().items() if not torch.equal(tensor, theirs.state_dict()[n])]


def test_a_best_score_of_none_yet_survives(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    new_state(tiny_spec).write(tmp_path / "state")
    state = new_state(tiny_spec)
    state.restore(*read_tensors(tmp_path / "state"))
    assert state.best_usdr == -float("inf")


def test_a_state_of_another_run_is_refused(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    new_state(tiny_spec).write(tmp_path / "state")
    other = RunState(tiny_spec, Optimization(ema_decays=(0.5,)), CPU)
    with pytest.raises(CheckpointError, match="--ema-decays"):
        other.restore(*read_tensors(tmp_path / "state"))


def test_weights_alone_come_back_with_their_facts(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    state = new_state(tiny_spec)
    advance(state)
    weights = state.averages[0].network.state_dict()
    write_tensors(tmp_path / "best", weights, {"step": 1})
    network, facts = load_network(tmp_path / "best", tiny_spec)
    assert facts == {"step": 1}
    assert not [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, weights[name])]


def test_no_file_appears_before_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "state", {"x": torch.zeros(3)}, {})
    before = (tmp_path / "state").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        write_tensors(tmp_path / "state", {"x": torch.ones(3)}, {})
    assert (tmp_path / "state").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "cut", "header"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state"
    if damage != "missing":
        write_tensors(path, {"x": torch.zeros(300)}, {})
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * 8 + content[8:])
    with pytest.raises(CheckpointError, match=str(path)):
        read_tensors(path)


def test_the_file_holds_tensors_and_json_alone(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    new_state(tiny_spec).write(tmp_path / "state")
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["step"] == 0


def test_weights_decay_and_norms_and_biases_do_not(tiny_spec: ModelSpec) -> None:
    network = new_state(tiny_spec).network
    before = {name: weights.detach().clone() for name, weights in network.named_parameters()}
    optimizer = optimizer_of(network, weight_decay=0.5)
    for weights in network.parameters():
        weights.grad = torch.zeros_like(weights)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    for name, weights in network.named_parameters():
        torch.testing.assert_close(weights, before[name] * (0.75 if before[name].ndim >= 2 else 1), msg=name)


@pytest.mark.parametrize(("begun", "going_on"), [("float32", "float16"), ("float16", "bfloat16")])
def test_a_run_goes_on_in_another_precision(tiny_spec: ModelSpec, tmp_path: Path, begun: str, going_on: str) -> None:
    state = new_state(tiny_spec, precision=begun)
    state.write(tmp_path / "state")
    other = new_state(tiny_spec, precision=going_on)
    other.restore(*read_tensors(tmp_path / "state"))
    assert other.scaler.get_scale() == (65536 if going_on == "float16" else 1)


def test_a_scale_that_was_found_survives(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    state = new_state(tiny_spec, precision="float16")
    state.scaler.scale(torch.zeros(()))
    state.scaler.update(512.0)
    state.write(tmp_path / "state")
    again = new_state(tiny_spec, precision="float16")
    again.restore(*read_tensors(tmp_path / "state"))
    assert again.scaler.get_scale() == 512


def test_a_state_that_is_written_in_the_middle_of_a_step_is_that_of_the_step_before(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    state = new_state(tiny_spec)
    advance(state)
    state.write(tmp_path / "before")
    state.network.train()(torch.rand(2, 1, 1025, 8).to(torch.complex64))  # moves the statistics of the norms
    state.write(tmp_path / "amid")
    assert (tmp_path / "amid").read_bytes() == (tmp_path / "before").read_bytes()
