"""The children of a sweep on the hosts of a Ray cluster. Only this file of training knows Ray.

A host takes one child for each of its GPUs, or one at a time where the cluster has none. All hosts need the run folders, the
songs and the store of MLflow under the same names: a shared folder, or object storage and a server.
"""

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from serving.catalogue.require_cluster import require_cluster
from training.config import environment, settings_of_runs
from training.errors import ConfigError
from training.experiments.sweep import Train, words_of
from training.progress import say
from training.tracking.sweeps import Child


def on_ray(address: str, arguments: Sequence[str]) -> Train:
    """Train on the cluster at an address, each child by a command of its own with these further arguments.

    Raises ConfigError where Ray is not installed, RequestError where no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("RAY_ADDRESS is set, and hosts need Ray: pip install 'stemwright[catalogue]'") from error
    require_cluster(address)

    def train(children: Sequence[Child]) -> Iterator[tuple[Child, int]]:
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address, include_dashboard=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, before)  # Ray's own exits with 15
        hosts = [
            node["Resources"]
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        gpus = sum(host.get("GPU", 0) for host in hosts)
        cores = 1.0 if gpus else min(host.get("CPU", 1) for host in hosts)
        say(f"{len(children)} runs on {len(hosts)} hosts with {gpus:g} GPUs")
        task = ray.remote(num_cpus=cores, num_gpus=min(1, gpus), max_retries=-1)(run)
        try:
            running = {
                task.remote(words_of(child, arguments), settings_of_runs(), str(Path.cwd())): child
                for child in children
            }
            while running:
                (ended,), _ = ray.wait(list(running))
                yield running.pop(ended), ray.get(ended)
        finally:
            ray.shutdown()

    return train


def run(words: Sequence[str], settings: Mapping[str, str], folder: str) -> int:
    """Run a command of this Python on the host of a task; returns its exit code."""
    return subprocess.run([sys.executable, *words], env=environment(settings), cwd=folder, check=False).returncode
