"""Checks of this machine: Python, torch, GPU, processors, memory, disk, Java."""

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import torch

from serving.endpoint.torchserve import find_java
from serving.errors import ServerError
from serving.model.processor import CGROUPS, available_cpus
from serving.version import commit, version
from training.doctor.finding import Finding
from training.optimization.precision import Precision

LITTLE_MEMORY_BYTES = 4 * 2**30
LITTLE_DISK_BYTES = 10 * 10**9
"""MUSDB18 takes 4.7 GB as it comes and about as much decoded for `classic`."""


def code() -> Finding:
    return Finding("Stemwright", f"{version()}, commit {commit()}")


def python() -> Finding:
    return Finding(
        "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    )


def torch_and_cuda(device: torch.device | None) -> Finding:
    """The build of torch and the cards that it can use. `device` is what was asked for."""
    built = f"{torch.__version__}, " + (f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone")
    asked = device is not None and device.type == "cuda"
    if not torch.cuda.is_available():
        remedy = (
            "check that the driver is there (nvidia-smi) and that a container has --gpus all"
            if torch.version.cuda
            else "to use an NVIDIA GPU, install torch from the wheels that name its CUDA"
        )
        return Finding("torch", f"{built}; no GPU", "wrong" if asked else "note", remedy)
    cards = range(torch.cuda.device_count())
    names = ", ".join(f"{torch.cuda.get_device_name(card)} ({architecture(card)})" for card in cards)
    strange = [architecture(card) for card in cards if not in_wheel(architecture(card), torch.cuda.get_arch_list())]
    if strange:
        held = " ".join(torch.cuda.get_arch_list())
        remedy = f"{strange[0]} is not among {held}: install a torch whose CUDA knows this card"
        return Finding("torch", f"{built}; {names}", "wrong", remedy)
    if device is not None and asked and (device.index or 0) not in cards:
        return Finding("torch", f"{built}; {names}", "wrong", f"{device} is not there: take cuda:0 to cuda:{cards[-1]}")
    return Finding("torch", f"{built}; {names}")


def architecture(card: int) -> str:
    major, minor = torch.cuda.get_device_capability(card)
    return f"sm_{major}{minor}"


def in_wheel(card: str, held: list[str]) -> bool:
    """True if code for an architecture such as sm_86 is among those held: the same, an older minor one, or PTX below it.

    The rule is CUDA's binary compatibility: code runs on the same major and a later minor; PTX ("compute_80") on all later.
    """
    number = int(card.removeprefix("sm_"))
    for name in held:
        kind, _, digits = name.rstrip("af").partition("_")
        found = int(digits)
        if found <= number and (kind == "compute" or found // 10 == number // 10):
            return True
    return False


def precision(device: torch.device | None) -> Finding:
    """The type that a training run takes where no --precision is given."""
    taken = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if taken.type == "cuda" and not torch.cuda.is_available():
        return Finding("precision", "unknown, as there is no GPU", "note")
    return Finding("precision", f"{Precision.of(taken, None).name} in training on {taken}")


def processors() -> Finding:
    return Finding("processors", f"{available_cpus()}, counting the limit of the container")


def memory(cgroups: Path = CGROUPS) -> Finding:
    """Memory of the machine and the limit of the container (cgroup v2, `memory.max`)."""
    total = (
        int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
        << 10
    )
    limits = [
        int(text)
        for file in cgroups.glob("memory.max")
        if (text := file.read_text().strip()).isdecimal() and int(text) < total
    ]
    usable = min([total, *limits])
    found = f"{usable / 1e9:.1f} GB" + (", the limit of the container" if limits else "")
    if usable < LITTLE_MEMORY_BYTES:
        return Finding("memory", found, "note", "training wants 4 GB and more: raise the limit of the container")
    return Finding("memory", found)


def disk(folder: Path) -> Finding:
    """Free room where runs and the cache go."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
    if free < LITTLE_DISK_BYTES:
        return Finding(
            "disk", found, "note", "MUSDB18 and its decoded songs take about 10 GB: name --cache on a larger disk"
        )
    return Finding("disk", found)


def java() -> Finding:
    """Java for TorchServe, which `stemwright serve` starts."""
    try:
        found = find_java()
        return Finding("Java", f"{found}, TorchServe {metadata.version('torchserve')}")
    except ServerError as error:
        return Finding("Java", "none that TorchServe runs on", "note", f"to serve: {error}")
    except metadata.PackageNotFoundError:
        return Finding("Java", f"{found}, but no TorchServe", "note", "to serve: pip install 'stemwright[serve]'")
