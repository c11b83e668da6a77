"""The command line: python -m serving serve | separate | inspect | ready.

One of the two edges that catch the error tree; here an error becomes one line on stderr and exit code 1.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import RequestError, StemwrightError
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.encoding import AudioFormat


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except StemwrightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m serving", description="Serve a trained separator, or use one.")
    commands = whole.add_subparsers(required=True, metavar="command")
    archive = "a .mar file, s3://bucket/x.mar, runs:/<run>/archive/x.mar, models:/name@alias or models:/name/version"

    serve = commands.add_parser(
        "serve", help="start the endpoint and stay until SIGTERM; settings come from STEMWRIGHT_*"
    )
    serve.add_argument("--model", help=f"{archive}; without it STEMWRIGHT_MODEL")
    serve.add_argument("--port", type=int, help="without it STEMWRIGHT_HTTP_PORT, or 8080; 0 is any free one")
    serve.set_defaults(run=run_serve)

    separate = commands.add_parser("separate", help="write the stems of songs")
    separate.add_argument("songs", nargs="+", type=Path, metavar="SONG")
    where = separate.add_mutually_exclusive_group(required=True)
    where.add_argument("--server", metavar="URL", help="let a server do it, such as http://127.0.0.1:8080")
    where.add_argument("--model", help=f"do it here with {archive}")
    separate.add_argument("--stems", help="such as vocals,accompaniment; all that the model gives without it")
    separate.add_argument("--format", choices=("wav", "flac"), default="wav")
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
    from serving.server import serve

    settings = Settings.from_env()
    model = options.model or settings.model
    if not model:
        raise RequestError("there is no model to serve: give --model or set STEMWRIGHT_MODEL")
    return serve(model, settings if options.port is None else replace(settings, http_port=options.port))


def run_separate(options: argparse.Namespace) -> int:
    if len({song.stem for song in options.songs}) < len(options.songs):
        raise RequestError("two of the songs have one name and would share a folder: separate them into different ones")
    names = options.stems or ""
    if options.server:
        from serving.client import Client

        client = Client(options.server)
        stems = [name.strip() for name in names.split(",")] if names else None
        for song in options.songs:
            written = client.separate(song, options.out / song.stem, stems=stems, audio_format=options.format)
            print(*written.values(), sep="\n")
        return 0

    from serving.request import Request, stems_named
    from serving.separator import Separator
    from serving.source import resolve

    with tempfile.TemporaryDirectory() as folder:
        separator = Separator.open(resolve(options.model, Path(folder)))
    request = Request(stems_named(names, separator.spec.stems), options.format, zipped=True)
    for song in options.songs:
        print(*write_stems(request.answer(separator, song), options.format, options.out / song.stem), sep="\n")
    return 0


def write_stems(answer: Iterator[bytes], audio_format: "AudioFormat", out: Path) -> list[Path]:
    """Unpack the zip that is the answer, as the client does with a server's: all of the stems, or none."""
    from serving.delivery import unpack

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        archive = Path(folder, "stems.zip")
        with archive.open("wb") as file:
            file.writelines(answer)
        return [path.replace(out / path.name) for path in unpack(archive, audio_format).values()]


def run_ready(_: argparse.Namespace) -> int:
    from serving.server import ready

    settings = Settings.from_env()
    if not settings.management_port:
        raise RequestError("the server to ask is not known: set STEMWRIGHT_MANAGEMENT_PORT here and where it starts")
    return 0 if ready(settings) else 1


def run_inspect(options: argparse.Namespace) -> int:
    from serving.archive import read_archive
    from serving.source import resolve

    with tempfile.TemporaryDirectory() as folder:
        archive = read_archive(resolve(options.model, Path(folder)))
    facts = {
        "model": archive.spec.to_json(),
        "parameters": sum(parameter.numel() for parameter in archive.network().parameters()),
        "weights_sha256": archive.weights_sha256,
        "origin": archive.origin,
    }
    print(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
