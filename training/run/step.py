"""One step of the optimizer, on every rank at once. Between two reports nothing waits for the device.

Axes: b batch, s stem, c channel, n sample.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from serving.model.spectrogram import Stft
from training.config import TrainConfig
from training.data.augment import augment, chances
from training.data.stems import model_stems
from training.errors import NotFinite, OutOfMemory, RankLost
from training.progress import say
from training.run.cuda_graphs import Recorded
from training.run.losses import relative_error_db
from training.run.precision import Precision
from training.run.ranks import Ranks, alone
from training.run.state import RunState

FULL_SCALE = 32768.0
SKIPPED_IN_A_ROW = 20
"""float16 finds the scale of its gradients by overflowing, a few times in a row; twenty times is no search."""

Phase = Callable[[str], AbstractContextManager[object]]
"""Called with the name of a part of the step; the part runs within what it gives."""


@dataclass(frozen=True)
class Report:
    """What the steps since the last report came to: the mean loss of those that counted, NaN for none; and the others."""

    loss: float
    skipped: tuple[int, ...]


class Stepper:
    """Takes the steps of a run: excerpts to the device, augmentation, network, loss, gradients, optimizer, averages.

    A step whose gradients are not finite changes nothing. A step that fails, because memory or another rank is gone, leaves
    the state as it was before.
    """

    def __init__(
        self, config: TrainConfig, state: RunState, device: torch.device, ranks: Ranks, phase: Phase = nullcontext
    ) -> None:
        self.config, self.state, self.device, self.ranks, self.phase = config, state, device, ranks, phase
        self.stft = Stft(config.model.stft).to(device)
        self.precision = Precision.of(device, config.precision)
        self.forward = torch.compile(state.network) if config.compile else state.network
        self.parameters = list(state.network.parameters())
        self.statistics = Statistics(state.network)
        self.pieces = 1
        self.losses: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.skipped_in_a_row = 0

    def fit(self, decoded: Tensor) -> None:
        """Find out, without changing anything, into how many pieces a batch must be cut to fit the device.

        Statistics of a batch norm are then those of a piece. Raises OutOfMemory where not even one example fits.
        """
        while True:
            try:
                with alone(self.state.network):
                    self.backward(decoded)
                break
            except torch.OutOfMemoryError as error:
                if self.pieces >= len(decoded):
                    raise OutOfMemory(
                        f"one excerpt of {self.config.batches.crop_s:g} s does not fit {self.device}: take a shorter --crop-s"
                    ) from error
                self.pieces = min(2 * self.pieces, len(decoded))
                torch.cuda.empty_cache()
            except RuntimeError as error:
                if self.forward is self.state.network:
                    raise
                self.forward = self.state.network
                say(f"not compiled, as it fails here: {str(error).splitlines()[0]}")
            finally:
                self.undo()
        self.pieces = int(self.ranks.largest(self.pieces)[0])
        if self.pieces > 1:
            say(f"a batch does not fit {self.device}: its gradients add up in {self.pieces} pieces")
        elif self.device.type == "cuda" and self.ranks.world_size == 1 and self.forward is self.state.network:
            self.record(len(decoded))

    def record(self, batch_size: int) -> None:
        """Replay the network's passes from here on, where that works."""
        model = self.config.model
        shape = (
            batch_size,
            self.state.network.trained_channels,
            model.stft.bins,
            model.stft.frames(self.config.crop_samples),
        )
        example = torch.randn(shape, dtype=torch.complex64, device=self.device)
        try:
            self.forward = Recorded(self.state.network.train(), example, self.precision.autocast(self.device))
        except RuntimeError as error:  # too little memory is one, too
            torch.cuda.empty_cache()
            say(f"steps take longer than they need to, as the network cannot be recorded: {str(error).splitlines()[0]}")
        finally:
            self.undo()

    def __call__(self, decoded: Tensor, learning_rate: float) -> None:
        """One step on this rank's excerpts, int16 (b, s, 2, `samples_to_cut(n)`).

        Raises OutOfMemory or RankLost, the state as before.
        """
        try:
            loss = self.backward(decoded)
            with self.phase("exchange"):
                self.ranks.average([p.grad for p in self.parameters if p.grad is not None])
        except (torch.OutOfMemoryError, RankLost) as error:
            self.undo()
            if isinstance(error, RankLost):
                raise
            raise OutOfMemory(f"the memory of {self.device} ran out at step {self.state.step}: {error}") from error
        with self.phase("optimizer"):
            self.losses.append(loss)
            self.finite.append(self.update(learning_rate))
            self.state.step += 1
            for average in self.state.averages:
                average.update(self.state.network, self.state.step)

    def backward(self, decoded: Tensor) -> Tensor:
        """Add the gradients of a batch to those of the weights; the loss, still on the device."""
        config, state = self.config, self.state
        self.statistics.remember()
        draws = chances(config.seed, state.step, config.batches.batch_size, decoded.shape[1])
        loss = torch.zeros((), device=self.device)
        pieces = zip(decoded.chunk(self.pieces), draws[self.ranks.share].chunk(self.pieces), strict=True)
        state.network.train()
        for integers, draw in pieces:
            with self.phase("to device"):
                stems = integers.to(self.device, non_blocking=True)
            with self.phase("augment, STFT"):
                augmented = augment(stems / FULL_SCALE, draw, state.network.trained_channels)
                references = self.stft(model_stems(augmented, config.model))
                mixture = references.sum(dim=1)
            with self.phase("forward"):
                with self.precision.autocast(self.device):
                    estimates = self.forward(mixture)
                piece_loss = relative_error_db(estimates, references) * (len(integers) / len(decoded))
            with self.phase("backward"):
                state.scaler.scale(piece_loss).backward()
            loss += piece_loss.detach()
        return loss

    def update(self, learning_rate: float) -> Tensor:
        """Step with the gradients, unless one is not finite; whether they all were, still on the device."""
        optimizer, scaler = self.state.optimizer, self.state.scaler
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimization.clip_norm)
        finite = torch.isfinite(norm)
        if not scaler.is_enabled():  # an enabled one does the same with its own finding
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.statistics.keep_where(finite)
        return finite

    def undo(self) -> None:
        """Drop what `backward` left: gradients, and statistics of the batch."""
        self.statistics.keep_where(torch.zeros((), dtype=torch.bool, device=self.device))
        self.state.optimizer.zero_grad(set_to_none=True)

    def report(self) -> Report:
        """Of the steps since the last report. Waits for the device. Raises NotFinite after too many skipped in a row."""
        losses, finite_steps = torch.stack(self.losses), torch.stack(self.finite)
        self.ranks.average([losses])
        loss = float(losses[finite_steps].mean())
        counted = finite_steps.tolist()
        first = self.state.step - len(counted)
        self.losses, self.finite = [], []
        skipped = []
        for step, finite in enumerate(counted, start=first):
            self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
            if not finite:
                skipped.append(step)
            if self.skipped_in_a_row == SKIPPED_IN_A_ROW:
                self.state.step = step + 1 - SKIPPED_IN_A_ROW
                raise NotFinite(
                    f"no gradient was finite from step {self.state.step} to {step}: take a --learning-rate below "
                    f"{self.config.optimization.learning_rate:g}"
                )
        return Report(loss, tuple(skipped))


class Statistics:
    """What batch norms know of past batches, as it was and as it is; in as few operations as there are types of it."""

    def __init__(self, network: nn.Module) -> None:
        by_type = defaultdict(list)
        for buffer in network.buffers():
            by_type[buffer.dtype].append(buffer)
        self.buffers = list(by_type.values())
        self.remember()

    def remember(self) -> None:
        self.before = [_flatten_dense_tensors(buffers) for buffers in self.buffers]

    def keep_where(self, good: Tensor) -> None:
        """Go back to what was remembered unless `good`, one truth value on the device."""
        for buffers, before in zip(self.buffers, self.before, strict=True):
            kept = torch.where(good, _flatten_dense_tensors(buffers), before)
            torch._foreach_copy_(buffers, _unflatten_dense_tensors(kept, buffers))
