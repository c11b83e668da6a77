"""An archive as a sealed file: its facts, and the bytes of its weights with the hash that they promise. Needs no torch, which
the process that watches a server does without."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ArchiveError, SpecError
from serving.model.licences import UNSTATED, Licences
from serving.model.spec import ModelSpec

FORMAT_VERSION = 2

# What zipfile raises where a file is damaged or lacks a member.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError, OSError)


@dataclass(frozen=True)
class SealedFacts:
    """The contents of separator.json."""

    spec: ModelSpec
    origin: Mapping[str, Any]
    licences: Licences
    weights_sha256: str


def read_sealed(path: Path) -> tuple[SealedFacts, bytes]:
    """Facts and weights of a .mar file, or of the folder that TorchServe unpacked it to.

    Raises ArchiveError for another version and for weights whose hash is not the one in the facts.
    """
    facts_json, weights = read_member(path, "separator.json"), read_member(path, "weights.safetensors")
    try:
        facts = json.loads(facts_json)
        version, promised = facts["format_version"], facts["weights_sha256"]
        if version != FORMAT_VERSION:
            raise ArchiveError(
                f"{path} has format version {version}, this package reads {FORMAT_VERSION}: export it again"
            )
        spec, origin = ModelSpec.from_json(facts["model"]), facts["origin"]
        licences = Licences.from_json(facts["licences"]) if "licences" in facts else UNSTATED  # of an older archive
    except (ValueError, KeyError, TypeError, SpecError) as error:
        raise ArchiveError(f"separator.json in {path} is damaged ({error}): export the archive again") from error
    found = hashlib.sha256(weights).hexdigest()
    if found != promised:
        raise ArchiveError(
            f"the weights in {path} have sha256 {found[:12]}…, not {promised[:12]}…: fetch the archive again"
        )
    return SealedFacts(spec, origin, licences, found), weights


def read_member(path: Path, name: str) -> bytes:
    if path.is_dir():
        if not (path / name).is_file():
            raise ArchiveError(f"{path} is no unpacked model archive: it has no {name}")
        return (path / name).read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except FileNotFoundError as error:
        raise ArchiveError(f"there is no model archive at {path}") from error
    except ZIP_ERRORS as error:
        raise ArchiveError(f"{path} is no model archive of Stemwright ({error})") from error
