"""Runs in MLflow; the only file of the training package that names it."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import mlflow
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException

from serving.audio_io import write
from serving.chunks import Audio
from training.config import TrainConfig, leaves

EXPERIMENT = "stemwright"
REGISTERED_MODEL = "stemwright"


class Tracker:
    """One run. Numbers are sent in the background; files when they are logged."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    @classmethod
    @contextmanager
    def open(cls, uri: str, run_dir: Path, run_id: str | None) -> Iterator[Self]:
        """A new run named after its folder, or the run `run_id` continued; it ends with the block, whatever way that ends."""
        mlflow.set_tracking_uri(uri)
        start_experiment(uri, run_dir)
        mlflow.start_run(run_id=run_id, run_name=None if run_id else run_dir.name, log_system_metrics=True)
        status = "FAILED"
        try:
            active = mlflow.active_run()
            assert active is not None
            yield cls(active.info.run_id)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            mlflow.flush_async_logging()
            mlflow.end_run(status)

    def describe(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Log the configuration, as parameters and whole, and facts such as device, commit and data digest as tags."""
        mlflow.log_params(dict(leaves(config)))
        mlflow.log_dict(config.to_json(), "config.json")
        mlflow.set_tags(dict(facts))

    def data(self, source: str, digest: str) -> None:
        """Log the data set the run trains on."""
        name = source.rstrip("/").rsplit("/", 1)[-1]
        # MLflow's store takes no longer digest; its class of data sets without data is typed as if it were abstract.
        dataset = MetaDataset(CodeDatasetSource({"data": source}), name=name, digest=digest[:36])  # type: ignore[abstract]
        mlflow.log_input(dataset, context="training")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        mlflow.log_metrics(dict(values), step=step, synchronous=False)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        mlflow.log_figure(figure, f"{name}/step_{step:06d}.png")

    def audio(self, stems: Mapping[str, Audio], rate_hz: int, step: int) -> None:
        """Log short excerpts (c, n) as FLAC, which the MLflow page plays."""
        with tempfile.TemporaryDirectory() as folder:
            for stem, excerpt in stems.items():
                write(Path(folder, f"{stem}.flac"), excerpt, rate_hz)
            mlflow.log_artifacts(folder, f"audio/step_{step:06d}")

    def archive(self, path: Path) -> None:
        """Log the model archive and its sha256."""
        mlflow.log_artifact(str(path), "archive")
        mlflow.set_tag("archive.sha256", hashlib.sha256(path.read_bytes()).hexdigest())


def start_experiment(uri: str, run_dir: Path) -> None:
    """Make the experiment where it is missing. A store in a file keeps its artifacts beside it, a server where it likes."""
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        beside = (run_dir.resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        try:
            mlflow.create_experiment(EXPERIMENT, artifact_location=beside)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another run in between
                raise
    mlflow.set_experiment(EXPERIMENT)


def register(uri: str, run_id: str) -> str:
    """Make the archive that a run logged the next version of the registered model; returns its models:/ address."""
    client = mlflow.MlflowClient(uri)
    try:
        client.create_registered_model(REGISTERED_MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.get_run(run_id)
    version = client.create_model_version(REGISTERED_MODEL, f"{run.info.artifact_uri}/archive", run_id)
    return f"models:/{REGISTERED_MODEL}/{version.version}"
