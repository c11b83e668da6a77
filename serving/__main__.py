"""The command line: python -m serving serve | separate | page | inspect | ready.

One of the two edges that catch the error tree; here an error becomes one line on stderr and exit code 1, 2 where `serve` is not
told a model. Of many songs, those that fail do not keep the others waiting. A signal ends the command with 130 or 143, and no
file half written.
"""

import argparse
import io
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from serving.errors import RequestError, ServerError, StemwrightError
from serving.settings import STARTER, Settings, api_key, cache_folder

if TYPE_CHECKING:
    from serving.songs.batch import Job
    from serving.songs.request import Request
    from serving.storage.progress import Progress

    Separate = Callable[[Job], list[Path]]

NOT_CONFIGURED = 2


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot print must not end the command
    try:
        return int(options.run(options))
    except StemwrightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m serving", description="Serve a trained separator, or use one.")
    add_commands(whole.add_subparsers(required=True, metavar="command"))
    return whole


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands of this package to a parser's, here or to those of `stemwright`."""
    archive = (
        "starter, a .mar file, s3://bucket/x.mar, runs:/<run>/archive/x.mar, models:/name@alias or models:/name/version"
    )

    serve = commands.add_parser(
        "serve", help="start the endpoint and stay until SIGTERM; settings come from STEMWRIGHT_*"
    )
    serve.add_argument("--model", help=f"{archive}; without it STEMWRIGHT_MODEL")
    serve.add_argument(
        "--port", type=int, help="port of the endpoint, 0 for any free one (default STEMWRIGHT_HTTP_PORT, else 8080)"
    )
    serve.add_argument(
        "--commercial", action="store_true", help="refuse a model whose licences do not allow commercial use"
    )
    serve.set_defaults(run=run_serve)

    separate = commands.add_parser("separate", help="write the stems of songs; songs that are done are skipped")
    separate.add_argument(
        "songs",
        nargs="+",
        type=Path,
        metavar="SONG",
        help="a file, a folder with songs below it, or - for standard input",
    )
    where = separate.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="URL", help="separate on a server, such as localhost:8080")
    where.add_argument("--model", default=STARTER, help=f"separate here with {archive} (default {STARTER})")
    add_form(separate)
    separate.add_argument("--again", action="store_true", help="also separate songs that are done")
    separate.add_argument(
        "--api-key", default=api_key(), help="key for a proxy that requires one (default STEMWRIGHT_API_KEY)"
    )
    separate.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write to; each song gets a folder in it"
    )
    separate.set_defaults(run=run_separate)

    page = commands.add_parser("page", help="open the page in the browser: drop songs, hear their stems; until Ctrl-C")
    page.add_argument(
        "--server", metavar="URL", required=True, help="the server that separates, such as http://127.0.0.1:8080"
    )
    page.add_argument(
        "--api-key",
        default=api_key(),
        help="key for a proxy that requires one (default STEMWRIGHT_API_KEY, else the page asks)",
    )
    page.set_defaults(run=run_page)

    catalogue = commands.add_parser(
        "catalogue",
        help="separate the songs of a bucket or folder into another on Ray; continues where it was stopped",
    )
    catalogue.add_argument("songs", metavar="URL", help="s3://bucket/prefix or a folder")
    catalogue.add_argument("--to", required=True, metavar="URL", help="s3://bucket/prefix or a folder, for the stems")
    catalogue.add_argument("--model", required=True, help=archive)
    add_form(catalogue)
    catalogue.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0,
        metavar="N",
        help="GPUs of each worker, such as 1 or 0.5 (default: a CPU each)",
    )
    catalogue.add_argument(
        "--price-per-hour", type=float, metavar="X", help="of all machines together, to report the cost of 1,000 songs"
    )
    catalogue.set_defaults(run=run_catalogue)

    starter = commands.add_parser(
        "starter", help="make the archive of the model to begin with; needs the extra starter"
    )
    starter.add_argument("--to", type=Path, required=True, metavar="X.mar")
    starter.set_defaults(run=run_starter)

    inspect = commands.add_parser("inspect", help="print the facts of a model archive as JSON")
    inspect.add_argument("model", help=archive)
    inspect.set_defaults(run=run_inspect)

    ready = commands.add_parser(
        "ready", help="exit code 0 if the server of STEMWRIGHT_MANAGEMENT_PORT can separate, else 1"
    )
    ready.set_defaults(run=run_ready)


def add_form(command: argparse.ArgumentParser) -> None:
    """Add the options for which stems are wanted, in which form."""
    command.add_argument("--stems", help="such as vocals,accompaniment (default: all that the model gives)")
    command.add_argument("--format", choices=("wav", "flac", "mp3", "ogg"), default="wav")
    command.add_argument(
        "--bit-depth",
        choices=("16", "24", "float"),
        help="of wav and flac (default: the song's own); float never clips",
    )
    command.add_argument(
        "--quality",
        choices=("fast", "best"),
        default="fast",
        help="best overlaps more, hears three keys and takes five to six times as long",
    )


