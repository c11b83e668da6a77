"""Licences travel with a model, and the strictest one counts."""

from pathlib import Path

import pytest
from torch import nn

from serving.errors import LicenceError
from serving.model.archive import read_archive, write_archive
from serving.model.licences import Licences
from serving.model.spec import ModelSpec
from training.data.data_set import MUSDB18_LICENCE

FREE = Licences("Apache-2.0", "MIT", "private songs", "a package")


def test_licences_survive_an_archive(tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    tuned = Licences.of_training("own", "run 1", FREE)
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network, {}, tuned)
    assert read_archive(tmp_path / "x.mar").licences == tuned


def test_an_archive_without_a_statement_is_unknown_and_not_commercial(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_network: nn.Module
) -> None:
    write_archive(tmp_path / "x.mar", tiny_spec, tiny_network, {})
    licences = read_archive(tmp_path / "x.mar").licences
    assert licences.weights == "unknown"
    with pytest.raises(LicenceError, match="weights, 'unknown', is not known"):
        licences.require_commercial("x.mar")


def test_own_songs_on_free_weights_are_commercial() -> None:
    Licences.of_training("own", "run 1", FREE).require_commercial("x.mar")


@pytest.mark.parametrize("data", [MUSDB18_LICENCE, "CC-BY-NC-4.0", "unknown", "my-licence"])
def test_the_strictest_licence_is_kept_through_fine_tuning(data: str) -> None:
    strict = Licences.of_training(data, "run 1", FREE)
    assert strict.weights == data
    with pytest.raises(LicenceError, match="weights"):
        Licences.of_training("own", "run 2", strict).require_commercial("x.mar")


@pytest.mark.parametrize("facts", [[], {}, {"code": 1, "weights": "", "data": "", "source": ""}])
def test_damaged_licences_are_refused(facts: object) -> None:
    with pytest.raises(ValueError, match="licences need"):
        Licences.from_json(facts)  # type: ignore[arg-type]
