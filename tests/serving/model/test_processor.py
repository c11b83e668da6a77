import os
from pathlib import Path

import pytest
import torch

from serving.model.processor import available_cpus, multiplies_bfloat16


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def limited(tmp_path: Path, own: str, limits: dict[str, str]) -> int:
    """The processors where the groups have such limits and this process is in the group `own`."""
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{limit}\n")
    (tmp_path / "own").write_text(own)
    return available_cpus(tmp_path, tmp_path / "own")


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("1600000 100000", 8)],
)
def test_a_container_has_as_many_as_its_limit(limit: str, cpus: int, tmp_path: Path) -> None:
    assert limited(tmp_path, "0::/\n", {".": limit}) == cpus


def test_the_tightest_of_all_groups_counts(tmp_path: Path) -> None:
    groups = {"pod": "300000 100000", "pod/container": "max 100000"}
    assert limited(tmp_path, "0::/pod/container\n", groups) == 3


@pytest.mark.parametrize("own", ["", "4:cpu:/old\n", "0::/../elsewhere\n"])
def test_no_limit_is_known(own: str, tmp_path: Path) -> None:
    assert limited(tmp_path, own, {}) == 8
    assert available_cpus(tmp_path, tmp_path / "nowhere") == 8


def test_affinity_counts_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert limited(tmp_path, "0::/\n", {".": "400000 100000"}) == 2


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"amx_bf16": True}, True), ({"amx_bf16": False, "avx512_bf16": True}, False), ({}, False)],
)
def test_only_matrix_units_pay(capabilities: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bfloat16() is native
