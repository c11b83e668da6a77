import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from serving.errors import ArchiveError
from serving.model.archive import Archive, read_archive, write_archive
from serving.model.sealed import FORMAT_VERSION
from serving.model.separator import Separator
from serving.model.spec import ModelSpec

pytestmark = pytest.mark.slow

ORIGIN = {"run_id": "1f3a", "commit": "c0ffee", "scores": {"vocals": {"csdr_db": 5.5}}, "note": None}


@pytest.fixture
def archive(tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> Path:
    path = tmp_path / "models" / "tiny.mar"
    write_archive(path, tiny_spec, tiny_network, ORIGIN)
    return path


def rewrite(archive: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace one member of an archive."""
    with zipfile.ZipFile(archive) as opened:
        members = {member: opened.read(member) for member in opened.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(archive, "w") as rewritten:
        for member, content in members.items():
            rewritten.writestr(member, content)


def with_facts(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def test_no_time_is_spent_on_deflating_weights(archive: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        assert members.getinfo("weights.safetensors").compress_type == zipfile.ZIP_STORED


def test_it_gives_back_what_was_written(archive: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    opened = read_archive(archive)
    assert opened.spec == tiny_spec
    assert opened.origin == ORIGIN
    reloaded = opened.network().state_dict()
    assert reloaded.keys() == tiny_network.state_dict().keys()
    for name, tensor in tiny_network.state_dict().items():
        assert reloaded[name].dtype == tensor.dtype
        assert torch.equal(reloaded[name], tensor)


def test_the_folder_that_torchserve_unpacks_opens_alike(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(archive, folder, "zip")
    opened, unpacked = read_archive(archive), read_archive(folder)
    assert (unpacked.spec, unpacked.origin, unpacked.weights_sha256) == (
        opened.spec,
        opened.origin,
        opened.weights_sha256,
    )
    assert all(torch.equal(unpacked.tensors[name], tensor) for name, tensor in opened.tensors.items())


def test_it_is_complete_for_torchserve_and_holds_no_pickle(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names, manifest = opened.namelist(), json.loads(opened.read("MAR-INF/MANIFEST.json"))
    assert {"separator.json", "weights.safetensors", "handler.py", "model-config.yaml"} < set(names)
    assert {"serving/model/separator.py", "serving/model/networks/classic.py"} < set(names)
    assert not [name for name in names if name.startswith("serving/page")], "which belongs to a deployment"
    assert not [name for name in names if Path(name).suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc")]
    assert manifest["model"]["modelName"] == "tiny"
    assert manifest["model"]["handler"] == "handler.py"
    assert manifest["model"]["configFile"] == "model-config.yaml"
    assert "serializedFile" not in manifest["model"]


def test_nothing_is_left_beside_it(archive: Path) -> None:
    assert [path.name for path in archive.parent.iterdir()] == ["tiny.mar"]


def test_it_replaces_an_older_one(archive: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    write_archive(archive, tiny_spec, tiny_network, {"run_id": "second"})
    assert read_archive(archive).origin == {"run_id": "second"}


def test_two_of_one_name_may_be_written_at_a_time(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    paths = [tmp_path / str(number) / "tiny.mar" for number in range(16)]
    with ThreadPoolExecutor(8) as writers:
        list(
            writers.map(lambda path: write_archive(path, tiny_spec, tiny_network, {"folder": path.parent.name}), paths)
        )
    assert [read_archive(path).origin["folder"] for path in paths] == [path.parent.name for path in paths]
    assert list(shared.iterdir()) == []


def test_a_network_in_another_memory_format_is_written_whole(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module
) -> None:
    expected = {name: tensor.clone() for name, tensor in tiny_network.state_dict().items()}
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network.to(memory_format=torch.channels_last), {})
    tensors = read_archive(tmp_path / "x.mar").tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_it_opens_with_its_own_code_alone(archive: Path, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    """Without this repository on the path: with the serving package that the archive carries."""
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(archive, folder, "zip")
    song = np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)
    np.save(tmp_path / "song.npy", song)
    program = f"""
import sys
sys.path[:] = [p for p in sys.path if p not in ("", {str(Path.cwd())!r})]
sys.path.insert(0, {str(folder)!r})
import numpy as np, serving.model.separator
from pathlib import Path
assert Path(serving.model.separator.__file__).is_relative_to({str(folder)!r}), serving.model.separator.__file__
stems = serving.model.separator.Separator.open(Path({str(folder)!r}), "cpu").separate(np.load("song.npy"), 44_100)
np.savez("stems.npz", **stems)
assert "training" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    stems = Separator.open(archive, "cpu").separate(song, 44_100)
    with np.load(tmp_path / "stems.npz") as found:
        assert set(found) == set(tiny_spec.stems)
        for name, stem in stems.items():
            np.testing.assert_array_equal(found[name], stem)


def flip_a_bit(weights: bytes) -> bytes:
    return weights[:-1] + bytes([weights[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("weights.safetensors", flip_a_bit, "weights in .*tiny.mar have sha256 .* fetch the archive again"),
        ("weights.safetensors", lambda weights: weights[: len(weights) // 2], "have sha256"),
        ("separator.json", with_facts(format_version=FORMAT_VERSION + 1), "format version 3, this package reads 2"),
        ("separator.json", with_facts(format_version=None), "format version None"),
        ("separator.json", with_facts(weights_sha256="0" * 64), "not 000000000000"),
        ("separator.json", with_facts(model={}), "separator.json in .* is damaged .ModelSpec lacks"),
        ("separator.json", lambda _: b"{}", "separator.json in .* is damaged"),
        ("separator.json", lambda _: b"[]", "separator.json in .* is damaged"),
        ("separator.json", lambda _: b"{", "separator.json in .* is damaged"),
        ("separator.json", lambda _: b"\xff{}", "separator.json in .* is damaged"),
    ],
)
def test_a_damaged_member_is_named(archive: Path, name: str, change: Callable[[bytes], bytes], complaint: str) -> None:
    rewrite(archive, name, change)
    with pytest.raises(ArchiveError, match=complaint):
        read_archive(archive)


def test_weights_that_are_no_safetensors_are_refused(archive: Path) -> None:
    rubbish = b"rubbish" * 100
    rewrite(archive, "weights.safetensors", lambda _: rubbish)
    rewrite(archive, "separator.json", with_facts(weights_sha256=hashlib.sha256(rubbish).hexdigest()))
    with pytest.raises(ArchiveError, match="no safetensors"):
        read_archive(archive)


@pytest.mark.parametrize("name", ["separator.json", "weights.safetensors"])
def test_a_missing_member_is_named(archive: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(archive, folder, "zip")
    (folder / name).unlink()
    with pytest.raises(ArchiveError, match=f"it has no {name}"):
        read_archive(folder)
    shutil.make_archive(str(tmp_path / "lacking"), "zip", folder)
    with pytest.raises(ArchiveError, match=f"no model archive of Stemwright .*{name}"):
        read_archive(tmp_path / "lacking.zip")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(archive: Path, share: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArchiveError, match=r"tiny\.mar is no model archive"):
        read_archive(archive)


def test_bytes_gone_bad_are_refused_or_do_no_harm(archive: Path, tiny_network: nn.Module) -> None:
    """Wherever in the file, and more often outside of the code that the archive carries, which is not read here."""
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as whole:
        ends = {one.filename: one.header_offset + one.compress_size for one in whole.infolist()}
        read = [one for one in whole.infolist() if one.filename in ("separator.json", "weights.safetensors")]
    places = [range(0, len(content), 4_001), range(max(ends.values()), len(content), 307)]
    places += [range(one.header_offset, ends[one.filename], 307) for one in read]
    refused = 0
    for position in chain(*places):
        archive.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            reloaded = read_archive(archive).network().state_dict()
        except ArchiveError:
            refused += 1
        else:
            assert all(torch.equal(reloaded[name], tensor) for name, tensor in tiny_network.state_dict().items())
    assert refused > 5


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mar").write_text("not a zip")
    with pytest.raises(ArchiveError, match=r"text\.mar is no model archive"):
        read_archive(tmp_path / "text.mar")
    with pytest.raises(ArchiveError, match=r"no model archive at .*missing\.mar"):
        read_archive(tmp_path / "missing.mar")
    with pytest.raises(ArchiveError, match="no unpacked model archive"):
        read_archive(tmp_path)


def test_tensors_must_be_the_network_s(tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    tensors = tiny_network.state_dict()
    name = next(iter(tensors))
    reshaped = torch.zeros(2, *tensors[name].shape)
    for changed, complaint in (
        ({k: v for k, v in tensors.items() if k != name}, f"lacks {name}"),
        ({**tensors, "surplus.weight": torch.zeros(1)}, "no place for surplus.weight"),
        ({**tensors, name: reshaped}, f"another shape of {name}"),
    ):
        with pytest.raises(ArchiveError, match=complaint):
            Archive(tiny_spec, {}, "", changed).network()


def test_an_unknown_architecture_is_named(archive: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    write_archive(archive, replace(tiny_spec, architecture="later"), tiny_network, {})
    with pytest.raises(ArchiveError, match="unknown architecture 'later'"):
        read_archive(archive).network()


def test_weights_are_readable_by_safetensors_alone(archive: Path, tiny_network: nn.Module) -> None:
    with zipfile.ZipFile(archive) as opened:
        tensors = safetensors.torch.load(opened.read("weights.safetensors"))
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        tensor.numel() for tensor in tiny_network.state_dict().values()
    )


@pytest.mark.parametrize(
    "dimensions",
    [
        {"channels": [4, 4, 8], "fold": 0, "memory_inputs": 8, "memory_units": 4},
        {"channels": [], "fold": 8, "memory_inputs": 8, "memory_units": 4},
        {"channels": [4, 4, -8], "fold": 8, "memory_inputs": 8, "memory_units": 4},
        {"channels": 4, "fold": 8, "memory_inputs": 8, "memory_units": 4},
        {"channels": [4] * 60, "fold": 8, "memory_inputs": 8, "memory_units": 4},
        {"fold": 8},
    ],
)
def test_absurd_dimensions_are_an_archive_error(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module, dimensions: dict[str, object]
) -> None:
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network, {})
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "x.mar") as archive:
        archive.extractall(folder)
    facts = json.loads((folder / "separator.json").read_text())
    facts["model"]["dimensions"] = dimensions
    (folder / "separator.json").write_text(json.dumps(facts))
    with pytest.raises(ArchiveError, match="export"):
        read_archive(folder).network()


def test_an_archive_of_before_licences_opens(tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network, {})
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "x.mar") as archive:
        archive.extractall(folder)
    facts = json.loads((folder / "separator.json").read_text())
    del facts["licences"]
    (folder / "separator.json").write_text(json.dumps(facts))
    assert read_archive(folder).licences.code == "unknown"
