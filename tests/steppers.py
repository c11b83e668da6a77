"""The stepper of a run that begins, by its configuration."""

import torch

from training.config import TrainConfig
from training.optimization.machine import Machine
from training.optimization.state import RunState
from training.optimization.step import Stepper


def state_of(config: TrainConfig, device: torch.device) -> RunState:
    return RunState(config.model, config.optimization, device, seed=config.seed, precision=config.precision)


def stepper_of(config: TrainConfig, device: torch.device) -> Stepper:
    return Stepper(state_of(config, device), config.batches, Machine(device), compile=config.compile)
