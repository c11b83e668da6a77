"""Songs by reference: read from, and their stems written to, addresses that the operator allows.

A caller's address could make the server read what only the server can reach. Therefore only addresses below a prefix of
STEMWRIGHT_ALLOWED_URIS are used. A host name must lead to public addresses alone, the connection goes to the very address
that was checked, and a redirect is refused. A prefix that gives an address in numbers, such as `http://127.0.0.1:9000/`, is
taken at its word. A store inside the operator's network is reached as s3://, by AWS_ENDPOINT_URL.
"""

import ipaddress
import json
import math
import re
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit

import urllib3

from serving.errors import AudioTooLong, Forbidden, RequestError, ServerError

DEFAULT_PORTS = {"https": 443, "http": 80, "s3": 0}
TIMEOUT = urllib3.Timeout(connect=10, read=20)
FETCH_S = 300
"""The longest time that fetching a song may take."""
SIGN_OF_LIFE_S = 10
PIECE_BYTES = 1 << 20
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Reference:
    """The address of a song, and the address for its stems if they are not the answer itself."""

    uri: str
    output: str | None = None

    @classmethod
    def from_json(cls, body: bytes | bytearray) -> Self:
        """Raises RequestError for anything but `{"uri": …}` or `{"uri": …, "output": …}`."""
        wanted = 'send {"uri": "s3://… or https://…"}, and "output": "s3://…" if the stems shall go there'
        try:
            facts = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is no JSON: {wanted}") from error
        if not isinstance(facts, dict) or not {"uri"} <= facts.keys() <= {"uri", "output"}:
            raise RequestError(f"the JSON names no song: {wanted}")
        if not all(isinstance(value, str) for value in facts.values()):
            raise RequestError(f"the JSON holds more than addresses: {wanted}")
        return cls(**facts)


@dataclass(frozen=True)
class Address:
    """An address in parts. `path` begins with a slash; `query` holds the signature of a presigned address."""

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @classmethod
    def of(cls, uri: str) -> Self:
        """Parse an address. Raises RequestError unless it is a plain s3://, https:// or http:// address."""
        place = cls._in_bucket(uri) if uri.startswith("s3://") else cls._on_the_web(uri)
        if {".", ".."} & set(place.folders.split("/")) or "\\" in place.folders:
            raise RequestError("the address has dots or backslashes in its path: write it out")
        return place

    @classmethod
    def _in_bucket(cls, uri: str) -> Self:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket) or not key.isprintable():
            raise RequestError("the address is no s3://bucket/key: check it")
        return cls("s3", bucket, DEFAULT_PORTS["s3"], f"/{key}", "")

    @classmethod
    def _on_the_web(cls, uri: str) -> Self:
        if not (uri.isascii() and uri.isprintable()) or {" ", "\\"} & set(uri):
            raise RequestError("the address holds letters that none can hold: percent-encode it")
        try:
            parts = urlsplit(uri, allow_fragments=False)
            port = parts.port or DEFAULT_PORTS[parts.scheme]
        except (ValueError, KeyError) as error:
            raise RequestError(
                "the address is none of s3://bucket/key, https://host/path and http://host/path"
            ) from error
        if not parts.hostname or "@" in parts.netloc:
            raise RequestError("the address has no host, or a password: name a plain or a presigned one")
        return cls(parts.scheme, parts.hostname, port, parts.path or "/", parts.query)

    def __str__(self) -> str:
        """The address without its query, which is secret."""
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def folders(self) -> str:
        """The path's folders as the store reads them; keys in buckets are taken literally."""
        return self.path if self.scheme == "s3" else unquote(self.path)

    @property
    def name(self) -> str:
        return PurePosixPath(self.folders).name

    def is_below(self, prefix: "Address") -> bool:
        """True for the prefix itself and everything in its folder: `/a/b` is below `/a`, `/ab` is not."""
        folder = prefix.folders.rstrip("/")
        same_store = (self.scheme, self.host, self.port) == (prefix.scheme, prefix.host, prefix.port)
        return same_store and (self.folders == folder or self.folders.startswith(f"{folder}/"))


