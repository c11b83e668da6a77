"""Sources of a model archive: a path, object storage, a run or a registry; the only file of serving that names mlflow.

starter                        the model to begin with, made once from an installed package
song.mar, /models/x.mar        a file
s3://bucket/x.mar              object storage
runs:/<run id>/archive/x.mar   an artifact of an MLflow run, or the folder with it; runs:/<run id> is its folder archive
models:/name@alias             a registered model whose version was made from such an artifact or folder;
models:/name/version           latest is the newest one; the store is the one that MLFLOW_TRACKING_URI names
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import ArchiveError, StorageError
from serving.settings import STARTER, cache_folder
from serving.storage.storage import fetch_file, is_remote

ARCHIVE_FOLDER = "archive"
ATTEMPTS = 2
TIMEOUT_S = 6


def resolve(model: str, folder: Path) -> Path:
    """A model archive as a file: the file itself, else a copy below `folder`.

    Raises ArchiveError if there is no archive, StorageError if a store has none or cannot be reached.
    """
    if model == STARTER:
        # Imported here: it brings torch, which `serve` needs in its workers alone.
        from serving.model.starter import cached_starter

        return cached_starter(cache_folder())
    if model.startswith(("runs:/", "models:/")):
        return the_archive(from_mlflow(model, folder), model)
    if is_remote(model):
        path = folder / model.rsplit("/", 1)[-1]
        fetch_file(model, path)
        return path
    path = Path(model)
    if not path.is_file():
        raise ArchiveError(f"there is no model archive at {model}: check the path")
    return path


def from_mlflow(uri: str, folder: Path) -> Path:
    """Copy the file or folder behind an MLflow URI below `folder`."""
    with asked_of_mlflow(uri, "does not give"):
        from mlflow.artifacts import download_artifacts

        artifact = version_source(uri) if uri.startswith("models:/") else run_artifact(uri)
        return Path(download_artifacts(artifact_uri=artifact, dst_path=str(folder)))


@contextmanager
def asked_of_mlflow(uri: str, refusal: str) -> Iterator[None]:
    """Within the block MLflow can be asked about an address.

    Raises StorageError where MLflow is not installed or not known, and for every error in the block.
    """
    try:
        import mlflow
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
    except ImportError as error:
        raise StorageError(
            f"{uri} needs MLflow: pip install mlflow-skinny, or give the archive as a path or s3://"
        ) from error
    if not mlflow.is_tracking_uri_set():
        raise StorageError(f"{uri} is in no known store: set MLFLOW_TRACKING_URI to the address of your MLflow")
    # By default MLflow waits four minutes for a server that is away.
    for patience, usual in ((MLFLOW_HTTP_REQUEST_MAX_RETRIES, ATTEMPTS - 1), (MLFLOW_HTTP_REQUEST_TIMEOUT, TIMEOUT_S)):
        if not patience.is_set():
            patience.set(usual)
    try:
        yield
    except Exception as error:  # MLflow lets the exceptions of every store behind it through
        reason = str(error).partition("\n")[0].rstrip(". ")
        raise StorageError(f"MLflow {refusal} {uri}: {reason}; check name and MLFLOW_TRACKING_URI") from error


def run_artifact(uri: str) -> str:
    """The address of the archive folder, if the address names only a run."""
    run = uri.removeprefix("runs:/").strip("/")
    return uri if "/" in run else f"runs:/{run}/{ARCHIVE_FOLDER}"


def version_behind(model: str) -> str | None:
    """The version that `models:/name@alias` names now; None for any other address. Raises StorageError if the registry does
    not answer."""
    name, _, alias = model.removeprefix("models:/").partition("@")
    if not model.startswith("models:/") or not alias:
        return None
    with asked_of_mlflow(model, "does not tell the version of"):
        from mlflow import MlflowClient

        return str(MlflowClient().get_model_version_by_alias(name, alias).version)


def version_source(uri: str) -> str:
    """The artifact that a registered version was made from. MLflow itself only downloads folders."""
    from mlflow import MlflowClient

    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        return str(MlflowClient().get_model_version_by_alias(name, alias).source)
    name, _, version = name.partition("/")
    if version in ("", "latest"):
        versions = MlflowClient().search_model_versions(f"name='{name}'")
        if not versions:
            raise StorageError(f"the registry has no model {name}: check the name and MLFLOW_TRACKING_URI")
        version = str(max(int(found.version) for found in versions))
    return str(MlflowClient().get_model_version(name, version).source)


def the_archive(found: Path, model: str) -> Path:
    """The one .mar file in what was found: a file or a folder."""
    archives = [found] if found.is_file() else sorted(found.rglob("*.mar"))
    if len(archives) != 1:
        names = ", ".join(archive.name for archive in archives) or "none"
        raise ArchiveError(f"{model} should hold one .mar file, it holds {names}: name the file in a runs:/ address")
    return archives[0]
