"""Songs of files and folders: which are found, which are done, and what is told of those that fail."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serving.audio.delivery import FACT_SHEET
from serving.audio.encoding import Written
from serving.errors import AudioError, RequestError
from serving.songs.batch import AUDIO_SUFFIXES, Job, select, separate_all
from serving.songs.fact_sheet import FactSheet, ModelFacts, SongFacts, sha256_of
from serving.songs.request import Request

WEIGHTS = "f" * 64
REQUEST = Request(("vocals", "accompaniment"), "wav", zipped=True)


def files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def separated(song: Path, out: Path, stems: Sequence[str] = REQUEST.stems) -> FactSheet:
    """Write stems of a song of 24 bits and their fact sheet."""
    files(out, *(f"{stem}.wav" for stem in stems))
    facts = (song.name, song.stat().st_size, sha256_of(song), None, 1, 44_100, 2, "WAV", "PCM_24", None)
    written = {stem: Written(f"{stem}.wav", 0, 0.5, 0) for stem in stems}
    form = ("fast", "wav", "24", written, {"separate": 1.0})
    sheet = FactSheet(1, SongFacts(*facts), ModelFacts("classic", WEIGHTS), tuple(stems), *form)
    (out / FACT_SHEET).write_bytes(sheet.to_json())
    return sheet


def relative(paths: Sequence[Path], out: Path, top: Path) -> dict[str, str]:
    jobs = select(paths, out).jobs
    return {str(job.song.relative_to(top)): str(job.out.relative_to(top)) for job in jobs}


def test_a_folder_keeps_its_shape(tmp_path: Path) -> None:
    files(tmp_path / "in", "b.wav", "a/c.MP3", "a/notes.txt", ".hidden.wav", "a/d.flac", "a/d.wav", ".x/e.wav", "cover")
    assert relative([tmp_path / "in"], tmp_path / "out", tmp_path) == {
        "in/a/c.MP3": "out/a/c",
        "in/a/d.flac": "out/a/d.flac",
        "in/a/d.wav": "out/a/d.wav",
        "in/b.wav": "out/b",
    }
    assert sorted(select([tmp_path / "in"], tmp_path / "out").skipped) == [".txt", "cover"]


def test_every_kind_that_is_read_singly_is_found() -> None:
    named = "wav w64 flac ogg oga opus spx mp3 mp2 aif aiff aifc au caf aac m4a m4b mp4 mov mka mkv webm wma wv tta ac3"
    others = "thd mlp dts eac3 m4p m2ts loas"
    assert {f".{kind}" for kind in f"{named} {others}".split()} <= AUDIO_SUFFIXES


def test_files_are_taken_at_their_word(tmp_path: Path) -> None:
    paths = [tmp_path / "song", tmp_path / "x" / "other.bin"]
    assert relative(paths, tmp_path / "out", tmp_path) == {"song": "out/song", "x/other.bin": "out/other"}


def test_a_song_named_twice_is_one_song(tmp_path: Path) -> None:
    files(tmp_path / "in", "a.wav")
    paths = [tmp_path / "in", tmp_path / "in" / "a.wav", tmp_path / "in" / "a.wav"]
    assert len(select(paths, tmp_path / "out").jobs) == 1


def test_a_link_to_nothing_is_told_of_and_a_ring_of_links_ends(tmp_path: Path) -> None:
    files(tmp_path / "in", "a.wav")
    (tmp_path / "in" / "b.wav").symlink_to("nothing.wav")
    (tmp_path / "in" / "ring").symlink_to(".")
    os.mkfifo(tmp_path / "in" / "pipe.wav")
    assert [job.song.name for job in select([tmp_path / "in"], tmp_path / "out").jobs] == ["a.wav", "b.wav"]


@pytest.mark.parametrize("name", ["...wav", "..wav", "....wav", "...", "..a.wav"])
def test_a_name_of_dots_stays_inside_the_folder(name: str, tmp_path: Path) -> None:
    (job,) = select([tmp_path / name], tmp_path / "out").jobs
    assert job.out.parent == tmp_path / "out"
    assert job.out.name.strip(".")


@pytest.mark.parametrize("out", ["in/stems", "in", "."])
def test_stems_are_no_songs(out: str, tmp_path: Path) -> None:
    files(tmp_path / "in", "song.wav", "vocals.wav")
    first = relative([tmp_path / "in"], tmp_path / out, tmp_path)
    assert len(first) == 2
    for song, folder in first.items():
        separated(tmp_path / song, tmp_path / folder)
    assert relative([tmp_path / "in"], tmp_path / out, tmp_path) == first
    assert select([tmp_path / "in"], tmp_path / out).skipped == []


def test_two_songs_never_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="would share the folder"):
        select([tmp_path / "a" / "song.wav", tmp_path / "b" / "song.wav"], tmp_path)


def test_no_songs(tmp_path: Path) -> None:
    files(tmp_path, "notes.txt")
    with pytest.raises(RequestError, match="there are no songs"):
        select([tmp_path], tmp_path / "out")


@pytest.fixture
def done(tmp_path: Path) -> Job:
    """A song that was separated as `REQUEST` asks."""
    song = tmp_path / "song.wav"
    song.write_bytes(b"song")
    separated(song, tmp_path / "out")
    return Job(song, tmp_path / "out")


@pytest.mark.parametrize(
    ("request_", "weights_sha256", "is_done"),
    [
        (REQUEST, WEIGHTS, True),
        (replace(REQUEST, stems=("vocals",)), WEIGHTS, True),
        (replace(REQUEST, bit_depth="24"), WEIGHTS, True),
        (replace(REQUEST, stems=("vocals", "drums")), WEIGHTS, False),
        (replace(REQUEST, audio_format="flac"), WEIGHTS, False),
        (replace(REQUEST, quality="best"), WEIGHTS, False),
        (replace(REQUEST, bit_depth="16"), WEIGHTS, False),
        (REQUEST, "0" * 64, False),
    ],
)
def test_the_fact_sheet_says_what_is_done(request_: Request, weights_sha256: str, is_done: bool, done: Job) -> None:
    assert done.is_done(request_, weights_sha256) is is_done


def test_stems_of_another_bit_depth_than_the_songs_own_are_not_what_is_asked_for(done: Job) -> None:
    sheet = replace(FactSheet.from_json((done.out / FACT_SHEET).read_bytes()), bit_depth="16")
    (done.out / FACT_SHEET).write_bytes(sheet.to_json())
    assert not done.is_done(REQUEST, WEIGHTS)
    assert done.is_done(replace(REQUEST, bit_depth="16"), WEIGHTS)


@pytest.mark.parametrize("sheet", [b"", b"{}", b"[1]", b'{"version": 2}', b"\xff"])
def test_what_is_no_fact_sheet_says_nothing(sheet: bytes, done: Job) -> None:
    (done.out / FACT_SHEET).write_bytes(sheet)
    assert not done.is_done(REQUEST, WEIGHTS)


def test_stems_that_are_gone_or_cut_are_not_done(done: Job) -> None:
    (done.out / "vocals.wav").write_bytes(b"1")
    assert not done.is_done(REQUEST, WEIGHTS)
    (done.out / "vocals.wav").unlink()
    assert not done.is_done(REQUEST, WEIGHTS)


def test_a_song_that_changed_is_not_done(done: Job) -> None:
    later = (done.out / FACT_SHEET).stat().st_mtime + 10
    os.utime(done.song, (later, later))
    assert done.is_done(REQUEST, WEIGHTS), "touched, and the same"
    done.song.write_bytes(b"gnos")
    os.utime(done.song, (later, later))
    assert not done.is_done(REQUEST, WEIGHTS)
    done.song.write_bytes(b"longer")
    os.utime(done.song, (0, 0))
    assert not done.is_done(REQUEST, WEIGHTS)


def test_what_is_done_is_left_out_and_a_bad_song_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav", "notes.txt")
    planned = select([tmp_path], tmp_path / "out")
    tried: list[str] = []

    def separate(job: Job) -> list[Path]:
        tried.append(job.song.name)
        if job.song.name == "b.wav":
            raise AudioError("b.wav is damaged: send it again")
        if job.song.name == "d.wav":
            raise OSError(28, "No space left on device")
        return [job.out / "vocals.wav"]

    assert separate_all(planned, separate, lambda job: job.song.name == "a.wav") == 2
    assert tried == ["b.wav", "c.wav", "d.wav"]
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/out/c/vocals.wav\n"
    assert err.splitlines() == [
        f"{tmp_path}/b.wav: AudioError: b.wav is damaged: send it again",
        f"{tmp_path}/d.wav: no space is left for the stems in {tmp_path}/out/d: "
        "free some, or name another folder with --out",
        "1 of 4 songs were done before",
        "1 files were skipped, no audio by their names: .txt",
    ]


def test_clipping_and_an_end_without_proof_are_told(done: Job, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = FactSheet.from_json((done.out / FACT_SHEET).read_bytes())
    loud = {**sheet.files, "vocals": Written("vocals.wav", 0, 1.25, 1_234)}
    noted = replace(sheet.song, note="the file ends without the mark of its end")
    (done.out / FACT_SHEET).write_bytes(replace(sheet, files=loud, song=noted).to_json())
    assert separate_all(select([done.song], done.out), lambda _: [], lambda _: False) == 0
    assert capsys.readouterr().err == ""
    planned = select([done.song], done.out.parent)
    planned = replace(planned, jobs=[done])
    assert separate_all(planned, lambda _: [], lambda _: False) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{done.song}: samples beyond full scale were clipped in vocals (1,234, peak 1.25): ask for --bit-depth float",
        f"{done.song}: the file ends without the mark of its end",
    ]


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song = tmp_path / os.fsdecode(b"caf\xe9\n\x1b[31m.wav")
    song.write_bytes(b"")

    def fail(_: Job) -> list[Path]:
        raise AudioError("it is damaged")

    planned = select([song], tmp_path / "out")
    assert separate_all(planned, lambda job: [job.out / "vocals.wav"], lambda _: False) == 0
    assert separate_all(planned, fail, lambda _: False) == 1
    out, err = capsys.readouterr()
    escaped = r"caf\xe9\n\x1b[31m"
    assert out == f"{tmp_path}/out/{escaped}/vocals.wav\n"
    assert err == f"{tmp_path}/{escaped}.wav: AudioError: it is damaged\n"
