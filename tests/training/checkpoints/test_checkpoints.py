"""Real files, real processes that are killed, and a real S3 server as the mirror."""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.storage.storage import list_files
from tests.gate import Gate, gate_to
from tests.s3 import bucket_fixture  # noqa: F401
from training.checkpoints.checkpoints import Checkpoints, is_sound, step_of
from training.checkpoints.mirror import Mirror
from training.errors import CheckpointError

pytestmark = pytest.mark.slow


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, lambda path: path.write_bytes(f"state of step {step}".encode()) and None)


def steps(folder: Path) -> list[int]:
    return sorted(step_of(path.name) for path in folder.glob("step-*"))


def saved(folder: Path, *which: int, keep: int = 3, mirror: str | None = None) -> None:
    """A run's folder after saves of these steps."""
    checkpoints = Checkpoints(folder, mirror, keep)
    for step in which:
        save(checkpoints, step)
    checkpoints.close(10)


def mirrored_steps(url: str) -> list[int]:
    return sorted(step_of(file.name) for file in list_files(url) if file.name.startswith("step-"))


def newest(folder: Path, mirror: str | None = None) -> Path | None:
    checkpoints = Checkpoints(folder, mirror, 3)
    try:
        return checkpoints.newest()
    finally:
        checkpoints.close(10)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "empty": lambda path: path.write_bytes(b""),
}


def damage(folder: Path, step: int, how: str = "cut") -> Path:
    (path,) = folder.glob(f"step-{step:08d}-*")
    DAMAGE[how](path)
    return path


@pytest.fixture
def url(bucket: Path) -> str:
    return f"s3://{bucket.name}/runs/one"


@pytest.fixture
def gate(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate in front of the S3 server; whoever connects from now on meets it."""
    assert bucket.is_dir()
    with gate_to(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield gate


def test_the_last_few_are_kept_under_names_that_hold_their_hash(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20)
    assert steps(tmp_path) == [10, 15, 20]
    path = newest(tmp_path)
    assert path is not None and path.read_bytes() == b"state of step 20"
    assert path.name == f"step-00000020-{hashlib.sha256(b'state of step 20').hexdigest()[:16]}.safetensors"


def test_a_folder_without_any_has_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path / "new") is None


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_newest_is_named_and_the_one_before_used(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2, 3)
    third, second = damage(tmp_path, 3, how), damage(tmp_path, 2, how)
    path = newest(tmp_path)
    assert path is not None and path.read_bytes() == b"state of step 1"
    assert capsys.readouterr().err == f"damaged: {third}, {second}; {path} is used instead\n"


def test_a_resumed_run_drops_what_it_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 30)
    damage(tmp_path, 30)
    saved(tmp_path, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_folder_of_damaged_ones_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    paths = [damage(tmp_path, step) for step in (2, 1)]
    with pytest.raises(CheckpointError, match=r"no sound checkpoint is left.*train again") as error:
        newest(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "saving").write_bytes(b"half a sta")
    Checkpoints(tmp_path, None, 3)  # another process of the run: it leaves alone what the first one writes
    assert (tmp_path / ".partial" / "saving").exists()
    assert newest(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_the_old_ones_stay(tmp_path: Path) -> None:
    def to_a_full_disk(path: Path) -> None:
        path.write_bytes(b"half a sta")
        Path("/dev/full").write_bytes(b"te")

    checkpoints = Checkpoints(tmp_path, None, 3)
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"step 2 cannot be written to .*No space left.*make room"):
        checkpoints.save(2, to_a_full_disk)
    assert list((tmp_path / ".partial").iterdir()) == []
    path = checkpoints.newest()
    assert path is not None and step_of(path.name) == 1
    save(checkpoints, 3)  # there is room again
    checkpoints.close(10)
    assert steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("notice", ["the next save", "close"])
def test_what_fails_in_the_background_is_raised_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: str
) -> None:
    checkpoints = Checkpoints(tmp_path, None, 3)
    save(checkpoints, 1)
    checkpoints.newest()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    save(checkpoints, 2)
    with pytest.raises(CheckpointError, match="step 2 cannot be written"):
        if notice == "close":
            checkpoints.close(10)
        else:
            save(checkpoints, 3)
    assert steps(tmp_path) == [1]


SAVES_FOR_EVER = """
import sys, itertools
from pathlib import Path
from training.checkpoints.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), None, 3)
for step in itertools.count(int(sys.argv[2])):
    checkpoints.save(step, lambda path: path.write_bytes(step.to_bytes(8, "big") * 250_000) and None)
    print(step, flush=True)
