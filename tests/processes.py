"""Processes of training, forked off one that has imported everything and computed nothing: alive at once, and sound."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess


def forked(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A started process that runs `target`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process
