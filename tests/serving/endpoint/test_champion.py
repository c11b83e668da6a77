"""A version behind an alias that must not be served; tests/pipeline/test_champion.py has the rest."""

from pathlib import Path

import pytest
from torch import nn

from serving.endpoint.champion import Champion
from serving.errors import LicenceError
from serving.model.archive import write_archive
from serving.model.spec import ModelSpec
from serving.settings import Settings


def test_a_version_that_may_not_be_sold_is_not_unpacked_for_commercial_use(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network, {})
    monkeypatch.setattr("serving.endpoint.champion.resolve", lambda *_: tmp_path / "x.mar")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "model-config.yaml").write_text("")
    Champion("models:/x@champion", "1", tmp_path, Settings(), commercial=False).unpack("2", tmp_path / "2", "1001.0")
    assert (tmp_path / "2" / "weights.safetensors").is_file()
    with pytest.raises(LicenceError, match="version 3 of models:/x@champion cannot be served commercially"):
        Champion("models:/x@champion", "2", tmp_path, Settings(), commercial=True).unpack("3", tmp_path / "3", "1002.0")
    assert not (tmp_path / "3").exists()
