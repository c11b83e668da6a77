"""The weights that a run takes from the archive of --init."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from serving.errors import ArchiveError
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.model.spec import ModelSpec
from training.errors import ConfigError
from training.run.pretrained import take_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def archive(tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> str:
    """An archive whose statistics are not those of a fresh network."""
    tiny_network.normalize.running_mean.fill_(7)
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    return str(tmp_path / "tiny.mar")


def fresh(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(1)
    return build(spec)


def with_dimensions(spec: ModelSpec, **dimensions: int) -> ModelSpec:
    return dataclasses.replace(spec, dimensions={**spec.dimensions, **dimensions})


def test_the_same_network_takes_every_tensor(archive: str, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    network = fresh(tiny_spec)

    assert take_weights(network, tiny_spec, archive)[0] == []

    given = tiny_network.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in network.state_dict().items())


def test_what_has_another_shape_stays_fresh_and_is_named(
    archive: str, tiny_spec: ModelSpec, tiny_network: nn.Module
) -> None:
    spec = with_dimensions(tiny_spec, memory_inputs=12, memory_units=6)
    network, before = fresh(spec), fresh(spec).state_dict()

    named, _ = take_weights(network, spec, archive)

    sized = ("unet.bottom.squeeze.", "unet.bottom.lstm.", "unet.bottom.expand.weight")
    assert named == sorted(name for name in before if name.startswith(sized))
    given = tiny_network.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in named else given[name])


def test_weights_stay_the_objects_that_the_optimizer_knows(archive: str, tiny_spec: ModelSpec) -> None:
    network = fresh(tiny_spec)
    before = list(network.parameters())
    take_weights(network, tiny_spec, archive)
    assert all(one is other for one, other in zip(network.parameters(), before, strict=True))


def test_another_architecture_is_refused(archive: str, tiny_spec: ModelSpec) -> None:
    network, before = fresh(tiny_spec), fresh(tiny_spec).state_dict()
    spec = dataclasses.replace(tiny_spec, architecture="banded")

    with pytest.raises(ConfigError, match=r"tiny\.mar holds a classic network, this run trains banded"):
        take_weights(network, spec, archive)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_archive_of_which_no_weight_fits_is_refused(archive: str, tiny_spec: ModelSpec) -> None:
    """Counters of batches fit everywhere: they are no weights."""
    network = nn.Sequential()
    network.normalize = nn.BatchNorm1d(3)

    with pytest.raises(ConfigError, match=r"tiny\.mar has no weights of this network's shapes: train with the preset"):
        take_weights(network, tiny_spec, archive)


def test_an_archive_that_is_not_there_is_named(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    with pytest.raises(ArchiveError, match=r"there is no model archive at .*missing\.mar"):
        take_weights(fresh(tiny_spec), tiny_spec, str(tmp_path / "missing.mar"))
