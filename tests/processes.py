"""Processes of training, forked off one that has imported everything and computed nothing: alive at once, and sound."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess


def forked(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A started process that runs `target`."""
    context = multiprocessing.get_context("forkserver")
    late = ["librosa.feature.spectral", "torch._dynamo", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking"]
    context.set_forkserver_preload(["training.run.train", "matplotlib.backends.backend_agg", *late])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process
