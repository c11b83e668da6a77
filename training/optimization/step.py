"""One step of the optimizer, on all ranks at once. Nothing waits for the device between two reports.

Axes: b batch, s stem, c channel, n sample.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from serving.model.spectrogram import Stft
from training.config import Batches
from training.data.augment import augment, chances
from training.data.stems import model_stems
from training.errors import NotFinite, OutOfMemory, RankLost
from training.optimization.cuda_graphs import Recorded
from training.optimization.losses import relative_error_db
from training.optimization.machine import Machine
from training.optimization.ranks import alone, reaching_all
from training.optimization.state import RunState
from training.progress import say

INT16_FULL_SCALE = 32768.0
SKIPPED_IN_A_ROW = 20
"""Skipped steps that end a run. float16 finds its gradient scale by a few overflows in a row, never by twenty."""

Phase = Callable[[str], AbstractContextManager[object]]
"""Takes the name of a part of the step, gives the context that the part runs in."""


@dataclass(frozen=True)
class StepReport:
    """Mean loss of the finite steps since the last report (NaN if none), and the numbers of skipped steps."""

    loss: float
    skipped: tuple[int, ...]


class Stepper:
    """Takes training steps: device copy, augmentation, network, loss, gradients, optimizer, averages.

    A step whose gradients are not finite changes nothing. A step that fails because memory runs out or a rank is lost
    leaves the state as before. Call `fit` first.
    """

    def __init__(self, state: RunState, batches: Batches, machine: Machine, *, compile: bool = False) -> None:
        self.state, self.batches = state, batches
        self.machine, self.device, self.ranks = machine, machine.device, machine.ranks
        self.phase: Phase = nullcontext
        self.compiled = compile
        self.stft = Stft(state.model.stft).to(self.device)
        network = state.network.train()
        self.forward: nn.Module = torch.compile(network) if compile else network  # type: ignore[assignment]
        self.parameters = list(state.network.parameters())
        self.pieces = 1
        self.losses: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.skipped_in_a_row = 0
        state.statistics.remember()

    def fit(self, decoded: Tensor) -> None:
        """Find the number of pieces into which a batch must be split to fit the device. Changes nothing else.

        Batch norm statistics are then those of a piece. Raises OutOfMemory if not even one example fits.
        """
        while True:
            try:
                with alone(self.state.network):
                    self.backward(decoded)
                break
            except torch.OutOfMemoryError as error:
                if self.pieces >= len(decoded):
                    raise OutOfMemory(
                        f"one excerpt of {self.batches.crop_s:g} s does not fit {self.device}: take a shorter --crop-s"
                    ) from error
                self.pieces = min(2 * self.pieces, len(decoded))
                torch.cuda.empty_cache()
            except RuntimeError as error:
                if self.forward is self.state.network:
                    raise
                self.forward = self.state.network
                say(f"the network is not compiled, as that fails here: {str(error).splitlines()[0]}")
            finally:
                self.undo()
        self.pieces = int(self.ranks.largest(self.pieces)[0])
        if self.pieces > 1:
            say(f"a batch does not fit {self.device}: its gradients add up in {self.pieces} pieces")
        elif self.machine.on_gpu and self.ranks.world_size == 1 and self.forward is self.state.network:
            self.record(len(decoded))
        self.forward = self.ranks.parallel(self.forward)

    def record(self, batch_size: int) -> None:
        """Record the network's passes as CUDA graphs, if possible."""
        stft = self.state.model.stft
        frames = stft.frames(self.batches.crop_samples(self.state.model.audio.sample_rate_hz))
        shape = (batch_size, self.state.network.trained_channels, stft.bins, frames)
        example = torch.randn(shape, dtype=torch.complex64, device=self.device)
        try:
            self.forward = Recorded(self.state.network, example, self.state.precision.autocast(self.device))
        except RuntimeError as error:  # too little memory is one, too
            torch.cuda.empty_cache()
            say(f"steps take longer than they need to, as the network cannot be recorded: {str(error).splitlines()[0]}")
        finally:
            self.undo()

    def __call__(self, decoded: Tensor, learning_rate: float) -> None:
        """Take one step on this rank's excerpts, int16 (b, s, 2, `samples_to_cut(n)`).

        Raises OutOfMemory or RankLost and leaves the state as before.
        """
        try:
            loss = self.backward(decoded)
        except torch.OutOfMemoryError as error:
            self.undo()
            raise OutOfMemory(f"the memory of {self.device} ran out at step {self.state.step}: {error}") from error
        except RankLost:
            self.undo()
            raise
        with self.phase("optimizer"), self.state.lock:
            self.losses.append(loss)
            self.finite.append(self.update(learning_rate))
            self.state.step += 1
            for average in self.state.averages:
                average.update(self.state.network, self.state.step)

    def backward(self, decoded: Tensor) -> Tensor:
        """Accumulate the gradients of a batch. Returns the loss, still on the device.

        A batch too large for memory is split; ranks exchange gradients with the last piece.
        """
        draws = chances(self.state.seed, self.state.step, self.batches.batch_size, decoded.shape[1])
        loss = torch.zeros((), device=self.device)
        pieces = list(zip(decoded.chunk(self.pieces), draws[self.ranks.share].chunk(self.pieces), strict=True))
        for integers, draw in pieces[:-1]:
            with self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext():
                loss += self.backward_piece(integers, draw, len(integers) / len(decoded))
        with reaching_all() if self.ranks.world_size > 1 else nullcontext():
            loss += self.backward_piece(*pieces[-1], len(pieces[-1][0]) / len(decoded))
        return loss

    def backward_piece(self, integers: Tensor, draw: Tensor, share: float) -> Tensor:
        """Accumulate the gradients of a piece that is `share` of its batch. Returns its share of the loss."""
        with self.phase("to device"):
            stems = integers.to(self.device, non_blocking=True)
        with self.phase("augment, STFT"):
            augmented = augment(stems / INT16_FULL_SCALE, draw, self.state.network.trained_channels)
            references = self.stft(model_stems(augmented, self.state.model))
            mixture = references.sum(dim=1)
        with self.phase("forward"):
            with self.state.precision.autocast(self.device):
                estimates = self.forward(mixture)
            loss = relative_error_db(estimates, references) * share
        with self.phase("backward"):
            self.state.scaler.scale(loss).backward()
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor:
        """Step if all gradients are finite. Returns whether they were, as a boolean on the device."""
        state, optimizer, scaler = self.state, self.state.optimizer, self.state.scaler
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, state.optimization.clip_norm)
        finite = torch.isfinite(norm)
        scaler.step(optimizer)
        state.precision.update(scaler)
        optimizer.zero_grad(set_to_none=True)
        state.statistics.keep_where(finite)
        return finite

    def undo(self) -> None:
        """Discard gradients and statistics that `backward` left."""
        self.state.statistics.forget()
        self.state.optimizer.zero_grad(set_to_none=True)

    def report(self) -> StepReport:
        """Report on the steps since the last report. Waits for the device. Raises NotFinite after too many skips in a row."""
        losses, finite_steps = self.ranks.mean(torch.stack(self.losses)), torch.stack(self.finite)
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
                    f"{self.state.optimization.learning_rate:g}"
                )
        return StepReport(loss, tuple(skipped))
