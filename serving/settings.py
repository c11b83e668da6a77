"""The facts of a deployment; the only file of serving that reads the environment.

Every field of `Settings` is read from `STEMWRIGHT_` and its name in capitals: `http_port` from `STEMWRIGHT_HTTP_PORT`. The
names stay what they are: the worker runs the code in the archive, and an old archive reads them, too. Credentials are no
settings: boto3 and MLflow find `AWS_*` and `MLFLOW_*` themselves.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from serving.errors import ServerError

PREFIX = "STEMWRIGHT_"
OTHER_NAMES = {f"{PREFIX}API_KEY"}
MISSPELT = 0.7
"""The similarity from which on a name is taken for a setting's with a mistake."""
OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d")
"""Kubernetes sets such names in every pod beside a service whose name begins with stemwright."""
ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.:\[\]-]+")
EngineName = Literal["auto", "torch", "openvino"]
STARTER = "starter"
"""The name that stands for the starter where an archive is asked for."""
ENGINES: tuple[EngineName, ...] = ("auto", "torch", "openvino")
CREDENTIALS = ("AWS_", "MLFLOW_")
HIDDEN_FROM_WORKERS = (*CREDENTIALS, "TS_", "PYTHONPATH")
SECRET = re.compile("SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """The settings of one server. A port of 0 is any free one.

    `http_port` is not `port`: Kubernetes sets STEMWRIGHT_PORT in every pod beside a service of the name stemwright.
    """

    model: str | None = None
    """The archive to serve: a path, s3://…, runs:/…, models:/… or starter."""
    http_host: str = "127.0.0.1"
    """The address that the endpoint listens on; 0.0.0.0 is every network. Management and gRPC never leave this machine."""
    http_port: int = 8080
    management_port: int = 0
    metrics_host: str = "127.0.0.1"
    """The address that Prometheus asks. The metrics have no password: only a network that you own should reach them."""
    metrics_port: int = 0
    max_request_mb: int = 200
    """Twenty minutes of 44.1 kHz stereo WAV, more than an hour of FLAC. The server holds a request in memory several times."""
    max_duration_s: int = 3600
    """Compressed audio can be short in bytes and endless in time: an hour of it is minutes of work on a CPU, and the stems of
    an hour are gigabytes that Java holds for a client that reads slowly."""
    max_million_samples: int = 700
    """Samples of all channels together: an hour of stereo at 96 kHz, with stems of up to 2.8 GB each."""
    allowed_uris: str = ""
    """The addresses below which songs may be read and stems written by reference: prefixes such as s3://bucket/songs and
    https://bucket.s3.amazonaws.com/songs/, commas between them. With an s3:// prefix the workers get the AWS_ credentials."""
    max_reference_mb: int = 2_000
    """The largest song by reference, up to 1 TB. It goes through a temporary file and costs no memory."""
    max_temporary_mb: int = 12_000
    """The largest sum of temporary files of one request, up to 1 TB: the song, and the stems that wait for their turn in a
    zip or for a bucket. Enough for an hour of stereo at 96 kHz as four stems of floats. A /tmp in memory wants less."""
    cors_origins: str = ""
    """The one origin, such as https://songs.example.com, whose pages may ask from a browser; * for all, off if empty."""
    workers: int = 1
    """Processes with a model each; more than one pays on as many GPUs."""
    queue_size: int = 8
    """Requests that wait, in memory, for a worker; beyond them the answer is 503."""
    response_timeout_s: int = 600
    """A worker silent for so long is restarted. It speaks with every window, so this bounds a window and not a song."""
    request_timeout_s: int = 1800
    """All the work on one request; looked at with every piece of the answer, so that a worker survives it."""
    grace_period_s: int = 25
    """Seconds that requests in progress may take after SIGTERM. Docker's `stop_grace_period` and
    Kubernetes' `terminationGracePeriodSeconds` must be longer."""
    startup_timeout_s: int = 300
    engine: EngineName = "auto"
    """The engine that runs the network: torch, openvino, or auto: OpenVINO on a CPU if it is there and agrees with torch."""
    run_dir: str | None = None
    """The folder through which the server tells its workers to stop. It sets this itself."""
    device: str | None = None
    """A torch device such as cpu or cuda:1; without it each worker takes the GPU that TorchServe gives it, else the CPU."""

    def __post_init__(self) -> None:
        """Raises ServerError for origins that TorchServe cannot allow."""
        if self.cors_origins and not ORIGIN.fullmatch(self.cors_origins):
            remedy = "set it to one origin such as https://songs.example.com, or to *"
            raise ServerError(f"{PREFIX}CORS_ORIGINS is {self.cors_origins!r}: {remedy}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings of an environment. Raises ServerError for a value that cannot be used, and for a misspelt name."""
        facts: dict[str, Any] = {}
        names = {PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        for name, field in names.items():
            value = environ.get(name, "").strip()
            if value:
                facts[field.name] = whole_number(name, value) if isinstance(field.default, int) else value
        for name in sorted(environ.keys() - names.keys() - OTHER_NAMES):
            if meant := setting_meant(name, environ[name], list(names)):
                raise ServerError(f"there is no setting {name}: did you mean {meant}?")
        if facts.get("engine", "auto") not in ENGINES:
            raise ServerError(f"{PREFIX}ENGINE is {facts['engine']!r}: set it to {', '.join(ENGINES)}")
        return cls(**facts)


def setting_meant(name: str, value: str, settings: Sequence[str]) -> str | None:
    """Find the setting that a variable of another name is meant for, None where it looks like none of them."""
    if not name.startswith(PREFIX) or OF_KUBERNETES.search(name) or value.startswith(("tcp://", "udp://")):
        return None
    bare = {setting.removeprefix(PREFIX): setting for setting in settings}
    meant = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1, cutoff=MISSPELT)
    return bare[meant[0]] if meant else None


def whole_number(name: str, value: str) -> int:
    """Read a setting. Raises ServerError for a number out of its range."""
    smallest, largest = (0, 65_535) if name.endswith("_PORT") else (1, 2_000)
    if name.endswith("_S"):
        largest = 86_400
    if name.endswith(("MAX_REFERENCE_MB", "MAX_TEMPORARY_MB", "_MILLION_SAMPLES")):
        largest = 1_000_000
    if not value.isdecimal() or not smallest <= int(value) <= largest:
        raise ServerError(f"{name} is {value!r}: set it to a whole number from {smallest} to {largest:,}")
    return int(value)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's folder for what can be made again: the starter, and conversions of networks. XDG_CACHE_HOME moves it."""
    base = environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "stemwright"


def ray_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Ray cluster that takes the work; None for this machine alone."""
    return environ.get("RAY_ADDRESS") or None


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that the client shows to a proxy. It is no setting: a server has no use for it."""
    return environ.get(f"{PREFIX}API_KEY", "").strip() or None


def storage_environment(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, str], ...]:
    """The AWS_* variables, sorted: boto3 reads them itself, and a change of them asks for another connection."""
    return tuple(sorted((name, value) for name, value in environ.items() if name.startswith("AWS_")))


def print_settings(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Print the settings that differ from the default, and the names of the credentials that are set, never their values."""
    usual = Settings()
    facts = [
        f"{PREFIX}{name.upper()}={'' if value is None else value}"
        for name, value in vars(settings).items()
        if value != getattr(usual, name)
    ]
    secrets = [f"{name}=***" for name in sorted(environ) if name.startswith(CREDENTIALS)]
    return "\n".join([*(facts or ["the default settings"]), *secrets])


def worker_environment(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of TorchServe and its workers: this one, with the settings as they are used.

    Left out: credentials, which only the parent needs, to fetch the archive, and all else whose name says secret; `TS_*`,
    which would override TorchServe's configuration; PYTHONPATH, before whose packages those in the archive must go. The
    credentials of object storage stay where songs may be read from buckets.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(HIDDEN_FROM_WORKERS) and not SECRET.search(name)
    }
    if "s3://" in settings.allowed_uris:
        kept |= {name: value for name, value in environ.items() if name.startswith("AWS_")}
    facts = {PREFIX + name.upper(): str(value) for name, value in vars(settings).items() if value is not None}
    return kept | facts
