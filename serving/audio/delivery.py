"""Stems as they leave: blocks of audio in, bytes of one audio file or of a zip of them out, in constant memory.

The first stem is sent while it is made; the others wait in temporary files. The song's length is known before its stems are,
so that headers, which come first, can tell the truth without anyone going back to them.

Axes: s stem, c channel, n sample.
"""

import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from serving.audio import Audio
from serving.audio.encoding import AudioFormat, Encoding, Outbox, StemFile
from serving.errors import RequestError, StemwrightError

PIECE_BYTES = 1 << 20  # well under TorchServe's limit of 6.5 MB for one message


def stream_stems(blocks: Iterable[Audio], stems: Sequence[str], encoding: Encoding, zipped: bool) -> Iterator[bytes]:
    """The bytes of the stems named, whose audio comes as blocks (s, c, n), in pieces of 1 MiB at most.

    Raises StemwrightError, with the stream unfinished, where the blocks hold more or fewer samples than promised.
    """
    if len(stems) > 1 and not zipped:
        raise RequestError(f"one {encoding.format} file holds one stem, not {', '.join(stems)}: ask for a zip")
    whole = exactly(blocks, encoding.samples)
    written = zip_of_stems(whole, stems, encoding) if zipped else single_stem(whole, encoding)
    for data in written:
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]


def exactly(blocks: Iterable[Audio], samples: int) -> Iterator[Audio]:
    """The same blocks, once it is sure that they add up to so many samples."""
    count = 0
    for block in blocks:
        count += block.shape[-1]
        if count > samples:
            raise StemwrightError(f"the stems go on after the {samples} samples of the song: report this as a bug")
        yield block
    if count < samples:
        raise StemwrightError(f"the stems end after {count} of the song's {samples} samples: report this as a bug")


def single_stem(blocks: Iterable[Audio], encoding: Encoding) -> Iterator[bytes]:
    with StemFile(encoding) as file:
        for block in blocks:
            yield file.write(block[0])
        yield file.finish()


def zip_of_stems(blocks: Iterable[Audio], stems: Sequence[str], encoding: Encoding) -> Iterator[bytes]:
    """A zip with one uncompressed member for each stem. The same stems give the same bytes: members carry no time."""
    names = [f"{stem}.{encoding.format}" for stem in stems]
    # A member's size follows it; whether the size will need 64 bits has to be said before.
    large = encoding.samples * encoding.sample_bytes > zipfile.ZIP64_LIMIT * 0.9
    outbox = Outbox()
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(outbox, "w"))
        files = [stack.enter_context(StemFile(encoding)) for _ in stems]
        spools = [stack.enter_context(tempfile.TemporaryFile()) for _ in stems[1:]]
        with archive.open(zipfile.ZipInfo(names[0]), "w", force_zip64=large) as member:
            targets = [member, *spools]
            for block in blocks:
                for file, target, audio in zip(files, targets, block, strict=True):
                    target.write(file.write(audio))
                yield outbox.take()
            for file, target in zip(files, targets, strict=True):
                target.write(file.finish())
        for name, spool in zip(names[1:], spools, strict=True):
            spool.seek(0)
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=large) as member:
                while data := spool.read(PIECE_BYTES):
                    member.write(data)
                    yield outbox.take()
    yield outbox.take()


def unpack(archive: Path, audio_format: AudioFormat) -> dict[str, Path]:
    """The stems of a zip, by name, unpacked beside it. Raises BadZipFile where a checksum is wrong."""
    member = re.compile(rf"([a-z]+)\.{audio_format}")
    with zipfile.ZipFile(archive) as stems:
        names = {name: member.fullmatch(name) for name in stems.namelist()}
        unknown = [name for name, match in names.items() if match is None]
        if unknown:
            raise zipfile.BadZipFile(f"it holds {unknown[0]}")
        return {match[1]: Path(stems.extract(name, archive.parent)) for name, match in names.items() if match}
