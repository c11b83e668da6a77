"""Requests to MLflow that a person waits for: each is given up on soon, and what goes wrong is one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException

from training.errors import TrackingError
from training.tracking.words import innermost

REQUEST_TIMEOUT_S = 30


@contextmanager
def asking() -> Iterator[None]:
    """Turn an error of MLflow in the block, or in the function that this decorates, into a TrackingError."""
    bound_requests()
    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"MLflow does not do that ({innermost(error)}): check the address and MLFLOW_TRACKING_URI"
        ) from error


def bound_requests() -> None:
    """Give up on a request soon, unless the user has set how soon: the sender tries again earlier than MLflow would."""
    for setting, value in ((MLFLOW_HTTP_REQUEST_MAX_RETRIES, 0), (MLFLOW_HTTP_REQUEST_TIMEOUT, REQUEST_TIMEOUT_S)):
        if not setting.is_set():
            setting.set(value)
