"""One run in MLflow, as training sees it.

A report goes into a spool in the run folder and from there to MLflow in the background. A tracking server that is slow,
hangs or is gone, from the start or later, neither slows nor stops training.
"""

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from serving.audio import Audio
from serving.audio.audio_io import write
from training.config import TrainConfig, leaves, public_uri
from training.errors import NotFinite, TrackingError
from training.progress import say
from training.tracking.experiment import NOTE_TAG, scores_link
from training.tracking.mlflow_errors import without_password
from training.tracking.spool import Sender, Spool, send_all
from training.tracking.stored_run import ArchiveFacts, Continued, StoredRun, now_ms
from training.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

START_S = 20.0
END_S = 60.0
END_AFTER_INTERRUPT_S = 2.0
SYSTEM_INTERVAL_S = 10.0

End = Literal["completed", "stalled", "interrupted", "diverged", "failed"]
Split = Literal["training", "validation"]
STATUS: Mapping[End, str] = {
    **{"completed": "FINISHED", "stalled": "FINISHED"},
    **{"interrupted": "KILLED", "diverged": "FAILED", "failed": "FAILED"},
}

VARIED = (
    *("preset", "steps", "minutes", "batch_size", "crop_s", "learning_rate", "weight_decay", "warmup", "clip_norm"),
    *("ema_decays", "seed", "init", "precision"),
)
"""Fields of the configuration that people vary: the parameters of the run. `config.json` holds all of them."""


class Tracker:
    """One run. A report is on disk when its call returns; a thread sends the reports in their order.

    As a context manager it ends the run with the block, and says how the block ended.
    """

    end: End = "completed"
    """Why the run ends, unless an exception says otherwise."""

    def __init__(self, uri: str, run_dir: Path, origin: Continued) -> None:
        self._uri = uri
        self._run_dir = run_dir
        self._spool = Spool(run_dir / "spool")
        self._spool.take()
        self._run = StoredRun(uri, run_dir, origin)
        self._spool.append({"op": "begin"})
        self._sender = Sender(self._spool, self._run.send, f"MLflow at {without_password(uri)}")
        self._closing = threading.Event()
        self._gauges = threading.Thread(target=self._watch_system, name="system metrics", daemon=True)
        self._gauges.start()

    @classmethod
    def open(cls, uri: str, run_dir: Path, run_id: str | None, step: int = 0) -> Self:
        """Start a run named after its folder, or continue `run_id`, else the run of the folder's spool, at `step`.

        Waits some seconds for MLflow to answer, then goes on without. Raises TrackingError where the run folder cannot be
        written.
        """
        tracker = cls(uri, run_dir, Continued(run_id, step))
        if not tracker._sender.tried(START_S):
            late = f"MLflow at {without_password(uri)} does not answer yet"
            say(f"{late}: training goes on, {run_dir}/spool keeps what it reports")
        tracker._say_link()
        return tracker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close(self.end, END_S)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.close("interrupted", END_AFTER_INTERRUPT_S)
        else:
            self.tag({"error": str(error).partition("\n")[0] or type(error).__name__})
            self.close("diverged" if isinstance(error, NotFinite) else "failed", END_S)

    @property
    def run_id(self) -> str | None:
        """The id of the run in MLflow; None until MLflow has answered for the first time."""
        return self._run.run_id

    def describe(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Log what people vary as parameters, the whole configuration as a file, and facts such as the device as tags.

        Parameters keep their first value. Where a run that goes on has others, they become tags `resume.<name>`.
        """
        params = {name: plain(value) for name, value in leaves(config) if name in VARIED and value is not None}
        self._spool.append({"op": "params", "params": params})
        self.tag(facts)
        self.facts("config.json", config.to_json())

    def tag(self, facts: Mapping[str, Any]) -> None:
        """Log facts as tags; a tag is replaced by the next one of its name."""
        self._spool.append({"op": "tags", "tags": {name: str(value) for name, value in facts.items()}})

    def note(self, markdown: str) -> None:
        """Replace the description of the run, which its page shows."""
        self.tag({NOTE_TAG: markdown})

    def facts(self, name: str, content: Any) -> None:
        """Log a file of JSON; it replaces the one of its name."""
        self._send_file(self._json_file(name, content))

    def data(self, source: str, digest: str, split: Split, *, songs: int, measured: int, seconds: float) -> None:
        """Log the songs of a data set that the run learns from, or is validated with.

        `seconds` are those of the `measured` songs, the ones that have arrived.
        """
        profile = {"songs": songs, "measured_songs": measured, "seconds": round(seconds, 1)}
        facts = {"source": source, "digest": digest, "profile": profile}
        self._spool.append({"op": "data", "split": split, **facts})

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log the finite ones of the numbers of a step. The steps of one name rise: one that was logged is not logged again."""
        self._spool.append({"op": "numbers", "values": finite_numbers(values), "step": step, "time_ms": now_ms()})

    def summary(self, values: Mapping[str, float]) -> None:
        """Log the finite ones of numbers that have no steps; a number replaces the last one of its name."""
        self._spool.append({"op": "summary", "values": finite_numbers(values), "time_ms": now_ms()})

    def picture(self, key: str, figure: "Figure", number: int) -> None:
        """Log a picture of a series; the page shows the series as a slider, several runs side by side."""
        path = self._spool.new_file("picture.png")
        figure.savefig(path)
        facts = {"key": key, "number": number, "time_ms": now_ms()}
        self._spool.append({"op": "picture", "path": self._relative(path), **facts})

    def listen(self, excerpts: Mapping[str, Audio], rate_hz: int) -> None:
        """Log excerpts (c, n) as `listen/<name>.flac`, which the page plays; each replaces the one of its name."""
        for name, excerpt in excerpts.items():
            path = self._spool.new_file(f"{name}.flac")
            write(path, excerpt, rate_hz)
            self._send_file(path, "listen")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, replacing the one of its name. The page groups by the first column and compares the second."""
        path = self._json_file(name, {"columns": list(columns), "data": [list(row) for row in rows]})
        self._spool.append({"op": "table", "path": self._relative(path)})

    def archive(self, path: Path, facts: ArchiveFacts) -> None:
        """Log the model archive as a file of the run, its sha256, and as a model that the run gave."""
        copy, again = self._spool.new_file(path.name), self._spool.new_file(path.name)
        for target in (copy, again):
            shutil.copyfile(path, target)
        self._send_file(copy, "archive")
        digest = hashlib.sha256(again.read_bytes()).hexdigest()
        self.tag({"archive.sha256": digest})
        self._spool.append({"op": "model", "path": self._relative(again), "sha256": digest, **asdict(facts)})

    def close(self, end: End, timeout_s: float = END_S) -> None:
        """End the run and wait until all reports are sent, `timeout_s` at most.

        The spool keeps the rest; `sync` sends it, or the run when it goes on. Only the first call counts.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._gauges.join(1)
        self.tag({"end": end})
        self._spool.append({"op": "end", "status": STATUS[end], "time_ms": now_ms()})
        if not self._sender.close(timeout_s):
            remedy = f"python -m training sync --run-dir {self._run_dir}, or --resume"
            say(f"MLflow did not get everything, {self._spool.folder} keeps the rest: send it with {remedy}")
        self._say_link()

    def _say_link(self) -> None:
        if self._run.experiment_id is not None:
            say(
                f"scores of all runs: {scores_link(public_uri() or without_password(self._uri), self._run.experiment_id)}"
            )

    def _json_file(self, name: str, content: Any) -> Path:
        path = self._spool.new_file(name)
        path.write_text(json.dumps(content, indent=2))
        return path

    def _send_file(self, path: Path, folder: str | None = None) -> None:
        self._spool.append({"op": "file", "path": self._relative(path), "folder": folder})

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._spool.folder))

    def _watch_system(self) -> None:
        machine = SystemMetrics()
        while not self._closing.wait(SYSTEM_INTERVAL_S):
            self._spool.append(
                {"op": "numbers", "values": finite_numbers(machine.read()), "step": None, "time_ms": now_ms()}
            )