def run_serve(options: argparse.Namespace) -> int:
    from serving.endpoint.server import serve

    settings = Settings.from_env()
    model = options.model or settings.model
    if not model:
        print("RequestError: there is no model to serve: give --model or set STEMWRIGHT_MODEL", file=sys.stderr)
        return NOT_CONFIGURED
    if options.port is not None:
        settings = replace(settings, http_port=options.port)
    return serve(model, settings, options.commercial)


def run_separate(options: argparse.Namespace) -> int:
    from serving.songs.batch import select, separate_all

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        songs = [stack.enter_context(as_file(song)) for song in options.songs]
        planned = select(songs, options.out)
        request, weights_sha256, separate = (by_server if options.server else here)(options)
        failed = separate_all(planned, separate, lambda job: not options.again and job.is_done(request, weights_sha256))
    return 1 if failed else 0


@contextmanager
def as_file(song: Path) -> Iterator[Path]:
    """A song as a file: standard input (-) and pipes are read to their end first, as songs are read more than once."""
    if str(song) != "-" and not song.is_fifo():
        yield song
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        source = sys.stdin.buffer if str(song) == "-" else stack.enter_context(song.open("rb"))
        path = Path(folder, "stdin" if str(song) == "-" else song.name)
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield path


def by_server(options: argparse.Namespace) -> "tuple[Request, str, Separate]":
    """The request, the sha256 of the model's weights, and what separates a song on a server."""
    from serving.client import Client
    from serving.songs.request import Request, split_names

    client = Client(options.server, options.api_key)
    model = client.describe()
    stems = split_names(options.stems or "") or model.stems
    request = Request(stems, options.format, zipped=True, bit_depth=options.bit_depth, quality=options.quality)

    def separate(job: "Job") -> list[Path]:
        form = {"audio_format": options.format, "bit_depth": options.bit_depth, "quality": options.quality}
        with progress_bar(job.song.name, "B") as on_progress:
            return list(client.save(job.song, job.out, stems=stems, **form, on_progress=on_progress).values())

    return request, model.weights_sha256, separate


def here(options: argparse.Namespace) -> "tuple[Request, str, Separate]":
    """The same on this machine, with a model of its own."""
    import torch

    from serving.model.device import device_name, device_of
    from serving.model.separator import Separator
    from serving.model.source import resolve
    from serving.model.starter import LICENCES
    from serving.songs.request import Request, stems_named

    settings = Settings.from_env()
    with tempfile.TemporaryDirectory() as folder:
        if options.model == STARTER:
            print(f"the starter makes the stems: {LICENCES.source}", file=sys.stderr)
        path = resolve(options.model, Path(folder))
        device = device_of(settings.device)
        separator = Separator.open(path, device, settings.engine, cache_folder())
        print(f"separating on {device_name(device)}, {separator.engine.description}", file=sys.stderr)
    stems = stems_named(options.stems or "", separator.spec)
    request = Request(stems, options.format, zipped=True, bit_depth=options.bit_depth, quality=options.quality)

    def separate(job: "Job") -> list[Path]:
        with progress_bar(job.song.name, " samples") as on_progress:
            try:
                return list(request.files(separator, job.song, job.out, on_progress=on_progress).values())
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise ServerError(f"{separator.device} has too little memory for it: close other programs") from error

    return request, separator.weights_sha256, separate


@contextmanager
def progress_bar(name: str, unit: str) -> Iterator["Progress"]:
    """A bar on a terminal for each kind of work on one song."""
    from serving.songs.fact_sheet import printable

    with tqdm(unit=unit, unit_scale=True, leave=False, disable=None) as bar:
        doing = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing or done < bar.n:  # a new kind, or the same once more
                doing = what
                bar.reset(total or None)
                bar.set_description(f"{printable(name)} {what}", refresh=False)
            bar.update(done - bar.n)

        yield show


def run_page(options: argparse.Namespace) -> int:
    from serving.client import Client
    from serving.page.server import serve_page

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve_page(Client(options.server, options.api_key).endpoint, options.api_key)
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    from serving.catalogue.catalogue import catalogue
    from serving.catalogue.worker import Form

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    form = Form(options.stems or "", options.format, options.bit_depth, options.quality)
    try:
        summary = catalogue(
            options.songs,
            options.to,
            options.model,
            form,
            gpus_per_worker=options.gpus_per_worker,
            price_per_hour=options.price_per_hour,
        )
    except (KeyboardInterrupt, SystemExit):
        print("stopped: the same command goes on with the songs that are left", file=sys.stderr)
        raise
    print(json.dumps(summary.to_json(options.price_per_hour), indent=2))
    return 1 if summary.states["failed"] else 0


def run_starter(options: argparse.Namespace) -> int:
    from serving.model.starter import LICENCES, write_starter

    write_starter(options.to)
    print(f"{options.to}: {LICENCES.source}; its weights are under the {LICENCES.weights} licence")
    return 0


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
