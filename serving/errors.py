"""The errors of serving, as one tree.

    StemwrightError                 500
    ├── RequestError                400   the request asks for what the model does not have
    │   └── Forbidden               403   an address that this server may not read or write
    ├── AudioError                  422   the audio is readable but cannot be separated
    │   ├── UnsupportedAudio        415   the bytes are no audio format that can be read here
    │   └── AudioTooLong            413   longer than the server accepts
    ├── SpecError                   500   a model's facts contradict each other
    ├── ArchiveError                500   a model archive is damaged or of an unknown version
    ├── EngineError                 500   an engine cannot run the network here
    ├── LicenceError                500   a licence forbids the use that was asked for
    ├── StorageError                502   object storage refused or could not be reached
    │   └── StoreUnavailable        502   the same request may succeed later
    └── ServerError                 503   the endpoint did not start or does not answer

Each class carries the HTTP status of its answer; the message is one sentence that names the culprit and the remedy.
The tree is caught at two edges: `endpoint/handler.py` turns it into an HTTP answer, `__main__.py` into a line on stderr.
"""

from typing import ClassVar


class StemwrightError(Exception):
    """The base of every error that a caller reads."""

    status: ClassVar[int] = 500


class RequestError(StemwrightError):
    """A stem, format or option that this model or server does not offer."""

    status = 400


class Forbidden(RequestError):
    """An address that the operator has not allowed, or that leads into a private network."""

    status = 403


class AudioError(StemwrightError):
    """Audio without samples, with samples that are not finite, or with a rate or channel count out of range."""

    status = 422


class UnsupportedAudio(AudioError):
    """Bytes in no format that can be decoded here."""

    status = 415


class AudioTooLong(AudioError):
    """Audio longer than the limit of the server."""

    status = 413


class SpecError(StemwrightError):
    """Facts of a model that contradict each other."""


class ArchiveError(StemwrightError):
    """A model archive that is damaged, incomplete or of another format version."""


class EngineError(StemwrightError):
    """An engine that is not installed, or that computes something other than torch."""


class LicenceError(StemwrightError):
    """A model whose licence does not allow the use that was asked for."""


class StorageError(StemwrightError):
    """Object storage that refused a request or could not be reached."""

    status = 502


class StoreUnavailable(StorageError):
    """Object storage that cannot be reached, is overloaded or cut the connection: the same request may succeed later."""


class ServerError(StemwrightError):
    """A separation server that did not start, or that a client could not get an answer from."""

    status = 503
