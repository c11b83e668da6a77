"""One step: what it does with gradients that are not finite, with too little memory, and with a batch in pieces."""

import pytest
import torch
from torch import Tensor, nn

import training.optimization.step
from serving.model.spec import ModelSpec
from training.config import Batches, Optimization
from training.errors import NotFinite, OutOfMemory
from training.optimization.losses import relative_error_db
from training.optimization.machine import Machine
from training.optimization.state import RunState, optimizer_of
from training.optimization.step import SKIPPED_IN_A_ROW, Stepper

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
BATCH = 4
BATCHES = Batches(batch_size=BATCH, crop_s=0.5)


class Mask(nn.Module):
    """A mask of its own for each bin: a network without statistics of the batch."""

    trained_channels = 1

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, bins)[:, None])

    def forward(self, mixture: Tensor) -> Tensor:
        vocals = torch.sigmoid(self.logits) * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)


@pytest.fixture
def excerpts() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**14), 2**14, (BATCH, 4, 2, 11_025), generator=generator, dtype=torch.int16)


def snapshot(state: RunState) -> dict[str, Tensor]:
    """Every weight, statistic and moment."""
    moments = state.optimizer.state_dict()["state"]
    flat = {f"{i}.{name}": tensor for i, values in moments.items() for name, tensor in values.items()}
    return {name: tensor.clone() for name, tensor in {**state.network.state_dict(), **flat}.items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def break_loss(monkeypatch: pytest.MonkeyPatch, state: RunState, steps: range) -> None:
    """Let the loss of some steps be no number."""

    def loss(estimates: Tensor, references: Tensor) -> Tensor:
        return relative_error_db(estimates, references) * (float("nan") if state.step in steps else 1)

    monkeypatch.setattr(training.optimization.step, "relative_error_db", loss)


def let_fit(monkeypatch: pytest.MonkeyPatch, network: nn.Module, examples: int) -> None:
    """Let the device hold so many examples at most."""
    forward = network.forward

    def limited(mixture: Tensor) -> Tensor:
        result = forward(mixture)
        if len(mixture) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result  # type: ignore[no-any-return]

    monkeypatch.setattr(network, "forward", limited)


def test_a_step_moves_weights_statistics_moments_and_averages(tiny_spec: ModelSpec, excerpts: Tensor) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    before, averaged = snapshot(state), state.averages[0].network.state_dict()["mask.weight"].clone()
    stepper = Stepper(state, BATCHES, Machine(CPU))
    stepper(excerpts, 1e-3)
    after = snapshot(state)
    still = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert state.step == 1 and not still
    assert not torch.equal(averaged, state.averages[0].network.state_dict()["mask.weight"])
    assert torch.isfinite(torch.tensor(stepper.report().loss))


def test_the_loss_falls(tiny_spec: ModelSpec, excerpts: Tensor) -> None:
    stepper = Stepper(RunState(tiny_spec, Optimization(), CPU), BATCHES, Machine(CPU))
    losses = []
    for _ in range(12):
        stepper(excerpts, 1e-2)
        losses.append(stepper.report().loss)
    assert losses[-1] < losses[0] - 0.3


def test_a_step_that_is_not_finite_changes_nothing_and_is_reported(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    stepper = Stepper(state, BATCHES, Machine(CPU))
    break_loss(monkeypatch, state, range(2, 4))
    for _ in range(2):
        stepper(excerpts, 1e-3)
    before = snapshot(state)
    for _ in range(2):
        stepper(excerpts, 1e-3)
    assert same(before, snapshot(state))
    stepper(excerpts, 1e-3)
    report = stepper.report()
    assert report.skipped == (2, 3) and state.step == 5 and not same(before, snapshot(state))
    assert torch.isfinite(torch.tensor(report.loss))


def test_too_many_in_a_row_end_the_run_at_the_step_before_them(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    stepper = Stepper(state, BATCHES, Machine(CPU))
    break_loss(monkeypatch, state, range(1, 1000))
    with pytest.raises(NotFinite, match=f"from step 1 to {SKIPPED_IN_A_ROW}: .*--learning-rate"):
        for _ in range(SKIPPED_IN_A_ROW + 1):
            stepper(excerpts, 1e-3)
            stepper.report()
    assert state.step == 1


def test_a_batch_that_does_not_fit_is_cut_into_pieces_that_do(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    before = snapshot(state)
    let_fit(monkeypatch, state.network, 1)
    stepper = Stepper(state, BATCHES, Machine(CPU))
    stepper.fit(excerpts)
    assert stepper.pieces == BATCH and same(before, snapshot(state))
    assert "in 4 pieces" in capsys.readouterr().err
    stepper(excerpts, 1e-3)
    assert state.step == 1 and not same(before, snapshot(state))


def test_one_example_that_does_not_fit_is_named(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    let_fit(monkeypatch, state.network, 0)
    with pytest.raises(OutOfMemory, match="--crop-s"):
        Stepper(state, BATCHES, Machine(CPU)).fit(excerpts)


def test_memory_that_runs_out_later_leaves_the_state_as_it_was(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tiny_spec, Optimization(), CPU)
    stepper = Stepper(state, BATCHES, Machine(CPU))
    stepper(excerpts, 1e-3)
    before = snapshot(state)
    let_fit(monkeypatch, state.network, 1)
    with pytest.raises(OutOfMemory, match="at step 1"):
        stepper(excerpts, 1e-3)
    assert same(before, snapshot(state)) and state.step == 1
    assert all(parameter.grad is None for parameter in state.network.parameters())


def test_pieces_add_up_to_the_gradients_of_the_batch(tiny_spec: ModelSpec, excerpts: Tensor) -> None:
    gradients = []
    for pieces in (1, 2):
        state = RunState(tiny_spec, Optimization(), CPU)
        state.network = Mask(tiny_spec.stft.bins)
        state.optimizer = optimizer_of(state.network, 0.0)
        stepper = Stepper(state, BATCHES, Machine(CPU))
        stepper.pieces = pieces
        stepper.backward(excerpts)
        (logits,) = stepper.parameters
        assert logits.grad is not None
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_compiled_runs_as_it_is(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(_network: nn.Module) -> nn.Module:
        class Fails(nn.Module):
            def forward(self, _mixture: Tensor) -> Tensor:
                raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

        return Fails()

    monkeypatch.setattr(torch, "compile", no_compiler)
    state = RunState(tiny_spec, Optimization(), CPU)
    stepper = Stepper(state, BATCHES, Machine(CPU), compile=True)
    stepper.fit(excerpts)
    assert stepper.forward is state.network
    assert (
        capsys.readouterr().err
        == "the network is not compiled, as that fails here: InvalidCxxCompiler: no working C++ compiler found\n"
    )


def test_what_cannot_be_recorded_runs_as_it_is(
    tiny_spec: ModelSpec, excerpts: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(network: nn.Module, example: Tensor, _autocast: torch.autocast) -> None:
        network(example)
        raise torch.OutOfMemoryError("CUDA out of memory\nand so on")

    monkeypatch.setattr(training.optimization.step, "Recorded", failing)
    state = RunState(tiny_spec, Optimization(), CPU)
    stepper = Stepper(state, BATCHES, Machine(CPU))
    before = snapshot(state)
    stepper.record(BATCH)
    assert "the network cannot be recorded: CUDA out of memory\n" in capsys.readouterr().err
    assert same(before, snapshot(state)) and stepper.forward is state.network
    stepper(excerpts, 1e-3)
    assert not same(before, snapshot(state))


def test_gradients_are_scaled_down_to_the_clip_norm(tiny_spec: ModelSpec, excerpts: Tensor) -> None:
    """A norm far below Adam's epsilon leaves next to nothing of a step."""
    moved = []
    for clip_norm in (1.0, 1e-12):
        optimization = Optimization(clip_norm=clip_norm, weight_decay=0.0)
        state = RunState(tiny_spec, optimization, CPU)
        before = state.network.state_dict()["mask.weight"].clone()
        Stepper(state, BATCHES, Machine(CPU))(excerpts, 1e-3)
        moved.append(float((state.network.state_dict()["mask.weight"] - before).abs().max()))
    assert moved[0] > 1e-4 and moved[1] < 1e-6
