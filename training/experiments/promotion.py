"""A version of a registered model becomes the one that is served, unless the present one is better."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from serving.model.source import resolve
from training.data.song import Song
from training.errors import ConfigError
from training.evaluation.compare import Comparison, compare
from training.evaluation.difference import Difference, difference
from training.tracking.registry import Version, find_version, point, versions

LARGEST_LOSS_DB = 0.3
CANDIDATE, PRESENT = "candidate", "present"


def promote(
    uri: str,
    address: str,
    alias: str,
    songs: Sequence[Song],
    device: torch.device,
    *,
    slower: float,
    force: bool,
    progress: bool = True,
) -> str:
    """Let an alias name the version at a models:/ address; returns the reason, which the version keeps.

    Both archives are scored on the same songs first. Raises ConfigError with every objection, unless `force`.
    """
    candidate = find_version(uri, address)
    present = named(uri, candidate.name, alias)
    if present is None:
        return pointed(uri, candidate, alias, f"the first {alias} of {candidate.name}")
    if present.number == candidate.number:
        raise ConfigError(f"{address} is the {alias} already: name another version")
    with tempfile.TemporaryDirectory() as folder:
        archives = {}
        for label, version in ((CANDIDATE, candidate), (PRESENT, present)):
            Path(folder, label).mkdir()
            archives[label] = resolve(version.address, Path(folder, label))
        comparison = compare(archives, songs, device, progress)
    found = objections(comparison, slower)
    reason = summary(comparison, candidate, present)
    if found and not force:
        raise ConfigError(f"{address} is not promoted: {'; '.join(found)}: train on, or promote it with --force")
    return pointed(uri, candidate, alias, reason + (f"; forced, although {'; '.join(found)}" if found else ""))


def objections(comparison: Comparison, slower: float) -> list[str]:
    """Reasons against the candidate; none where it may take the place of the present archive.

    `slower` is the largest ratio of its real-time factor to the present one's.
    """
    (candidate, *_), (present, *_) = comparison.of(CANDIDATE), comparison.of(PRESENT)
    mine, theirs = candidate.evaluation, present.evaluation
    if mine.stems.keys() != theirs.stems.keys():
        return [f"it gives {', '.join(mine.stems)} and the present one {', '.join(theirs.stems)}"]
    found = []
    mean = mean_difference(comparison)
    if mean.worse:
        found.append(f"its mean uSDR is lower by {-mean.mean_db:.2f} dB, more than the choice of songs explains")
    for stem in mine.stems:
        loss_db = theirs.stems[stem].usdr_db - mine.stems[stem].usdr_db
        if loss_db > LARGEST_LOSS_DB:
            found.append(f"{stem} loses {loss_db:.2f} dB, more than {LARGEST_LOSS_DB} dB")
    if candidate.cost is not None and present.cost is not None:
        ratio = candidate.cost.real_time_factor / present.cost.real_time_factor
        if ratio > slower:
            found.append(f"it takes {ratio:.2f} times as long, more than {slower:g} times")
    return found


def mean_difference(comparison: Comparison) -> Difference:
    """The candidate against the present archive, over the mean of the stems."""
    (candidate, *_), (present, *_) = comparison.of(CANDIDATE), comparison.of(PRESENT)
    scores = [[song.usdr_db for song in row.evaluation.songs] for row in (candidate, present)]
    return difference(*scores)


def summary(comparison: Comparison, candidate: Version, present: Version) -> str:
    mine, theirs = f"version {candidate.number}", f"version {present.number}"
    return mean_difference(comparison).verdict(mine, theirs, "the mean of the stems")


def named(uri: str, name: str, alias: str) -> Version | None:
    return next((one for one in versions(uri) if one.name == name and alias in one.aliases), None)


def pointed(uri: str, version: Version, alias: str, reason: str) -> str:
    point(uri, version, alias, reason)
    return reason
