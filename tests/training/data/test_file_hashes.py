import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.data.file_hashes import FileHashes


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_and_again_when_its_size_or_time_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    os.utime(file, ns=(5, 5))
    assert FileHashes(tmp_path / "hashes").sha256(file) == of(b"one")

    file.write_bytes(b"two")
    os.utime(file, ns=(5, 5))
    assert FileHashes(tmp_path / "hashes").sha256(file) == of(b"one")  # it was not read

    os.utime(file, ns=(6, 6))
    assert FileHashes(tmp_path / "hashes").sha256(file) == of(b"two")
    file.write_bytes(b"three")
    os.utime(file, ns=(6, 6))
    assert FileHashes(tmp_path / "hashes").sha256(file) == of(b"three")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    try:
        file.write_bytes(b"one")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    hashes = FileHashes(tmp_path / "hashes")
    assert [hashes.sha256(file), hashes.sha256(file)] == [of(b"one")] * 2


def test_threads_share_it(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(40)]
    for file in files:
        file.write_text(file.name)
    hashes = FileHashes(tmp_path / "hashes")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hashes.sha256, files * 2)) == [of(file.name.encode()) for file in files * 2]
