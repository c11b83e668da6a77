"""A sweep in MLflow: a parent run, under which the page folds the children, with the best of them and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from training.tracking.experiment import CHOSEN_BY, NOTE_TAG, find_or_make_experiment
from training.tracking.mlflow_errors import mlflow_errors
from training.tracking.stored_run import run_id_in


@dataclass(frozen=True)
class Child:
    """A run of a sweep: its name, its folder, and the flags that it tries."""

    name: str
    run_dir: Path
    flags: Mapping[str, str]

    @property
    def run_id(self) -> str | None:
        """The id in MLflow; None for a run that MLflow does not know."""
        return run_id_in(self.run_dir)


class Parent:
    """The run of a sweep."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, name: str) -> None:
        self.client, self.run_id, self.name = client, run_id, name

    @classmethod
    @mlflow_errors()
    def open(cls, uri: str, folder: Path) -> Self:
        """The run of the sweep in a folder, a new one where there is none. Raises TrackingError."""
        client, name = mlflow.MlflowClient(uri), folder.resolve().name
        experiment_id = find_or_make_experiment(client, uri, folder)
        address = str(folder.resolve())
        found = client.search_runs([experiment_id], f"tags.`sweep.folder` = '{address}'")
        if found:
            return cls(client, found[0].info.run_id, name)
        run = client.create_run(experiment_id, tags={"kind": "sweep", "sweep.folder": address}, run_name=name)
        return cls(client, run.info.run_id, name)

    @mlflow_errors()
    def show(self, children: Sequence[Child]) -> None:
        """Fold the children below this run, by names that tell in a flat list, too, and show the best of them."""
        for child in children:
            if child.run_id is not None:
                self.client.set_tag(child.run_id, MLFLOW_PARENT_RUN_ID, self.run_id)
                self.client.update_run(child.run_id, name=f"{self.name}/{child.name}")
        scored = [score for child in children if (score := self.score(child)) is not None]
        if scored:
            self.client.log_metric(self.run_id, CHOSEN_BY, max(scored), step=0)
        self.client.set_tag(self.run_id, NOTE_TAG, f"```\n{self.table(children)}\n```")
        self.client.set_terminated(self.run_id, "FINISHED")

    def score(self, child: Child) -> float | None:
        """The best mean uSDR in dB of a child; None where it has none."""
        if child.run_id is None:
            return None
        score: float | None = self.client.get_run(child.run_id).data.metrics.get(CHOSEN_BY)
        return score

    def table(self, children: Sequence[Child]) -> str:
        """A line for each child, the best first."""
        scores = {child.name: self.score(child) for child in children}
        names = sorted(scores, key=lambda name: -(scores[name] if scores[name] is not None else float("-inf")))  # type: ignore[operator]
        return "\n".join(f"{'-' if scores[name] is None else f'{scores[name]:.2f} dB':>9}  {name}" for name in names)
