"""Every variable that a file of infra names is one that something reads."""

import re

from tests.infra.manifests import KUBERNETES, VARIABLES

INFRA = KUBERNETES.parent
OF_THE_PROGRAM_OR_ITS_LIBRARIES = re.compile(r"\b(?:STEMWRIGHT|AWS|MLFLOW)_[A-Z_]*[A-Z]\b")
OF_BOTO3 = {
    f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "DEFAULT_REGION", "ENDPOINT_URL")
}
OF_MLFLOW = {
    *(
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_SERVER_ALLOWED_HOSTS",
    ),
    *("MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"),
}
"""They stand in `mlflow.environment_variables` and its auth plugin."""
OF_COMPOSE = {"MLFLOW_SESSION_SECRET"}
"""A line of infra/.env, which compose.yaml hands on under MLflow's own name."""


def test_every_variable_is_read_by_the_program_or_a_library() -> None:
    ours = (path for path in INFRA.rglob("*") if path.is_file() and path.name != ".env")
    files = [path for path in ours if path.parent.name not in ("secrets", "__pycache__")]
    named = {name: path for path in files for name in OF_THE_PROGRAM_OR_ITS_LIBRARIES.findall(path.read_text())}
    known = VARIABLES | OF_BOTO3 | OF_MLFLOW | OF_COMPOSE
    assert {"STEMWRIGHT_MODEL", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"} <= named.keys()
    assert {name: path.name for name, path in named.items() if name not in known} == {}
