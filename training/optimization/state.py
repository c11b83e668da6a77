"""The state of a run in one file: tensors as safetensors, the rest as JSON in its header; no pickle."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serving.model.networks import Network, build
from serving.model.spec import ModelSpec
from training.checkpoints.tensor_file import read_tensors, serialized
from training.config import Optimization
from training.errors import CheckpointError
from training.optimization.ema import Average
from training.optimization.precision import Precision
from training.optimization.statistics import Statistics


class RunState:
    """Everything that a run resumes from: weights, averages, optimizer, and progress.

    Batches and augmentation follow from the seed, the step and `songs`, so no random state is kept. A step holds `lock`
    while it changes anything but the network's buffers, whose values after the last step `statistics` remembers. Whoever
    holds `lock` therefore sees the state between two steps.
    """

    def __init__(
        self,
        model: ModelSpec,
        optimization: Optimization,
        device: torch.device,
        *,
        seed: int = 0,
        precision: str | None = None,
    ) -> None:
        self.model, self.optimization, self.seed = model, optimization, seed
        torch.manual_seed(seed)
        self.network: Network = build(model).to(device)
        self.statistics = Statistics(self.network)
        self.lock = threading.RLock()
        self.averages = [Average(self.network, decay) for decay in optimization.ema_decays]
        self.optimizer = optimizer_of(self.network, optimization.weight_decay)
        self.precision = Precision.of(device, precision)
        self.scaler = self.precision.scaler(device)
        self.step = 0
        self.trained_s = 0.0
        self.validation_s = 0.0  # of the longest validation
        self.validated_at_s = 0.0  # `trained_s` at the last validation
        self.validations = 0
        self.best_usdr = -float("inf")
        self.stale_validations = 0
        self.run_id: str | None = None
        self.songs: list[tuple[int, list[str]]] = []
        self.started_from: dict[str, Any] | None = None  # the licences of the archive of --init

    def write(self, path: Path) -> None:
        """Write the state to a file. The caller flushes it to disk."""
        tensors = {
            **with_prefix("network", {**self.network.state_dict(), **dict(self.statistics.named())}),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
        }
        for average in self.averages:
            tensors |= with_prefix(f"average {average.decay:g}", average.network.state_dict())
        facts = {
            "step": self.step,
            "trained_s": self.trained_s,
            "validation_s": self.validation_s,
            "validated_at_s": self.validated_at_s,
            "validations": self.validations,
            "best_usdr": self.best_usdr,
            "stale_validations": self.stale_validations,
            "run_id": self.run_id,
            "songs": self.songs,
            "started_from": self.started_from,
            "scaler": self.scaler.state_dict() if self.precision.scales else {},
        }
        path.write_bytes(serialized(tensors, facts))

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore the content of a file that `write` made, as `read_tensors` returns it.

        The precision may differ; float16 then starts with a new scale. Raises CheckpointError if the file belongs to
        another run.
        """
        try:
            self.network.load_state_dict(without_prefix("network", tensors))
            for average in self.averages:
                average.network.load_state_dict(without_prefix(f"average {average.decay:g}", tensors))
            restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
            if self.precision.scales and facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
            self.step, self.trained_s, self.validations = facts["step"], facts["trained_s"], facts["validations"]
            self.validation_s, self.validated_at_s = facts.get("validation_s", 0.0), facts.get("validated_at_s", 0.0)
            self.best_usdr, self.stale_validations = facts["best_usdr"], facts["stale_validations"]
            self.run_id = facts["run_id"]
            self.songs = [(step, names) for step, names in facts["songs"]]
            self.statistics.remember()
            self.started_from = facts.get("started_from")
        except (KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"the checkpoint does not fit this run ({reason}): resume with the preset, model and --ema-decays it had"
            ) from error


def optimizer_of(network: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels, and none on biases and norms."""
    parameters = list(network.parameters())
    decayed = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], betas=(0.9, 0.99), fused=True)


def load_network(path: Path, model: ModelSpec) -> tuple[nn.Module, dict[str, Any]]:
    """Network and facts from a file of weights alone. Raises CheckpointError if it is missing or damaged."""
    tensors, facts = read_tensors(path)
    network = build(model)
    network.load_state_dict(tensors)
    return network, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused step reads moments in their parameter's memory order, channels last. Files do not keep that order.
    for parameter, moments in optimizer.state.items():
        for name, tensor in moments.items():
            if tensor.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(tensor)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
