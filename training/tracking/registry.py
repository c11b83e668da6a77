"""The registered model in MLflow."""

import mlflow
from mlflow.exceptions import MlflowException

REGISTERED_MODEL = "stemwright"


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
