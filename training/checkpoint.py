"""The state of a run in one file: tensors as safetensors, the rest as JSON in its header; no pickle.

A file appears under its name only when it is complete, so a run that is killed at any moment can go on.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from serving.networks import build
from training.config import TrainConfig
from training.errors import CheckpointError
from training.precision import Precision


class RunState:
    """Everything that a run goes on from: weights, their average, optimizer, and how far it has come.

    The batches and the augmentation of a step follow from the seed and the step alone and need no state here.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.network: nn.Module = build(config.model).to(device)
        average = get_ema_multi_avg_fn(config.optimization.ema_decay)
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = optimizer_of(self.network, config.optimization.weight_decay)
        self.scaler = Precision.of(device).scaler(device)
        self.step = 0
        self.trained_s = 0.0
        self.validations = 0
        self.best_usdr = -float("inf")
        self.run_id: str | None = None

    def save(self, path: Path) -> None:
        """Write the state to `path`, atomically."""
        tensors = {
            **with_prefix("network", self.network.state_dict()),
            **with_prefix("averaged", self.averaged.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
        }
        facts = {
            "step": self.step,
            "trained_s": self.trained_s,
            "validations": self.validations,
            "best_usdr": self.best_usdr,
            "run_id": self.run_id,
            "scaler": self.scaler.state_dict(),
        }
        write_tensors(path, tensors, facts)

    def load(self, path: Path) -> None:
        """Take up the state in `path`. Raises CheckpointError where it is missing or damaged."""
        tensors, facts = read_tensors(path)
        self.network.load_state_dict(without_prefix("network", tensors))
        self.averaged.load_state_dict(without_prefix("averaged", tensors))
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        self.scaler.load_state_dict(facts["scaler"])
        self.step, self.trained_s, self.validations = facts["step"], facts["trained_s"], facts["validations"]
        self.best_usdr, self.run_id = facts["best_usdr"], facts["run_id"]

    def save_averaged(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the averaged weights alone, with the facts of their origin."""
        write_tensors(path, self.averaged.module.state_dict(), facts)


def optimizer_of(network: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and norms."""
    parameters = list(network.parameters())
    decayed = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], betas=(0.9, 0.99), fused=True)


def load_network(path: Path, config: TrainConfig) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the facts that `save_averaged` wrote."""
    tensors, facts = read_tensors(path)
    network = build(config.model)
    network.load_state_dict(tensors)
    return network, facts


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with partial.open("wb") as file:
        file.write(safetensors.torch.save(copies, metadata={"facts": json.dumps(facts)}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, json.loads((file.metadata() or {})["facts"])
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: train there first") from error
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}): remove it and train again") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused step reads moments in the memory order of their parameter, channels last, and files have none.
    for parameter, moments in optimizer.state.items():
        for name, tensor in moments.items():
            if tensor.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(tensor)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