@dataclass(frozen=True)
class Reach:
    """The addresses that may be read and written: those below the prefixes, songs up to `limit_bytes`."""

    prefixes: tuple[Address, ...] = ()
    limit_bytes: int = 2 * 10**9

    @classmethod
    def of(cls, allowed_uris: str, limit_bytes: int) -> Self:
        """Parse comma-separated prefixes. Raises ServerError for one that is no prefix."""
        try:
            prefixes = tuple(Address.of(uri.strip()) for uri in allowed_uris.split(",") if uri.strip())
        except RequestError as error:
            raise ServerError(f"STEMWRIGHT_ALLOWED_URIS is {allowed_uris!r}: {error}") from error
        if any(prefix.query for prefix in prefixes):
            raise ServerError(f"STEMWRIGHT_ALLOWED_URIS is {allowed_uris!r}: a prefix ends before the question mark")
        return cls(prefixes, limit_bytes)

    def check(self, uri: str) -> Address:
        """Parse an address that may be read. Raises Forbidden for any other."""
        place = Address.of(uri)
        if not self.prefixes:
            raise Forbidden(
                "this server reads no songs by reference: send the song, or set STEMWRIGHT_ALLOWED_URIS there"
            )
        if not any(place.is_below(prefix) for prefix in self.prefixes):
            raise Forbidden(f"{place} is not below what STEMWRIGHT_ALLOWED_URIS allows: name another or send the song")
        return place

    def fetch(self, place: Address, path: Path, patience: "Deadline") -> str | None:
        """Copy the song at an address to a path; returns its ETag if the store has one.

        Raises AudioTooLong for too many bytes, RequestError if there is no song or the deadline passes, StorageError if the
        bucket cannot be read.
        """
        fetch = self._fetch_object if place.scheme == "s3" else self._fetch_http
        return fetch(place, path, patience)

    def store(self, files: Sequence[Path], output: str) -> list[str]:
        """Copy files below an address, one after the other; returns the address of each. Raises Forbidden, StorageError."""
        from serving.storage import storage

        urls = [f"{output.rstrip('/')}/{path.name}" for path in files]
        for path, url in zip(files, urls, strict=True):
            self.check_output(url)
            storage.store_file(path, url)
        return urls

    def check_output(self, output: str) -> None:
        """Raises Forbidden or RequestError if stems may not be written there."""
        if self.check(output).scheme != "s3":
            raise RequestError("stems can only be written to s3://bucket/prefix: name one as the output")

    def _fetch_object(self, place: Address, path: Path, patience: "Deadline") -> str | None:
        from serving.storage import storage  # slow to import, and only who uses buckets has boto3's settings

        found = storage.find_file(str(place))
        if found is None:
            raise RequestError(f"there is no {place}: check bucket and key")
        self._check_size(place, found.size_bytes)
        storage.fetch_file(str(place), path, lambda *_: patience.check(place))
        return found.etag or None

    def _fetch_http(self, place: Address, path: Path, patience: "Deadline") -> str | None:
        pool_of = {"https": urllib3.HTTPSConnectionPool, "http": urllib3.HTTPConnectionPool}[place.scheme]
        tls = {"server_hostname": place.host, "assert_hostname": place.host} if place.scheme == "https" else {}
        host = str(place).split("/")[2]
        target = f"{place.path}?{place.query}" if place.query else place.path
        try:
            with ExitStack() as stack:
                pool = stack.enter_context(pool_of(checked_address(place), place.port, timeout=TIMEOUT, **tls))
                headers = {"Host": host, "Accept-Encoding": "identity"}
                response = pool.request(
                    "GET", target, headers=headers, redirect=False, retries=False, preload_content=False
                )
                stack.callback(response.close)
                if 300 <= response.status < 400:
                    raise Forbidden(f"{place} leads to another address: name that one")
                if response.status != 200:
                    raise RequestError(f"{place} answers {response.status}: check the address and when it expires")
                self._check_size(place, int(response.headers.get("Content-Length", "0")))
                written = 0
                with path.open("wb") as file:
                    while data := response.read1(PIECE_BYTES):
                        written += file.write(data)
                        self._check_size(place, written)
                        patience.check(place)
                return response.headers.get("ETag", "").removeprefix("W/").strip('"') or None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = type(error).__name__  # its message may hold the query
            raise RequestError(f"{place} cannot be read ({reason}): check the address and its server") from error

    def _check_size(self, place: Address, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise AudioTooLong(f"{place} has more than {self.limit_bytes:,} bytes: send FLAC or MP3, or cut it")


def checked_address(place: Address) -> str:
    """The IP address to connect to. Raises Forbidden unless all of the host's addresses are public."""
    host = place.host
    try:
        return str(ipaddress.ip_address(host))  # a prefix of the operator names it: `check` found it there
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, place.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RequestError(f"there is no host {host}: check the address") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not all(is_public(address) for address in addresses):
        raise Forbidden(f"{host} is inside a private network: send the song, or use s3://")
    return addresses[0]


def is_public(address: str) -> bool:
    """True for a public IP address. IPv6 that embeds another address is not public."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in PUBLIC_IPV6 and ip.is_global and ip.sixtofour is None and ip.teredo is None
    return ip.is_global and not ip.is_multicast


@dataclass
class Deadline:
    """A deadline. `over` ends it early, when nobody waits any more."""

    seconds: float
    over: bool = False
    begun: float = field(default_factory=time.monotonic)

    def check(self, place: Address) -> None:
        """Raises RequestError if the song has taken too long."""
        if self.over or time.monotonic() - self.begun > self.seconds:
            raise RequestError(
                f"{place} takes more than {self.seconds:g} s to fetch: send the song itself, or a smaller one"
            )


def stored(steps: Iterable[object], files: Sequence[Path], reach: Reach, output: str) -> Iterator[bytes]:
    """Store the files below `output`, then yield a JSON answer, `{"stems": {name: address}}`. The last file is the fact
    sheet.

    Until then it yields spaces, with which JSON may begin, so that nobody takes the server for dead.
    """
    for _ in steps:
        yield b" "
    urls = yield from awaited(lambda _: reach.store(files, output))
    yield json.dumps({"stems": {path.stem: url for path, url in zip(files[:-1], urls[:-1], strict=True)}}).encode()


def awaited(work: Callable[[Deadline], Result], seconds: float = math.inf) -> Generator[bytes, None, Result]:
    """Run slow work in a thread; yields a space every few seconds until it is done. Closing the generator ends the
    deadline."""
    patience = Deadline(seconds)
    with ThreadPoolExecutor(max_workers=1) as pool:
        future: Future[Result] = pool.submit(work, patience)
        try:
            while wait([future], timeout=SIGN_OF_LIFE_S).not_done:
                yield b" "
        finally:
            patience.over = True
        return future.result()