def sync(uri: str, run_dir: Path) -> int:
    """Send the reports that a run's spool still holds. Returns their number. Raises TrackingError.

    A run whose process was killed ends as interrupted, at its last report.
    """
    if not (run_dir / "spool").is_dir():
        raise TrackingError(f"{run_dir} holds no reports of a run: name the --run-dir of one")
    spool = Spool(run_dir / "spool")
    if spool.take() and not has_ended(spool):
        last_report_ms = int(spool.journal.stat().st_mtime * 1000)
        spool.append({"op": "tags", "tags": {"end": "interrupted"}})
        spool.append({"op": "end", "status": STATUS["interrupted"], "time_ms": last_report_ms})
    return send_all(spool, StoredRun(uri, run_dir, Continued()).send)


def has_ended(spool: Spool) -> bool:
    """False for a run that began, or went on, and has reported no end."""
    ends = [operation["op"] == "end" for operation in spool.operations() if operation["op"] in ("begin", "end")]
    return not ends or ends[-1]


def finite_numbers(values: Mapping[str, float]) -> dict[str, float]:
    """The values that are neither infinite nor NaN, rounded."""
    return {name: rounded(value) for name, value in values.items() if math.isfinite(value)}


def rounded(value: float) -> float:
    """Round to three decimals, and numbers below 1 to three digits, so that a learning rate keeps its value."""
    return round(value, 3) if abs(value) >= 1 else float(f"{value:.3g}")


def plain(value: Any) -> str:
    """A parameter as a person writes it: `0.99, 0.999` for a tuple."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
