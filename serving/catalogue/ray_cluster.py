"""Workers on Ray: on the cluster in RAY_ADDRESS, else on this machine's processors. Only this file knows Ray."""

import itertools
import logging
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from serving.catalogue.require_cluster import require_cluster
from serving.catalogue.task import Outcome, Task
from serving.catalogue.worker import Form, Worker
from serving.errors import RequestError
from serving.settings import EngineName, ray_address

try:
    import pyarrow
    import ray
    import ray.data
except ImportError as error:
    raise RequestError("catalogues need Ray: pip install 'stemwright[catalogue]'") from error

TASKS_AN_OBJECT = 64
LOST_WORKERS_A_SONG = 2
"""A song during which so many workers were lost is given up: it may be the song that kills them."""


@dataclass(frozen=True)
class Cluster:
    """The processors for workers: as many workers as fit, each with its share."""

    gpus_per_worker: float = 0
    engine: EngineName = "auto"

    def put(self, tasks: Iterable[Task]) -> tuple[list[Any], int]:
        """Put tasks into Ray's object store; returns references and the number of tasks."""
        references: list[Any] = []
        count = 0
        iterator = iter(tasks)
        while some := list(itertools.islice(iterator, TASKS_AN_OBJECT)):
            references.append(ray.put(pyarrow.Table.from_pylist([asdict(task) for task in some])))
            count += len(some)
        return references, count

    def outcomes(self, references: list[Any], archive: bytes, form: Form) -> Iterator[Outcome]:
        """Yield outcomes in any order. A song whose workers are lost again and again has none."""
        songs = ray.data.from_arrow_refs(references).repartition(target_num_rows_per_block=1)
        with warnings.catch_warnings():
            # Ray means to rename `max_task_retries`; its version is pinned until it has.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            done = songs.map(
                Actor,  # type: ignore[arg-type]  # a class is called with its instance
                fn_constructor_args=(ray.put(archive), form, "cuda" if self.gpus_per_worker else "cpu", self.engine),
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=None),
                num_cpus=1,
                num_gpus=self.gpus_per_worker,
                max_task_retries=LOST_WORKERS_A_SONG,
            )
        batch: Any
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            yield from (Outcome(**row) for row in batch.to_pylist())

    def without_outcome(self, references: list[Any], songs: Iterable[str]) -> Iterator[Task]:
        """Find the tasks whose song is not among these."""
        ended = set(songs)
        for reference in references:
            yield from (Task(**row) for row in ray.get(reference).to_pylist() if row["song"] not in ended)


class Actor:
    """A `Worker` as Ray Data calls it: a row in, a row out."""

    def __init__(self, archive: bytes, form: Form, device: str, engine: EngineName) -> None:
        # Ray Data does not resolve a reference that is nested in the arguments.
        self.worker = Worker(ray.get(archive) if isinstance(archive, ray.ObjectRef) else archive, form, device, engine)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.worker(Task(**row)).to_json()


@contextmanager
def connected(gpus_per_worker: float, engine: EngineName) -> Iterator[Cluster]:
    """Connect to the cluster, or start Ray on this machine, for the block."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # it would tell that its own token guards it
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs a traceback for every lost worker
    require_cluster(ray_address())
    # Without an address Ray would ask the last cluster of this machine, for minutes where that was killed.
    address = ray_address() or "local"
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
        )
    except SystemExit as leaving:  # of Ray's own handler, which exits with 15
        raise SystemExit(128 + signal.SIGTERM) from leaving
    signal.signal(signal.SIGTERM, before)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the songs of a lost block are named at the end
    try:
        yield Cluster(gpus_per_worker, engine)
    finally:
        ray.shutdown()