"""


def test_a_process_killed_at_random_leaves_a_sound_newest(tmp_path: Path, times: Callable[[int, int], int]) -> None:
    reached = 0
    for moment in range(times(3, 20)):
        command = [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path), str(reached + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline()]  # it has begun
            time.sleep(random.Random(moment).uniform(0, 0.2))
            process.kill()
            printed += process.stdout.readlines()
        path = newest(tmp_path)
        assert path is not None and is_sound(path)
        step = step_of(path.name)
        assert path.read_bytes() == step.to_bytes(8, "big") * 250_000
        assert step >= int(printed[-1]) - 1, "only the save that was being completed may be lost"
        assert len(steps(tmp_path)) <= 4, "the kill came between a new one and the removal of the oldest"
        reached = step


def test_the_mirror_is_an_image_of_the_folder(tmp_path: Path, url: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    checkpoints = Checkpoints(here, url, 2)
    for step in (1, 2, 3):
        (here / "best.safetensors").write_text(f"best of step {step}")
        checkpoints.mirror(here / "best.safetensors")
        save(checkpoints, step)
    checkpoints.close(30)
    assert mirrored_steps(url)[-1] == 3 and len(mirrored_steps(url)) <= 2

    elsewhere = Checkpoints(there, url, 2)
    path = elsewhere.newest()
    assert path is not None and path.parent == there and path.read_bytes() == b"state of step 3"
    assert elsewhere.fetch("best.safetensors")
    assert (there / "best.safetensors").read_text() == "best of step 3"
    assert not elsewhere.fetch("config.json")
    save(elsewhere, 4)
    save(elsewhere, 5)
    elsewhere.close(30)
    assert len(mirrored_steps(url)) == 2 and mirrored_steps(url)[-1] == 5
    assert sorted(path.name for path in there.iterdir() if path.is_dir()) == []


def test_damage_here_is_made_good_from_the_mirror_and_damage_there_is_passed_over(
    tmp_path: Path, bucket: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        saved(tmp_path / "run", step, mirror=url)
    here = damage(tmp_path / "run", 2)
    path = newest(tmp_path / "run", url)
    assert path == here and is_sound(here)
    assert capsys.readouterr().err == f"damaged: {here}; {here} is used instead\n"

    DAMAGE["bit"](bucket / "runs" / "one" / here.name)
    path = newest(tmp_path / "elsewhere", url)
    assert path is not None and path.read_bytes() == b"state of step 1"
    assert capsys.readouterr().err == f"damaged: {url}/{here.name}; {path} is used instead\n"


def test_a_mirror_that_was_down_gets_everything_once_it_is_back(
    tmp_path: Path, bucket: Path, url: str, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, url, 3)
    (tmp_path / "config.json").write_text("{}")
    started = time.monotonic()
    checkpoints.mirror(tmp_path / "config.json")
    for step in range(1, 6):
        save(checkpoints, step)
    assert time.monotonic() - started < 1
    wait_until(lambda: "is behind, training goes on" in capsys.readouterr().err)
    gate.open()
    checkpoints.close(30)
    config, checkpoint = sorted((bucket / "runs" / "one").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert config.name == "config.json" and step_of(checkpoint.name) == 5, "files go before the checkpoint"
    assert mirrored_steps(url) == [5], "those that the newest overtook are not sent"
    assert capsys.readouterr().err == f"the mirror {url} works again\n"


def test_a_mirror_that_is_down_is_an_error_only_where_the_folder_has_nothing(
    tmp_path: Path, url: str, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "run", 1)
    checkpoints = Checkpoints(tmp_path / "run", url, 3)
    path = checkpoints.newest()
    assert path is not None and path.read_bytes() == b"state of step 1"
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=rf"holds no checkpoint and the mirror cannot be read.*{url}"):
        newest(tmp_path / "empty", url)
    gate.open()
    checkpoints.close(30)
    assert mirrored_steps(url) == [1], "what the mirror lacks at a resume is stored there"


HANGS_AND_ENDS = """
import sys
from pathlib import Path
from training.checkpoints.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), sys.argv[2], 3)
checkpoints.save(1, lambda path: path.write_bytes(bytes(1000)) and None)
checkpoints.close(2)
"""


def test_a_hanging_mirror_does_not_keep_the_process(tmp_path: Path, url: str, gate: Gate) -> None:
    gate.hang()
    started = time.monotonic()
    command = [sys.executable, "-c", HANGS_AND_ENDS, str(tmp_path), url]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert f"the mirror {url} lacks step-00000001-" in ended.stderr
    assert steps(tmp_path) == [1]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)


def test_what_a_checkpoint_speaks_of_is_in_the_mirror_before_it(tmp_path: Path) -> None:
    """A file and a checkpoint that wait together, whichever was asked for first."""
    checkpoint, best = tmp_path / "checkpoint", tmp_path / "best"
    checkpoint.write_text("a")
    best.write_text("b")
    for asked in ("checkpoint first", "file first"):
        mirror = Mirror(str(tmp_path / asked), tmp_path / "scratch", lambda _names, _saved: [])
        with mirror._changed:  # nothing goes before both wait
            mirror.store(best) if asked == "file first" else mirror.store_checkpoint(checkpoint)
            mirror.store_checkpoint(checkpoint) if asked == "file first" else mirror.store(best)
        mirror.close(60)
        born_ns = {name: (tmp_path / asked / name).stat().st_mtime_ns for name in ("best", "checkpoint")}
        assert born_ns["best"] < born_ns["checkpoint"], asked
