"""The main job, end to end, with the commands that a user would type: songs → object storage → training with MLflow →
archive in object storage → TorchServe → stems. Everything is real; everything that is started is stopped.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from training.config import environment
from training.errors import TrainingError
from training.local_s3 import serve_s3
from training.metrics import csdr, recovered_percent

BUCKET = "stemwright"
SONGS, TEST_SONGS, SONG_S = 24, 3, 20


def demo(out: Path, minutes: float) -> None:
    """Run the path below `out`, show every step, end with a report. Raises TrainingError where a step failed."""
    buckets, run_dir, stems_dir = out / "buckets", next_run_dir(out / "runs"), out / "stems"
    (buckets / BUCKET).mkdir(parents=True, exist_ok=True)
    data, archive = f"s3://{BUCKET}/songs", f"s3://{BUCKET}/models/{run_dir.name}.mar"

    say(1, f"{SONGS + TEST_SONGS} songs with true stems, in {out / 'songs'}")
    songs = ["songs", out / "songs", "--train", SONGS, "--test", TEST_SONGS, "--seconds", SONG_S]
    run("training", *songs)

    with serve_s3(buckets) as s3:
        say(2, f"an S3 server at {s3.endpoint}; the songs go into {data}")
        run("training", "push", out / "songs", data, env=s3.environment)

        say(3, f"training for {minutes:g} minutes, tracked in {out / 'runs' / 'mlflow.db'}")
        train = [
            "train",
            "--preset",
            "classic",
            "--data",
            data,
            "--run-dir",
            run_dir,
            "--minutes",
            minutes,
            "--publish",
            archive,
        ]
        run("training", *train, env=s3.environment)

        say(4, "scores on songs that training never saw")
        scores = ["evaluate", "--model", archive, "--data", data, "--split", "test", "--json", run_dir / "test.json"]
        run("training", *scores, env=s3.environment)

        say(5, f"TorchServe on {archive}")
        with server(archive, s3.environment, out / "server.log") as url:
            say(6, f"separating over HTTP, {url}")
            test_songs = sorted((out / "songs" / "test").iterdir())
            for song in test_songs:
                run("serving", "separate", song / "mixture.wav", "--server", url, "--out", stems_dir / song.name)

    print(report(test_songs, stems_dir, run_dir, out))


def run(package: str, *arguments: object, env: Mapping[str, str] | None = None) -> None:
    """Run one command of a package as a user would; its output is shown as it comes."""
    command = [str(a) for a in arguments]
    code = subprocess.run([sys.executable, "-m", package, *command], env=environment(env or {}), check=False).returncode
    if code != 0:
        raise TrainingError(
            f"`python -m {package} {' '.join(command)}` ended with exit code {code}: its message is above"
        )


@contextmanager
def server(archive: str, env: Mapping[str, str], log: Path) -> Iterator[str]:
    """The endpoint of a separation server on a free port, from the moment it is ready; what it prints goes to `log`."""
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
    """A folder for a new run beside the ones that are there."""
    taken = [int(path.name.removeprefix("classic-")) for path in runs.glob("classic-*")]
    return runs / f"classic-{max(taken, default=0) + 1}"


def report(songs: list[Path], stems_dir: Path, run_dir: Path, out: Path) -> str:
    """What came back over HTTP, scored against the true stems, and what to do next."""
    lines = ["", f"{'song':28} {'stem':14} {'SDR, dB':>8} {'recovered':>10} {'the mixture':>12}"]
    for song in songs:
        mixture, rate_hz = soundfile.read(song / "mixture.wav", dtype="float32", always_2d=True)
        vocals, _ = soundfile.read(song / "vocals.wav", dtype="float32", always_2d=True)
        references = np.stack([vocals.T, (mixture - vocals).T])
        stems = ("vocals", "accompaniment")
        estimates = np.stack(
            [soundfile.read(stems_dir / song.name / f"{stem}.wav", dtype="float32")[0].T for stem in stems]
        )
        scores = csdr(references, estimates, rate_hz)
        floors = csdr(references, np.broadcast_to(mixture.T, references.shape), rate_hz)
        for stem, score, floor in zip(stems, scores, floors, strict=True):
            lines.append(f"{song.name:28} {stem:14} {score:8.2f} {recovered_percent(score):9.0f}% {floor:12.2f}")
    example = songs[0] / "mixture.wav"
    return "\n".join(
        [
            *lines,
            "",
            f"listen:         {stems_dir}",
            f"compare runs:   mlflow ui --backend-store-uri sqlite:///{out / 'runs' / 'mlflow.db'}",
            f"serve it again: python -m serving serve --model {run_dir / 'classic.mar'}",
            f"and ask it:     curl -T '{example}' http://127.0.0.1:8080/predictions/stemwright -o stems.zip",
        ]
    )


def say(number: int, what: str) -> None:
    print(f"\n[{number}/6] {what}", flush=True)
