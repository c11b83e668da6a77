"""Words of others in our messages: the reason in an error, an address without its password."""

import re


def innermost(error: BaseException) -> str:
    """The message of the exception that led to this one; MLflow wraps it in pages."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return without_password(str(error).partition("\n")[0])


def without_password(text: str) -> str:
    """The text with the user and password of every URL masked."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
