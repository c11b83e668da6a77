"""The command line: python -m serving serve | separate | inspect | ready.

One of the two edges that catch the error tree; here an error becomes one line on stderr and exit code 1. Of many songs, those
that fail do not keep the others waiting. A signal ends the command with 130 or 143, and no file half written.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from serving.errors import RequestError, StemwrightError
from serving.settings import STARTER, Settings, api_key, cache_folder

if TYPE_CHECKING:
    from serving.audio.encoding import AudioFormat
    from serving.client import Progress


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except StemwrightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m serving", description="Serve a trained separator, or use one.")
    commands = whole.add_subparsers(required=True, metavar="command")
    archive = (
        "starter, a .mar file, s3://bucket/x.mar, runs:/<run>/archive/x.mar, models:/name@alias or models:/name/version"
    )

    serve = commands.add_parser(
        "serve", help="start the endpoint and stay until SIGTERM; settings come from STEMWRIGHT_*"
    )
    serve.add_argument("--model", help=f"{archive}; without it STEMWRIGHT_MODEL")
    serve.add_argument("--port", type=int, help="without it STEMWRIGHT_HTTP_PORT, or 8080; 0 is any free one")
    serve.add_argument(
        "--commercial", action="store_true", help="refuse a model whose licences do not allow commercial use"
    )
    serve.set_defaults(run=run_serve)

    separate = commands.add_parser(
        "separate", help="write the stems of songs; those that are there already are left out"
    )
    separate.add_argument("songs", nargs="+", type=Path, metavar="SONG", help="a file, or a folder with songs below it")
    where = separate.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="URL", help="let a server do it, such as http://127.0.0.1:8080")
    where.add_argument("--model", default=STARTER, help=f"do it here with {archive} (default {STARTER})")
    separate.add_argument("--stems", help="such as vocals,accompaniment; all that the model gives without it")
    separate.add_argument("--format", choices=("wav", "flac", "mp3", "ogg"), default="wav")
    separate.add_argument(
        "--bit-depth", choices=("16", "24", "float"), help="of wav and flac; the song's own without it"
    )
    separate.add_argument(
        "--quality",
        choices=("fast", "best"),
        default="fast",
        help="best overlaps more, hears three keys and takes five to six times as long",
    )
    separate.add_argument(
        "--api-key", default=api_key(), help="without it STEMWRIGHT_API_KEY, where a proxy asks for one"
    )
    separate.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each song comes into it")
    separate.set_defaults(run=run_separate)

    inspect = commands.add_parser("inspect", help="say what a model archive holds, as JSON")
    inspect.add_argument("model", help=archive)
    inspect.set_defaults(run=run_inspect)

    ready = commands.add_parser(
        "ready", help="exit code 0 if the server of STEMWRIGHT_MANAGEMENT_PORT can separate, else 1"
    )
    ready.set_defaults(run=run_ready)
    return whole


def run_serve(options: argparse.Namespace) -> int:
    from serving.endpoint.server import serve

    settings = Settings.from_env()
    model = options.model or settings.model
    if not model:
        raise RequestError("there is no model to serve: give --model or set STEMWRIGHT_MODEL")
    if options.commercial:
        require_commercial(model)
    return serve(model, settings if options.port is None else replace(settings, http_port=options.port))


def require_commercial(model: str) -> None:
    """Raises LicenceError unless all licences of the model allow commercial use."""
    from serving.model.archive import read_archive
    from serving.model.source import resolve

    with tempfile.TemporaryDirectory() as folder:
        read_archive(resolve(model, Path(folder))).licences.require_commercial(model)


def run_separate(options: argparse.Namespace) -> int:
    from serving.songs.batch import Job, jobs, separate_all

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    todo = jobs(options.songs, options.out)
    if options.server:
        from serving.client import Client

        client = Client(options.server, options.api_key)
        stems = [stem.strip().lower() for stem in options.stems.split(",")] if options.stems else list(client.stems())

        def separate(job: Job) -> list[Path]:
            with progress_bar(job.song.name) as on_progress:
                form = {"audio_format": options.format, "bit_depth": options.bit_depth, "quality": options.quality}
                return list(client.save(job.song, job.out, stems=stems, **form, on_progress=on_progress).values())

    else:
        from serving.model.separator import Separator
        from serving.model.source import resolve
        from serving.model.starter import LICENCES
        from serving.songs.request import Request, stems_named

        with tempfile.TemporaryDirectory() as folder:
            if options.model == STARTER:
                print(f"the starter makes the stems: {LICENCES.source}", file=sys.stderr)
            settings = Settings.from_env()
            path = resolve(options.model, Path(folder))
            separator = Separator.open(path, settings.device, settings.engine, cache_folder())
        names = stems_named(options.stems or "", separator.spec)
        stems = list(names)
        request = Request(names, options.format, zipped=True, bit_depth=options.bit_depth, quality=options.quality)

        def separate(job: Job) -> list[Path]:
            return write_stems(request.answer(separator, job.song), options.format, job.out)

    return 1 if separate_all(todo, separate, stems, options.format) else 0


@contextmanager
def progress_bar(name: str) -> Iterator["Progress"]:
    """A bar on a terminal for the way of one song to the server and of its stems back."""
    with tqdm(unit="B", unit_scale=True, leave=False, disable=None) as bar:
        doing = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing or done < bar.n:  # a new way, or the same once more
                doing = what
                bar.reset(total or None)
                bar.set_description(f"{name} {what}", refresh=False)
            bar.update(done - bar.n)

        yield show


def write_stems(answer: Iterator[bytes], audio_format: "AudioFormat", out: Path) -> list[Path]:
    """Unpack the zip that is the answer, as the client does with a server's: all of the stems, or none."""
    from serving.audio.delivery import unpack

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        archive = Path(folder, "stems.zip")
        with archive.open("wb") as file:
            file.writelines(answer)
        return [path.replace(out / path.name) for path in unpack(archive, audio_format).values()]


def run_ready(_: argparse.Namespace) -> int:
    from serving.endpoint.server import ready

    settings = Settings.from_env()
    if not settings.management_port:
        raise RequestError("the server to ask is not known: set STEMWRIGHT_MANAGEMENT_PORT here and where it starts")
    return 0 if ready(settings) else 1


def run_inspect(options: argparse.Namespace) -> int:
    from serving.model.archive import read_archive
    from serving.model.source import resolve

    with tempfile.TemporaryDirectory() as folder:
        archive = read_archive(resolve(options.model, Path(folder)))
    facts = {
        "model": archive.spec.to_json(),
        "parameters": sum(parameter.numel() for parameter in archive.network().parameters()),
        "weights_sha256": archive.weights_sha256,
        "licences": archive.licences.to_json(),
        "origin": archive.origin,
    }
    print(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
