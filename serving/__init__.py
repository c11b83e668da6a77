"""The inference layer of Stemwright: everything that happens to one song."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import Client
    from serving.model.separator import Separator

__all__ = ["Client", "Separator"]


def __getattr__(name: str) -> Any:
    """Import `Separator` and `Client` where they are first asked for (PEP 562): torch takes seconds."""
    if name == "Separator":
        from serving.model.separator import Separator

        return Separator
    if name == "Client":
        from serving.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
