"""A comparison in MLflow: a run of its own with the report, and `test/` scores with the runs that were compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.model.archive import read_archive
from training.evaluation.compare import Comparison
from training.tracking.runs import history, log_scores, new_comparison


@dataclass(frozen=True)
class Compared:
    """A comparison, where its archives come from, by name, and the songs."""

    comparison: Comparison
    origins: Mapping[str, Mapping[str, Any]]
    data: str

    @property
    def title(self) -> str:
        return f"{' against '.join(self.origins)} on {self.data}"


def origins(archives: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    """The origin that each archive states, by its name."""
    return {name: read_archive(path).origin for name, path in archives.items()}


def curves_of(uri: str, origins: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The validations of the runs that the store knows, by archive."""
    found = {name: history(uri, origin.get("run_id"), "valid/usdr_db") for name, origin in origins.items()}
    return {name: points for name, points in found.items() if points}


def log_comparison(uri: str, compared: Compared, report: Path | None) -> str:
    """Log a comparison as a run, and its scores with the runs compared. Returns the id of the new run."""
    for row in compared.comparison.archives:
        run_id = compared.origins[row.name].get("run_id")
        if row.cost is not None and run_id is not None:  # the row of the stems that the archive gives itself
            scores = {"test/usdr_db": row.mean.usdr_db}
            for stem, score in row.evaluation.stems.items():
                scores |= {f"test/{stem}_usdr_db": score.usdr_db, f"test/{stem}_csdr_db": score.csdr_db}
            log_scores(uri, run_id, scores)
    return new_comparison(uri, compared.title, compared.comparison.table(), compared.comparison.to_json(), report)
