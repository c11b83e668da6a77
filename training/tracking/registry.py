"""Models in MLflow: an archive as a logged model, its versions under a registered name, and the alias that is served."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException

from training.errors import TrackingError
from training.tracking.mlflow_errors import mlflow_errors

CHAMPION = "champion"
KNOWN_SETS = {
    frozenset({"vocals", "accompaniment"}): "stemwright-2stems",
    frozenset({"vocals", "drums", "bass", "other"}): "stemwright-4stems",
}
SHOWN_DIGEST = 12  # pages show all of it beside the name; the tag data.digest is whole


@dataclass(frozen=True)
class Version:
    """A version of a registered model, with its tags and the aliases that point to it."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def address(self) -> str:
        return f"models:/{self.name}/{self.number}"


def use_store(uri: str) -> None:
    """Let runs:/ and models:/ addresses be those of a store."""
    mlflow.set_tracking_uri(uri)


def registered_name(stems: Sequence[str]) -> str:
    """The registered model of a set of stems, since only archives of the same stems can take each other's place."""
    return KNOWN_SETS.get(frozenset(stems), f"stemwright-{'-'.join(stems)}")


def dataset_name(source: str, split: str) -> str:
    return f"{source.rstrip('/').rsplit('/', 1)[-1]} {split}"


def dataset_digest(digest: str) -> str:
    return digest[:SHOWN_DIGEST]


def log_model(client: mlflow.MlflowClient, run_id: str, archive: Path, facts: Mapping[str, Any]) -> None:
    """Log an archive as a READY model of its run, with its scores by data set. A second call logs nothing."""
    experiment_id = client.get_run(run_id).info.experiment_id
    if logged_models(client, experiment_id, run_id, facts["sha256"]):
        return
    tags = {"stems": ", ".join(facts["stems"]), "licence": facts["licence"], "archive.sha256": facts["sha256"]}
    params = {"preset": facts["preset"], "stems": tags["stems"], "step": str(facts["step"])}
    model = client.create_logged_model(experiment_id, facts["preset"], run_id, tags, params, "separator")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(archive, Path(folder, archive.name))
        client.log_model_artifacts(model.model_id, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, facts["step"])])
    name, digest = dataset_name(facts["data"], "validation"), dataset_digest(facts["data_digest"])
    for key, value in facts["scores"].items():
        client.log_metric(run_id, key, value, step=0, dataset_name=name, dataset_digest=digest, model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")


def logged_models(
    client: mlflow.MlflowClient, experiment_id: str, run_id: str, sha256: str | None = None
) -> list[LoggedModel]:
    """The models that a run gave, the newest first."""
    which = f"source_run_id = '{run_id}'" + (f" and tags.`archive.sha256` = '{sha256}'" if sha256 else "")
    found = client.search_logged_models([experiment_id], which)
    return sorted(
        (model for model in found if str(model.status) == "READY"), key=lambda model: -model.creation_timestamp
    )


@mlflow_errors()
def register(uri: str, run_id: str) -> str:
    """Register the archive of a run as the next version of the model of its stems. Returns its models:/ address.

    Raises TrackingError where the run has logged none.
    """
    use_store(uri)  # MLflow looks there for the source of a version, whatever the client
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    models = logged_models(client, run.info.experiment_id, run_id)
    if not models:
        raise TrackingError(f"run {run_id} has no archive in MLflow: let it end, or send the rest with `sync`")
    model = models[0]
    name = registered_name(model.tags["stems"].split(", "))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    scores = {key: f"{value:g}" for key, value in run.data.metrics.items() if key.startswith("best/")}
    tags = {key: model.tags[key] for key in ("stems", "licence", "archive.sha256")} | scores
    note = run.data.tags.get("mlflow.note.content", "")
    source = f"models:/{model.model_id}"
    version = client.create_model_version(name, source, run_id, tags, description=note, model_id=model.model_id)
    # The page of the model shows its versions by this tag, as `mlflow.register_model` sets it.
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions_tag(model, name, version.version)})
    return f"models:/{name}/{version.version}"


def versions_tag(model: LoggedModel, name: str, number: str) -> str:
    before = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    return json.dumps([*before, {"name": name, "version": number}])


@mlflow_errors()
def versions(uri: str) -> list[Version]:
    """All versions of all registered models, by name, the newest first."""
    client = mlflow.MlflowClient(uri)
    found = []
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name = '{model.name}'"):
            aliases = tuple(alias for alias, number in model.aliases.items() if str(number) == str(version.version))
            found.append(Version(model.name, str(version.version), version.run_id or "", version.tags, aliases))
    return sorted(found, key=lambda version: (version.name, -int(version.number)))


def find_version(uri: str, address: str) -> Version:
    """The version that models:/name/version or models:/name@alias names. Raises TrackingError where there is none."""
    name, separator, wanted = address.removeprefix("models:/").replace("@", "/@").partition("/")
    for version in versions(uri):
        if version.name == name and wanted in (version.number, *(f"@{alias}" for alias in version.aliases)):
            return version
    what = f"{address} is not in the registry" if separator else f"{address} names no version"
    raise TrackingError(f"{what}: `stemwright models` lists what is there, as models:/name/version")


@mlflow_errors()
def point(uri: str, version: Version, alias: str, reason: str) -> None:
    """Let an alias name a version, and keep the reason with the version, the version before it with the model."""
    client = mlflow.MlflowClient(uri)
    history = alias_history(client, version.name, alias)
    client.set_registered_model_tag(version.name, history_tag(alias), json.dumps([*history, version.number]))
    client.set_model_version_tag(version.name, version.number, f"{alias}.reason", reason)
    client.set_registered_model_alias(version.name, alias, version.number)


@mlflow_errors()
def point_back(uri: str, name: str, alias: str) -> Version:
    """Let an alias name the version before the present one. Raises TrackingError where it named none."""
    client = mlflow.MlflowClient(uri)
    history = alias_history(client, name, alias)
    if len(history) < 2:
        raise TrackingError(f"{name}@{alias} has named no other version: there is nothing to go back to")
    *history, worse = history
    client.set_registered_model_tag(name, history_tag(alias), json.dumps(history))
    client.set_model_version_tag(
        name, history[-1], f"{alias}.reason", f"version {worse} was rolled back on {date.today()}"
    )
    client.set_registered_model_alias(name, alias, history[-1])
    return find_version(uri, f"models:/{name}/{history[-1]}")


def alias_history(client: mlflow.MlflowClient, name: str, alias: str) -> list[str]:
    """The versions that an alias has named, the present one last."""
    try:
        stored = client.get_registered_model(name).tags.get(history_tag(alias), "[]")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(f"there is no registered model {name}: `stemwright models` lists them") from error
    history: list[str] = json.loads(stored)
    return history


def history_tag(alias: str) -> str:
    return f"{alias}.history"
