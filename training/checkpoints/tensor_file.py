"""Tensors and facts in one safetensors file: tensors by name, facts as JSON in its header; no pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from training.errors import CheckpointError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to a file that appears only when it is complete and on disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(serialized(tensors, facts))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def serialized(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata={"facts": json.dumps(facts)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, json.loads((file.metadata() or {})["facts"])
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: train there first") from error
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}): remove it and train again") from error
