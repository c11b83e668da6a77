"""Model archives: one .mar file that any TorchServe serves and any Python with this package opens.

    separator.json         format version, ModelSpec, origin of the weights, sha256 of the weights
    weights.safetensors    every tensor of the network
    serving/               the inference code the model was evaluated with
    handler.py             serving/endpoint/handler.py, where TorchServe looks for it
    model-config.yaml      how TorchServe runs it
    MAR-INF/               TorchServe's own manifest

No pickle anywhere. An archive opens only if it is whole: known version, right hash, no tensor missing and none too many.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from serving.errors import ArchiveError, SpecError
from serving.model.licences import CODE_LICENCE, UNSTATED, Licences
from serving.model.model_config import torchserve_yaml
from serving.model.networks import Network, build
from serving.model.sealed import FORMAT_VERSION, read_sealed
from serving.model.spec import ModelSpec


@dataclass(frozen=True)
class Archive:
    """An opened archive: its facts and its tensors."""

    spec: ModelSpec
    origin: Mapping[str, Any]
    weights_sha256: str
    tensors: Mapping[str, Tensor]
    licences: Licences = UNSTATED

    def network(self) -> Network:
        """The network with the archive's weights. Raises ArchiveError unless they match it tensor by tensor."""
        try:
            network = build(self.spec)
        except SpecError as error:
            raise ArchiveError(f"the archive describes no network ({error}): export it again") from error
        wanted = network.state_dict()
        missing, surplus = sorted(wanted.keys() - self.tensors.keys()), sorted(self.tensors.keys() - wanted.keys())
        misfits = [n for n in wanted.keys() & self.tensors.keys() if wanted[n].shape != self.tensors[n].shape]
        for names, complaint in ((missing, "lacks"), (surplus, "has no place for"), (misfits, "has another shape of")):
            if names:
                raise ArchiveError(f"the network {complaint} {', '.join(names[:4])}: export the archive again")
        network.load_state_dict(dict(self.tensors))
        return network


def write_archive(
    path: Path, spec: ModelSpec, network: nn.Module, origin: Mapping[str, Any], licences: Licences | None = None
) -> None:
    """Write a .mar under its final name only when it is complete.

    `origin` says where the weights come from (run, commit, data set, scores); anything that JSON holds. `licences` default to
    unknown ones.
    """
    # Needed where archives are made, not where they are served.
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging_utils import ModelExportUtils

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    facts = {
        "format_version": FORMAT_VERSION,
        "model": spec.to_json(),
        "origin": dict(origin),
        "licences": (licences or Licences(CODE_LICENCE)).to_json(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    package = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".archive-") as scratch:
        contents = Path(scratch, "contents")
        # The page belongs to a deployment, not to a model.
        shutil.copytree(
            package, contents / "serving", ignore=shutil.ignore_patterns("__pycache__", "page", "catalogue")
        )
        shutil.copy(package / "endpoint" / "handler.py", contents)
        (contents / "separator.json").write_text(json.dumps(facts, indent=2) + "\n")
        (contents / "weights.safetensors").write_bytes(weights)
        (contents / "model-config.yaml").write_text(torchserve_yaml())
        # ModelArchiver itself would gather the files in a folder of the model's name in the host's temporary folder:
        # two exports of one name at a time, or by two users, would spoil each other's.
        manifest = ModelExportUtils.generate_manifest_json(
            ModelArchiverConfig(
                model_name=path.stem,
                version=str(FORMAT_VERSION),
                handler="handler.py",
                config_file="model-config.yaml",
            )
        )
        # Deflate takes 30 ms a megabyte of weights, and saves 7 % of it.
        ModelExportUtils.archive(scratch, path.stem, str(contents), manifest, "zip-store")
        Path(scratch, f"{path.stem}.mar").replace(path)


def read_archive(path: Path) -> Archive:
    """Open a .mar file, or the folder that TorchServe unpacked it to. Raises ArchiveError unless it is whole."""
    facts, weights = read_sealed(path)
    try:
        tensors = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise ArchiveError(f"the weights in {path} are no safetensors ({error}): export the archive again") from error
    return Archive(facts.spec, facts.origin, facts.weights_sha256, tensors, facts.licences)
