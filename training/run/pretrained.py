"""Start from the weights of an archive: fine-tuning on other songs, or towards other stems."""

import tempfile
from pathlib import Path

from torch import nn

from serving.model.archive import read_archive
from serving.model.licences import Licences
from serving.model.source import resolve
from serving.model.spec import ModelSpec
from training.errors import ConfigError


def take_weights(network: nn.Module, spec: ModelSpec, archive: str) -> tuple[list[str], Licences]:
    """Copy every tensor of an archive that fits the network by name and shape.

    Returns the names of tensors that start fresh, and the archive's licences. `archive` is a .mar file, s3://…, runs:/… or
    models:/…. Raises ConfigError for another architecture or if nothing fits, ArchiveError or StorageError if there is no
    archive.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = read_archive(resolve(archive, Path(folder)))
    if opened.spec.architecture != spec.architecture:
        raise ConfigError(
            f"--init {archive} holds a {opened.spec.architecture} network, this run trains {spec.architecture}"
        )
    wanted = network.state_dict()
    shared = {n: t for n, t in opened.tensors.items() if n in wanted and wanted[n].shape == t.shape}
    weights = dict(network.named_parameters())
    if not weights.keys() & shared.keys():
        raise ConfigError(
            f"--init {archive} has no weights of this network's shapes: train with the preset it was made with"
        )
    network.load_state_dict(shared, strict=False)
    return sorted(wanted.keys() - shared.keys()), opened.licences
