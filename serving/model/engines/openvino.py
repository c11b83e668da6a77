"""OpenVINO on CPUs: it converts the core of a network from torch and runs it in float32 or bfloat16."""

import logging
import math
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import openvino
import openvino.opset13 as opset
import safetensors.torch
import torch
from torch import Tensor

from serving.errors import EngineError
from serving.model.networks import Core, Network, RealCore
from serving.model.probe import probe
from serving.model.processor import computes_bfloat16
from serving.model.spec import ModelSpec
from serving.model.spectrogram import Stft

logger = logging.getLogger(__name__)

FLOAT32_DB = 80.0
"""float32 agrees with torch to 130 dB and more. An engine below this distance computes something else."""

BFLOAT16_DB = 45.0
"""bfloat16 is taken if every stem of the test signal stays so far from float32's."""

EXAMPLE_FRAMES = 64

RUNTIME = openvino.Core()
"""The one runtime of the process. Each lends its thread a stack for signals. Of two that end in another order than last in,
first out, a stack that is gone stays in use, and the next signal ends the process with a segmentation fault."""

CONVERSION = 3
"""The number of this way to convert: conversions that were made in another way are not taken."""


class OpenVinoEngine:
    """A network whose core OpenVINO runs. Batches and frames may have any number."""

    def __init__(self, network: Network, core: Core, precision: str, distance_db: float) -> None:
        self.network, self.core = network, core
        self.description = f"openvino, {precision}, {distance_db:.1f} dB from torch in float32"

    def __call__(self, mixture: Tensor) -> Tensor:
        stems: Tensor = self.network(mixture, self.core)
        return stems

    @classmethod
    def start(cls, network: Network, spec: ModelSpec, weights_sha256: str, cache: Path) -> Self:
        """The engine in the fastest precision that stays near enough to torch on a test signal.

        Raises EngineError where float32 strays too far.
        """
        model, mixture, wanted = converted(network, spec, weights_sha256, cache)
        with torch.inference_mode():
            if computes_bfloat16():
                core = compiled(model, "bf16")
                distance = distance_db(network(mixture, core), wanted)
                if distance >= BFLOAT16_DB:
                    return cls(network, core, "bfloat16", distance)
                logger.info("bfloat16 is %.1f dB from float32, less than %.0f: float32 is taken", distance, BFLOAT16_DB)
            core = compiled(model, "f32")
            distance = distance_db(network(mixture, core), wanted)
        if distance < FLOAT32_DB:
            raise EngineError(
                f"OpenVINO {openvino.get_version()} is {distance:.1f} dB from torch: set STEMWRIGHT_ENGINE=torch"
            )
        return cls(network, core, "float32", distance)


def converted(network: Network, spec: ModelSpec, weights_sha256: str, cache: Path) -> tuple[Any, Tensor, Tensor]:
    """The core as an OpenVINO model, and for its trial a mixture spectrogram with torch's stems of it.

    From the cache, or made now and put there under its final name when whole.
    """
    version = openvino.get_version().split("-")[0]
    kept = cache / f"core{CONVERSION}-{type(network).__name__.lower()}-{weights_sha256[:32]}-openvino-{version}"
    if not kept.is_dir():
        logger.info("converting the network for OpenVINO %s, once for these weights; it is kept in %s", version, cache)
        with torch.no_grad(), warnings.catch_warnings():
            # Tracing warns of every shape that it follows; `start` compares the result with torch.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(RealCore(network), example_input=network.core_example(EXAMPLE_FRAMES))
        with torch.inference_mode():
            mixture = Stft(spec.stft)(torch.from_numpy(probe(spec.audio.sample_rate_hz)))[None]
            stems = network(mixture)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".core-") as folder:
                whole = Path(folder, "whole")
                whole.mkdir()
                openvino.save_model(model, whole / "core.xml", compress_to_fp16=False)
                keep_float32(whole / "core.xml", network.kept_float32)
                trial = {
                    "mixture": torch.view_as_real(mixture).contiguous(),
                    "stems": torch.view_as_real(stems).contiguous(),
                }
                safetensors.torch.save_file(trial, whole / "trial.safetensors")
                if not kept.exists():  # another worker may have been faster
                    whole.rename(kept)
        except OSError as error:
            logger.warning("the conversion cannot be kept (%s): the next start converts again", error)
            return model, mixture, stems
    trial = safetensors.torch.load_file(kept / "trial.safetensors")
    mixture, stems = (torch.view_as_complex(trial[name]) for name in ("mixture", "stems"))
    return RUNTIME.read_model(kept / "core.xml"), mixture, stems


def keep_float32(xml: Path, modules: Collection[str]) -> None:
    """Mark the operations of some modules as those to compute in float32. From Python that works in the file alone."""
    tree = ElementTree.parse(xml)
    for layer in tree.iter("layer"):
        name = layer.get("name", "")
        if layer.get("type") != "Const" and any(f"network.{module}/" in name for module in modules):
            marks = layer.find("rt_info")
            marks = ElementTree.SubElement(layer, "rt_info") if marks is None else marks
            ElementTree.SubElement(marks, "attribute", name="precise", version="0")
    tree.write(xml)


def compiled(model: Any, precision: str) -> Core:
    """The core, compiled with as many threads as torch has. Its result is valid until its next call."""
    if precision == "bf16":
        model = with_rounded_factors(model)
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Kernels of lengths that came before: 400 lengths of `classic` held 2.2 GB of them. Windows of one length need none.
        "CPU_RUNTIME_CACHE_CAPACITY": 0,
    }
    request = RUNTIME.compile_model(model, "CPU", hints).create_infer_request()

    def run(x: Tensor) -> Tensor:
        (result,) = request.infer([x.contiguous().numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(result)

    return run


def with_rounded_factors(model: Any) -> Any:
    """The model with constants in bfloat16 where a product multiplies a constant with a tensor.

    OpenVINO leaves constants in float32. A product whose first factor is one then runs in float32, and its input and output
    are converted. The mark keeps the constant in bfloat16 where constants are folded.
    """
    rounded = model.clone()
    for product in rounded.get_ops():
        factor = product.input_value(0).get_node() if product.get_type_name() == "MatMul" else None
        if factor is not None and factor.get_type_name() == "Constant":
            tensor = openvino.Tensor(openvino.Type.bf16, factor.shape)
            bits = torch.tensor(factor.get_data()).to(torch.bfloat16).view(torch.int16)
            tensor.data.view(np.int16)[...] = bits.numpy()
            widened = opset.convert(openvino.op.Constant(tensor), "f32")
            widened.get_rt_info()["decompression_0"] = ""
            product.input(0).replace_source_output(widened.output(0))
    return rounded


def distance_db(found: Tensor, wanted: Tensor) -> float:
    """The energy of the difference against that of the stem, of the stem that differs most."""
    error = (found - wanted).abs().square().sum(dim=(0, 2, 3, 4))
    energy = wanted.abs().square().sum(dim=(0, 2, 3, 4))
    worst = float((error / (energy + 1e-12)).max())
    return -10 * math.log10(max(worst, 1e-20))
