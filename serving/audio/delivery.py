"""Stems as bytes to send or files in a folder, made from blocks of audio in constant memory.

A single stem is sent while it is made. In a zip the first stem is sent while it is made and the others wait in temporary
files. The fact sheet is the last member of a zip and the last file in a folder.

Axes: s stem, c channel, n sample.
"""

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from serving.audio import Audio
from serving.audio.encoding import Encoding, Outbox, StemFile, Written
from serving.errors import StemwrightError

PIECE_BYTES = 1 << 20  # well under TorchServe's limit of 6.5 MB for one message
FACT_SHEET = "stems.json"

Describe = Callable[[Mapping[str, Written]], bytes]
"""Makes the fact sheet from the files written, by stem."""


def one_file(blocks: Iterable[Audio], encoding: Encoding) -> Iterator[bytes]:
    """Yield the file of one stem, given as blocks (1, c, n), in pieces of at most 1 MiB.

    Raises StemwrightError and leaves the file unfinished if the blocks hold more or fewer samples than promised.
    """
    with StemFile(encoding) as file:
        for block in exactly(blocks, encoding.samples):
            yield from pieces(file.write(block[0]))
        yield from pieces(file.finish())


def zip_file(
    blocks: Iterable[Audio], stems: Sequence[str], encoding: Encoding, fact_sheet: Describe
) -> Iterator[bytes]:
    """Yield a zip of stems, given as blocks (s, c, n), in pieces of at most 1 MiB.

    Members are uncompressed and have no time stamp. Raises as `one_file` does.
    """
    names = [f"{stem}.{encoding.format}" for stem in stems]
    # A member's size comes after it, but its header must already say if that size needs 64 bits.
    large = encoding.samples * encoding.sample_bytes > zipfile.ZIP64_LIMIT * 0.9
    outbox = Outbox()
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(outbox, "w"))
        files = [stack.enter_context(StemFile(encoding)) for _ in stems]
        spools = [stack.enter_context(tempfile.TemporaryFile()) for _ in stems[1:]]
        with archive.open(zipfile.ZipInfo(names[0]), "w", force_zip64=large) as member:
            targets = [member, *spools]
            for block in exactly(blocks, encoding.samples):
                for file, target, audio in zip(files, targets, block, strict=True):
                    target.write(file.write(audio))
                yield from pieces(outbox.take())
            for file, target in zip(files, targets, strict=True):
                target.write(file.finish())
        for name, spool in zip(names[1:], spools, strict=True):
            spool.seek(0)
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=large) as member:
                while data := spool.read(PIECE_BYTES):
                    member.write(data)
                    yield from pieces(outbox.take())
        written = {stem: file.written(name) for stem, file, name in zip(stems, files, names, strict=True)}
        archive.writestr(zipfile.ZipInfo(FACT_SHEET), fact_sheet(written))
    yield from pieces(outbox.take())


def folder_of_files(
    blocks: Iterable[Audio], stems: Sequence[str], encoding: Encoding, folder: Path, fact_sheet: Describe
) -> Iterator[int]:
    """Write stems, given as blocks (s, c, n), and their fact sheet into a folder: all files or none.

    Yields the number of samples after each block. Raises as `one_file` does, and OSError.
    """
    names = [f"{stem}.{encoding.format}" for stem in stems]
    done = 0
    with arriving(folder) as scratch:
        with ExitStack() as stack:
            files = [stack.enter_context(StemFile(encoding)) for _ in stems]
            targets = [stack.enter_context((scratch / name).open("wb")) for name in names]
            for block in exactly(blocks, encoding.samples):
                for file, target, audio in zip(files, targets, block, strict=True):
                    target.write(file.write(audio))
                done += block.shape[-1]
                yield done
            for file, target in zip(files, targets, strict=True):
                target.write(file.finish())
        written = {stem: file.written(name) for stem, file, name in zip(stems, files, names, strict=True)}
        (scratch / FACT_SHEET).write_bytes(fact_sheet(written))


@contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move to `folder` at the end, the fact sheet last.

    After an error nothing is left, not even folders that were made. Raises OSError if files cannot be written.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
            scratch = Path(name)
            yield scratch
            (folder / FACT_SHEET).unlink(missing_ok=True)  # it describes files that are replaced
            for path in sorted(scratch.iterdir(), key=lambda path: path.name == FACT_SHEET):
                path.replace(folder / path.name)
    finally:
        for folder_made in made:
            with suppress(OSError):  # it holds stems
                folder_made.rmdir()


def exactly(blocks: Iterable[Audio], samples: int) -> Iterator[Audio]:
    """Yield the blocks. Raises StemwrightError unless they add up to `samples`."""
    count = 0
    for block in blocks:
        count += block.shape[-1]
        if count > samples:
            raise StemwrightError(f"the stems go on after the {samples} samples of the song: report this as a bug")
        yield block
    if count < samples:
        raise StemwrightError(f"the stems end after {count} of the song's {samples} samples: report this as a bug")


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut bytes into pieces of 1 MiB at most."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
