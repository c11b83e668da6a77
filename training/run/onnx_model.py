"""A model that leaves Python: the core of its network as ONNX, the numbers that it takes and gives, and a program that uses it.

model.onnx    the core; its metadata hold the architecture, stems, rate, transform, windows and licences
vectors.npz   an input and output of the core, and a mixture with its stems
example.py    separates songs with them, without torch and without this package
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.errors import EngineError
from serving.model.archive import Archive, read_archive
from serving.model.engines.eager import EagerEngine
from serving.model.networks import Network, RealCore
from serving.model.probe import probe
from serving.model.separator import Separator
from training.errors import ConfigError

EXAMPLE = Path(__file__).with_name("onnx_example.py")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CLOSE_DB = 100.0
"""Both compute in float32: they agree to 110 dB and more."""

FRAMES = 70


def export_onnx(archive: Path, folder: Path) -> None:
    """Write the ONNX model of an archive into a folder that is not there yet or empty.

    Raises ConfigError for another folder, EngineError where the extra `onnx` is missing or ONNX Runtime computes something
    else than torch.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: name a new folder")
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise EngineError(f"{', '.join(missing)} is not installed: pip install 'stemwright[onnx]'")
    opened = read_archive(archive)
    network = opened.network()
    exact = EagerEngine(opened.spec.architecture, network, torch.device("cpu"))
    exact.bfloat16 = False
    separator = Separator(opened.spec, network, "cpu", opened.weights_sha256, exact)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".onnx-") as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        write_core(network, metadata(opened), whole / "model.onnx")
        require_same(network, whole / "model.onnx")
        np.savez(whole / "vectors.npz", allow_pickle=False, **vectors(separator, network))
        shutil.copy(EXAMPLE, whole / "example.py")
        whole.replace(folder)


def metadata(archive: Archive) -> dict[str, str]:
    """All that a program needs beside the core, as ONNX keeps it: words."""
    spec = archive.spec
    facts = {
        "architecture": spec.architecture,
        "stems": ",".join(spec.stems),
        "sample_rate_hz": spec.audio.sample_rate_hz,
        "n_fft": spec.stft.n_fft,
        "hop_samples": spec.stft.hop_samples,
        "window": "periodic Hann, frames centred, zeros beyond the ends",
        "chunk_length_s": spec.chunk.length_s,
        "chunk_overlap_s": spec.chunk.overlap_s,
        **archive.network().around_the_core,
        "weights_sha256": archive.weights_sha256,
        "licences": json.dumps(archive.licences.to_json()),
    }
    return {name: str(value) for name, value in facts.items()}


def write_core(network: Network, facts: dict[str, str], path: Path) -> None:
    """Write the core for any batch and, where the architecture allows it, any number of frames."""
    example, longer = network.core_example(FRAMES), network.core_example(8 * FRAMES)
    axes = [0] + [a for a, (n, m) in enumerate(zip(example.shape, longer.shape, strict=True)) if n != m]
    several = torch.cat([example, example])  # a batch of one would be taken for a constant
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            RealCore(network).eval(),
            (several,),
            input_names=["x"],
            output_names=["gains"],
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(facts)
    program.save(path, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns of packages that no network here needs, and of its own deprecated calls."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def require_same(network: Network, path: Path) -> None:
    """Raises EngineError unless ONNX Runtime gives the gains of torch, for other shapes than the exporter saw and for silence.

    The exporter leaves out additions of numbers that it takes for zero: silence shows it.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (network.core_example(FRAMES // 2), 0 * network.core_example(FRAMES + 3)):
        wanted = gains(network, x)
        (found,) = session.run(None, {"x": x.numpy()})
        distance = 10 * np.log10(np.square(wanted).sum() / max(float(np.square(found - wanted).sum()), 1e-20))
        if not distance > CLOSE_DB:
            raise EngineError(
                f"ONNX Runtime {onnxruntime.__version__} is {distance:.1f} dB from torch: "
                "export with the versions in constraints.txt"
            )


def vectors(separator: Separator, network: Network) -> dict[str, NDArray[Any]]:
    """Inputs and outputs, float32: the core's, then those of a mixture at the model's rate."""
    rate_hz = separator.spec.audio.sample_rate_hz
    mixture = probe(rate_hz)
    core_in = network.core_example(FRAMES)
    stems = np.stack(list(separator.separate(mixture, rate_hz).values()))
    outputs = gains(network, core_in)
    return {
        "core_in": core_in.numpy(),
        "core_out": outputs,
        "mixture": mixture,
        "stems": stems,
        "rate_hz": np.array(rate_hz),
    }


@torch.inference_mode()
def gains(network: Network, x: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = network.core(x).numpy()
    return found
