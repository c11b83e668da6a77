"""Errors of MLflow as one sentence each, without passwords; and the bound on how long a request may take."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException

from training.errors import TrackingError

REQUEST_TIMEOUT_S = 30


@contextmanager
def mlflow_errors() -> Iterator[None]:
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


def innermost(error: BaseException) -> str:
    """The message of the exception that led to this one; MLflow wraps it in pages."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return without_password(str(error).partition("\n")[0])


def without_password(text: str) -> str:
    """The text with the user and password of every URL masked."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
