"""The best weights of a run as a model archive, in the run folder and where it is published."""

import tempfile
from pathlib import Path

from serving.errors import StemwrightError
from serving.model.archive import read_archive, write_archive
from serving.model.licences import Licences
from serving.storage.storage import exists, fetch_file, is_remote, store_file
from training.config import read_config
from training.errors import CheckpointError, ConfigError
from training.optimization.state import load_network


def archive_of(run_dir: Path, preset: str) -> Path:
    """The path of the archive in a run folder."""
    return run_dir / f"{preset}.mar"


def published_as(to: str, run_dir: Path, preset: str) -> str:
    """The address of a published archive: `to` if it ends in .mar, else <preset>-<name of the run folder>.mar below it."""
    return to if to.endswith(".mar") else f"{to.rstrip('/')}/{preset}-{run_dir.resolve().name}.mar"


def export(run_dir: Path) -> Path:
    """Write the archive of a run into its folder. Raises CheckpointError if the run has no validated weights yet."""
    config = read_config(run_dir)
    network, facts = load_network(run_dir / "best.safetensors", config.model)
    archive = archive_of(run_dir, config.preset)
    licences = Licences.from_json(facts.pop("licences")) if "licences" in facts else None
    write_archive(archive, config.model, network, facts, licences)
    return archive


def publish(run_dir: Path, to: str, overwrite: bool = False) -> str:
    """Export a run and copy its archive to a .mar address, or below a folder or prefix. Returns the archive's address.

    An archive of the same weights may be there. Raises ConfigError if another one is and `overwrite` is false. Every error
    names the archive that was made and the command that publishes it.
    """
    archive = export(run_dir)
    target = published_as(to, run_dir, read_config(run_dir).preset)
    try:
        if not overwrite and exists(target):
            if weights_of(target) == read_archive(archive).weights_sha256:
                return target
            raise ConfigError(f"{target} holds another archive, and nothing is overwritten without --overwrite")
        if is_remote(target) or Path(target).resolve() != archive.resolve():
            store_file(archive, target)
    except (StemwrightError, ConfigError) as error:
        command = f"stemwright export --run-dir {run_dir} --to {to}"
        raise type(error)(f"{error}; the archive is {archive}: publish it with `{command}`") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}); the archive is {archive}") from error
    return target


def weights_of(archive: str) -> str:
    """The SHA-256 of the weights in an archive, local or in object storage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "published.mar")
        fetch_file(archive, path)
        return read_archive(path).weights_sha256


def run_id_of(run_dir: Path) -> str:
    """The MLflow id of the run whose best weights a folder holds. Raises CheckpointError if MLflow did not know the run
    yet."""
    _, facts = load_network(run_dir / "best.safetensors", read_config(run_dir).model)
    if facts["run_id"] is None:
        raise CheckpointError(
            f"MLflow did not know the run in {run_dir} when its best weights were saved: go on with --resume while it answers"
        )
    return str(facts["run_id"])
