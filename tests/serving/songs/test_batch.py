"""Which songs of files and folders are separated, which are done, and what is left when some fail."""

import os
from pathlib import Path

import pytest

from serving.errors import AudioError, RequestError
from serving.songs.batch import Job, jobs, separate_all


def files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def relative(found: list[Job], top: Path) -> dict[str, str]:
    return {str(job.song.relative_to(top)): str(job.out.relative_to(top)) for job in found}


def test_a_folder_keeps_its_shape(tmp_path: Path) -> None:
    files(tmp_path / "in", "b.wav", "a/c.MP3", "a/notes.txt", ".hidden.wav", "a/d.flac", "a/d.wav")
    assert relative(jobs([tmp_path / "in"], tmp_path / "out"), tmp_path) == {
        "in/a/c.MP3": "out/a/c",
        "in/a/d.flac": "out/a/d.flac",
        "in/a/d.wav": "out/a/d.wav",
        "in/b.wav": "out/b",
    }


def test_files_are_taken_at_their_word(tmp_path: Path) -> None:
    paths = [tmp_path / "song", tmp_path / "x" / "other.bin"]
    assert relative(jobs(paths, tmp_path / "out"), tmp_path) == {"song": "out/song", "x/other.bin": "out/other"}


def test_stems_are_no_songs(tmp_path: Path) -> None:
    files(tmp_path, "song.wav", "stems/song/vocals.wav")
    assert relative(jobs([tmp_path], tmp_path / "stems"), tmp_path) == {"song.wav": "stems/song"}


def test_two_songs_never_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="would share the folder"):
        jobs([tmp_path / "a" / "song.wav", tmp_path / "b" / "song.wav"], tmp_path)


def test_no_songs(tmp_path: Path) -> None:
    files(tmp_path, "notes.txt")
    with pytest.raises(RequestError, match="there are no songs"):
        jobs([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    ("there", "stems", "done"),
    [
        ([], ["vocals"], False),
        (["vocals.wav"], ["vocals"], True),
        (["vocals.flac"], ["vocals"], False),
        (["vocals.wav"], ["vocals", "accompaniment"], False),
        (["vocals.wav", "accompaniment.wav"], ["vocals", "accompaniment"], True),
        (["vocals.wav", "accompaniment.wav"], ["vocals", "drums", "bass", "other"], False),
    ],
)
def test_a_song_is_done_when_its_stems_are_there(
    there: list[str], stems: list[str], done: bool, tmp_path: Path
) -> None:
    files(tmp_path, "song.wav", *(f"out/{name}" for name in there))
    assert Job(tmp_path / "song.wav", tmp_path / "out").is_done(stems, "wav") is done


def test_a_song_that_changed_is_not_done(tmp_path: Path) -> None:
    files(tmp_path, "song.wav", "out/vocals.wav", "out/accompaniment.wav")
    os.utime(tmp_path / "out" / "vocals.wav", (0, 0))
    assert not Job(tmp_path / "song.wav", tmp_path / "out").is_done(["vocals", "accompaniment"], "wav")


def test_what_fails_keeps_nobody_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(tmp_path, "a.wav", "b.wav", "c.wav", "out/a/vocals.wav")
    todo = jobs([tmp_path], tmp_path / "out")
    separated: list[str] = []

    def separate(job: Job) -> list[Path]:
        separated.append(job.song.name)
        if job.song.name == "b.wav":
            raise AudioError("b.wav is damaged: send it again")
        return [job.out / "vocals.wav"]

    assert separate_all(todo, separate, ["vocals"], "wav") == 1
    assert separated == ["b.wav", "c.wav"]
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/out/c/vocals.wav\n"
    assert err.splitlines() == [
        f"{tmp_path}/b.wav: AudioError: b.wav is damaged: send it again",
        "1 of 3 songs were done before",
    ]
