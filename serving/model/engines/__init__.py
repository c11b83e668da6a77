"""Engines: what runs a network. One file an engine; `start_engine` chooses."""

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from serving.errors import EngineError
from serving.model.engines.eager import EagerEngine
from serving.model.networks import Network
from serving.model.spec import ModelSpec
from serving.settings import EngineName

logger = logging.getLogger(__name__)

# OpenVINO would tell its makers of every conversion, by 25 processes. It does not where this package is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


class Engine(Protocol):
    """A network at work on a device: stem spectrograms (b, s, c, f, t) of a mixture (b, c, f, t), both complex."""

    @property
    def description(self) -> str:
        """The engine, its precision, and its distance from torch in float32 where it was measured."""

    def __call__(self, mixture: Tensor) -> Tensor: ...


def start_engine(
    wanted: EngineName, spec: ModelSpec, network: nn.Module, device: torch.device, *, weights_sha256: str, cache: Path
) -> Engine:
    """The engine that was asked for, ready to work.

    `auto` takes OpenVINO on a CPU where it is installed and agrees with torch, else torch, and the log says why. Conversions
    are kept in `cache` by the hash of the weights. Raises EngineError where OpenVINO was asked for by name and cannot run.
    """
    eager = EagerEngine(spec.architecture, network, device)
    if wanted == "torch":
        return eager
    try:
        if device.type != "cpu":
            raise EngineError(f"OpenVINO runs on CPUs here, not on {device}: set STEMWRIGHT_ENGINE=torch")
        if find_spec("openvino") is None:
            raise EngineError("OpenVINO is not installed: pip install 'stemwright[openvino]'")
        if not isinstance(network, Network):
            raise EngineError(f"{type(network).__name__} has no real-valued core that OpenVINO could run")
        from serving.model.engines.openvino import OpenVinoEngine

        return OpenVinoEngine.start(network, spec, weights_sha256, cache)
    except EngineError as error:
        if wanted == "openvino":
            raise
        logger.info("engine torch, because %s", error)
        return eager
