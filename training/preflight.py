"""Tries everything that a run needs later, before its first step: folders, object storage, MLflow."""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from serving.errors import StemwrightError, StoreUnavailable
from serving.storage.storage import delete, exists, is_remote, store_file
from training.errors import ConfigError, TrainingError
from training.tracking.probe import probe_store

DEADLINE_S = 20.0
"""Seconds that everything over the network may take, all of it at once. A busy MLflow was seen to take eleven."""

Failure = TrainingError | StemwrightError


def preflight(folders: Sequence[Path], stores: Sequence[str], tracking_uri: str, run_dir: Path) -> Failure | None:
    """Write to every place that a run will write to. Returns why MLflow would refuse the run, None if it accepts it.

    `folders` are local, `stores` are prefixes or .mar addresses, s3:// or plain. Each gets a small object, which is
    removed. Raises ConfigError or StorageError for the first that fails, within DEADLINE_S.
    """
    for folder in folders:
        try_writing(folder)
    over_http = tracking_uri.startswith(("http://", "https://"))
    attempts = {store: partial(try_storing, store) for store in stores}
    if over_http:
        attempts[tracking_uri] = partial(probe_store, tracking_uri, run_dir)
    failures = within(DEADLINE_S, attempts)
    for store in stores:
        if failure := failures[store]:
            raise failure
    return failures[tracking_uri] if over_http else attempt(partial(probe_store, tracking_uri, run_dir))


def refuse_to_overwrite(archive: str) -> None:
    """Raise ConfigError if an archive of this address exists."""
    if exists(archive):
        raise ConfigError(f"{archive} is there already: give --overwrite, or another name.mar to --publish")


def try_writing(folder: Path) -> None:
    """Write and remove a small file in a folder, which is made. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".try-") as file:
            file.write(b"stemwright")
            file.flush()
    except PermissionError as error:
        user = f"{os.getuid()}:{os.getgid()}"
        there = next(parent for parent in (folder, *folder.parents) if os.access(parent, os.F_OK))
        remedy = f"`chown -R {user} {there}` where it lives, or `docker run --user` with the owner's numbers"
        raise ConfigError(f"user {user} may not write to {folder}: {remedy}") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to ({error.strerror}): name another folder") from error


def try_storing(url: str) -> None:
    """Write and remove a small object below a prefix or beside a .mar file. Raises ConfigError or StorageError."""
    prefix = url.rpartition("/")[0] if url.endswith(".mar") else url.rstrip("/")
    if not is_remote(url) and "://" not in url:
        try_writing(Path(prefix or "."))
        return
    with tempfile.NamedTemporaryFile(prefix="stemwright-") as file:
        file.write(b"stemwright")
        file.flush()
        name = f"{prefix}/.try-{uuid.uuid4().hex}"
        store_file(Path(file.name), name)
        delete(name)


def within(seconds: float, attempts: Mapping[str, Callable[[], object]]) -> dict[str, Failure | None]:
    """Make all attempts at once; returns the failures by name. An attempt that takes too long has failed."""
    failures: dict[str, Failure | None] = {
        name: StoreUnavailable(f"{name} gives no answer in {seconds:g} s: check the address and the network")
        for name in attempts
    }

    def work(name: str) -> None:
        failures[name] = attempt(attempts[name])

    # Daemons: an attempt that hangs does not keep the process from ending.
    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in attempts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(failures)


def attempt(work: Callable[[], object]) -> Failure | None:
    try:
        work()
    except (TrainingError, StemwrightError) as error:
        return error
    return None
