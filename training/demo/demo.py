"""The main job from end to end, with the commands that a user would type: songs → object storage → training with MLflow →
archive in object storage → TorchServe → stems. Every part is real. Every server that it starts is stopped.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from serving.audio.audio_io import read
from training.config import environment
from training.data.song import PAIR
from training.errors import TrainingError
from training.demo.local_s3 import serve_s3
from training.evaluation.metrics import csdr, recovered_percent

BUCKET = "stemwright"
SONGS, TEST_SONGS, SONG_S = 24, 3, 20


def demo(out: Path, minutes: float) -> None:
    """Run the whole path below `out`, show every step, end with a report. Raises TrainingError if a step fails."""
    require_checkout()
    songs, buckets, run_dir = out / "songs", out / "buckets", next_run_dir(out / "runs")
    (buckets / BUCKET).mkdir(parents=True, exist_ok=True)
    data, archive = f"s3://{BUCKET}/songs", f"s3://{BUCKET}/models/{run_dir.name}.mar"

    say_stage(1, f"{SONGS + TEST_SONGS} songs with true stems, in {songs}")
    run("training songs", songs, train=SONGS, test=TEST_SONGS, seconds=SONG_S)

    with serve_s3(buckets) as s3:
        say_stage(2, f"an S3 server at {s3.endpoint}; the songs go into {data}")
        run("training push", songs, data, env=s3.environment)

        say_stage(3, f"training for {minutes:g} minutes, tracked in {out / 'runs' / 'mlflow.db'}")
        flags = {"data": data, "run_dir": run_dir, "cache": out / "cache", "minutes": minutes, "publish": archive}
        run("training train", env=s3.environment, **flags)

        say_stage(4, "scores on songs that training never saw")
        flags = {"model": archive, "data": data, "cache": out / "cache", "split": "test", "json": run_dir / "test.json"}
        run("training evaluate", env=s3.environment, **flags)

        starter = out / "starter.mar"
        run("serving starter", to=starter)
        archives = {run_dir.name: archive, "starter": str(starter)}
        for name, model in archives.items():
            say_stage(5, f"TorchServe on {model}")
            with server(model, s3.environment, out / "server.log") as url:
                say_stage(6, f"separating over HTTP, {url}")
                for song in unseen_songs(out):
                    run("serving separate", song / "mixture.wav", server=url, out=out / "stems" / name / song.name)

    print(scores_report(out, run_dir, list(archives)))


def require_checkout() -> None:
    """Raises TrainingError if a part is not installed: an image holds either training or serving."""
    rclone, torchserve = Path(sys.executable).with_name("rclone").exists(), find_spec("ts") is not None
    missing = [name for name, there in (("rclone", rclone), ("TorchServe", torchserve)) if not there]
    if missing:
        raise TrainingError(
            f"the demo is for a checkout, and {' and '.join(missing)} is not installed here: run `make demo` in a clone of "
            "the repository"
        )


def run(command: str, *positional: object, env: Mapping[str, str] | None = None, **flags: object) -> None:
    """Run one command of a package as a user would, and show its output."""
    words = ["-m", *command.split(), *map(str, positional)]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    code = subprocess.run([sys.executable, *words], env=environment(env or {}), check=False).returncode
    if code != 0:
        raise TrainingError(f"`python {shlex.join(words)}` ended with exit code {code}: its message is above")


@contextmanager
def server(archive: str, env: Mapping[str, str], log: Path) -> Iterator[str]:
    """Start a separation server on a free port and wait until it is ready. Its output goes to `log`."""
    command = [sys.executable, "-m", "serving", "serve", "--model", archive, "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment(env), stdout=output, stderr=subprocess.STDOUT)
    try:
        while not (ready := re.search(r"^ready: (\S+)", log.read_text(), re.MULTILINE)):
            if process.poll() is not None:
                raise TrainingError(f"the server ended with exit code {process.returncode}: {log} says why")
            time.sleep(0.2)
        yield ready[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


def next_run_dir(runs: Path) -> Path:
    """A folder for a new run, beside the existing ones."""
    taken = [int(path.name.removeprefix("classic-")) for path in runs.glob("classic-*")]
    return runs / f"classic-{max(taken, default=0) + 1}"


def unseen_songs(out: Path) -> list[Path]:
    """The folders of songs that training does not use."""
    return sorted((out / "songs" / "test").iterdir())


def scores_report(out: Path, run_dir: Path, models: Sequence[str]) -> str:
    """The scores of each model's stems as its server returned them, and the next commands."""
    songs = unseen_songs(out)
    width = max(len(song.name) for song in songs)
    lines = ["", f"SDR in dB{'':{width + 6}}" + "".join(f"{name:>19}" for name in (*models, "the mixture"))]
    for song in songs:
        vocals, rate_hz = read(song / "vocals.wav")
        mixture, _ = read(song / "mixture.wav")
        references = np.stack([vocals, mixture - vocals])
        folders = [out / "stems" / name / song.name / "mixture" for name in models]
        estimates = [np.stack([read(folder / f"{stem}.wav")[0] for stem in PAIR]) for folder in folders]
        floor = np.broadcast_to(mixture, references.shape)
        columns = [csdr(references, estimate, rate_hz) for estimate in (*estimates, floor)]
        for stem, *scores in zip(PAIR, *columns, strict=True):
            lines.append(f"{song.name:{width}} {stem:14}" + "".join(map(cell, scores)))
    example, programs = songs[0] / "mixture.wav", Path(sys.executable).parent
    return "\n".join(
        [
            *lines,
            "",
            f"listen:         {out / 'stems'}",
            f"compare runs:   {programs}/mlflow ui --backend-store-uri sqlite:///{out / 'runs' / 'mlflow.db'}",
            f"serve it again: {programs}/python -m serving serve --model {run_dir / 'classic.mar'}",
            f"and ask it:     curl -T '{example}' http://127.0.0.1:8080/predictions/stemwright -o stems.zip",
        ]
    )


def cell(score: float) -> str:
    """A score in dB, with the recovered share of the energy."""
    return f"{score:9.2f} ({recovered_percent(score):6.0f}%)"


def say_stage(number: int, what: str) -> None:
    print(f"\n[{number}/6] {what}", flush=True)
