"""The best weights of a run as a model archive, in a file or in object storage."""

import tempfile
from pathlib import Path

from serving.model.archive import write_archive
from serving.model.licences import Licences
from serving.storage.storage import is_remote, store_file
from training.config import read_config
from training.errors import CheckpointError
from training.run.state import load_network


def export(run_dir: Path, to: str) -> str:
    """Write the archive of a run to a path or s3:// address that ends in .mar, or below a folder or prefix; says where it is.

    Raises CheckpointError where the run has no validated weights yet, StorageError where they cannot be put there.
    """
    config = read_config(run_dir)
    network, facts = load_network(run_dir / "best.safetensors", config)
    licences = Licences.from_json(facts.pop("licences")) if "licences" in facts else None
    target = to if to.endswith(".mar") else f"{to.rstrip('/')}/{config.preset}.mar"
    if is_remote(target):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder, Path(target).name)
            write_archive(archive, config.model, network, facts, licences)
            store_file(archive, target)
    else:
        write_archive(Path(target), config.model, network, facts, licences)
    return target


def run_id_of(run_dir: Path) -> str:
    """The MLflow run whose best weights a run folder holds. Raises CheckpointError where MLflow did not know it yet."""
    _, facts = load_network(run_dir / "best.safetensors", read_config(run_dir))
    if facts["run_id"] is None:
        raise CheckpointError(
            f"MLflow did not know the run in {run_dir} when its best weights were saved: go on with --resume while it answers"
        )
    return str(facts["run_id"])
