"""Checks of what a user names: a place in object storage, an MLflow, an archive. All of them are used for real."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from serving.errors import StemwrightError
from serving.model.device import device_of
from serving.model.separator import Separator
from serving.model.source import resolve
from serving.storage.storage import list_files
from training.doctor.finding import Finding
from training.errors import TrainingError

RATE_HZ = 44_100


def store(url: str) -> Finding:
    """List a folder or prefix, write an object below it, and delete that."""
    from training.preflight import try_storing

    done = "nothing"
    try:
        files = list_files(url)
        done = "list"
        try_storing(url)
    except (TrainingError, StemwrightError) as error:
        return Finding("storage", f"{url}: {done} works", "wrong", str(error))
    return Finding("storage", f"{url}: list ({len(files)} files), write and delete work")


def mlflow(uri: str) -> Finding:
    """Read from an MLflow and write to it."""
    from training.tracking.mlflow_errors import without_password
    from training.tracking.probe import probe_store

    shown = without_password(uri)
    try:
        probe_store(uri, Path("runs", "doctor"))
    except TrainingError as error:
        return Finding("MLflow", f"{shown} does not work", "wrong", str(error))
    return Finding("MLflow", f"{shown}: read and write work")


def archive(model: str, device: torch.device | None) -> Finding:
    """Open an archive and separate a second of stereo noise."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, RATE_HZ)).astype(np.float32)
    try:
        with tempfile.TemporaryDirectory() as folder:
            chosen = device_of(str(device) if device else None, asked_by="--device")
            separator = Separator.open(resolve(model, Path(folder)), chosen)
        began = time.perf_counter()
        stems = separator.separate(noise, RATE_HZ)
    except (StemwrightError, RuntimeError) as error:
        return Finding("archive", f"{model} does not separate", "wrong", str(error).splitlines()[0])
    return Finding("archive", f"{model}: {', '.join(stems)}; a second took {time.perf_counter() - began:.2f} s")
