"""The device that a network runs on: the one requested, or what is there."""

import torch

from serving.errors import ServerError


def device_of(asked: str | None, usual: str | None = None, asked_by: str = "STEMWRIGHT_DEVICE") -> torch.device:
    """Choose the device: the one asked for; for None and auto the usual one, without which it is a GPU or else the CPU.

    `asked_by` is the name of the setting or flag. Raises ServerError for a device that is not there: nothing takes its place.
    """
    name = asked if asked and asked != "auto" else usual or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ServerError(f"there is no device {name}: set {asked_by} to auto, cpu or cuda:0") from error
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        remedy = f"set {asked_by} to auto or cpu, or give the container its GPUs"
        raise ServerError(f"there is no {name} here, torch sees {gpus} GPUs: {remedy}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ServerError(f"{name} cannot be used here ({reason}): set {asked_by} to auto or cpu") from error
    return device


def device_name(device: torch.device) -> str:
    """The name of the GPU, or "cpu" and its number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
