"""Empty MLflow stores in SQLite files. MLflow takes seconds to make the tables of one, so that each is a copy."""

import tempfile
from functools import cache
from pathlib import Path

import mlflow


def new_store(file: Path) -> str:
    """The address of a store in a new file."""
    file.write_bytes(empty_store())
    return f"sqlite:///{file}"


@cache
def empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mlflow.db")
        mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
        return file.read_bytes()
