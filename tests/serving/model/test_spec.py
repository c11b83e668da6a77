import json
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from serving.errors import SpecError
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec


def test_json_gives_the_same_spec_back(tiny_spec: ModelSpec) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(tiny_spec.to_json()))) == tiny_spec


def test_json_keeps_the_kind_of_every_dimension(tiny_spec: ModelSpec) -> None:
    spec = replace(tiny_spec, dimensions={"depth": 3, "channels": (4, 8)})
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))).dimensions == {"depth": 3, "channels": (4, 8)}


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("stems",), None, "ModelSpec.stems needs a list"),
        (("stems",), "vocals", "ModelSpec.stems needs a list"),
        (("stems",), ["vocals", 5], "ModelSpec.stems needs str, not 5"),
        (("architecture",), 5, "ModelSpec.architecture needs str, not 5"),
        (("dimensions",), [1], "ModelSpec.dimensions needs an object"),
        (("dimensions", "channels"), "many", "ModelSpec.dimensions.channels needs int"),
        (("dimensions", "channels"), [1.5], "ModelSpec.dimensions.channels needs int, not 1.5"),
        (("dimensions", "channels"), None, "ModelSpec.dimensions.channels"),
        (("audio",), 44_100, "AudioSpec needs an object, not 44100"),
        (("audio", "sample_rate_hz"), "44100", "AudioSpec.sample_rate_hz needs int, not '44100'"),
        (("audio", "sample_rate_hz"), 44_100.0, "AudioSpec.sample_rate_hz needs int"),
        (("audio", "sample_rate_hz"), True, "AudioSpec.sample_rate_hz needs int, not True"),
        (("audio", "bits"), 16, "AudioSpec has no bits"),
        (("stft", "window"), "hann", "StftSpec has no window"),
        (("stft", "n_fft"), 2047, "n_fft 2047"),
        (("name",), "x", "ModelSpec has no name"),
    ],
)
def test_json_of_another_shape_is_refused(
    tiny_spec: ModelSpec, path: tuple[str, ...], value: Any, complaint: str
) -> None:
    facts = deepcopy(tiny_spec.to_json())
    place = facts
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(SpecError, match=complaint):
        ModelSpec.from_json(facts)


@pytest.mark.parametrize("name", ["architecture", "dimensions", "stems", "audio", "stft", "chunk"])
def test_json_without_a_fact_is_refused(tiny_spec: ModelSpec, name: str) -> None:
    facts = tiny_spec.to_json()
    del facts[name]
    with pytest.raises(SpecError, match=f"ModelSpec lacks {name}"):
        ModelSpec.from_json(facts)


@pytest.mark.parametrize("facts", [None, [], "spec", 5])
def test_json_that_is_no_object_is_refused(facts: Any) -> None:
    with pytest.raises(SpecError, match="ModelSpec needs an object"):
        ModelSpec.from_json(facts)


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 384_001])
def test_sample_rates_out_of_range(rate_hz: int) -> None:
    with pytest.raises(SpecError, match="sample_rate_hz"):
        AudioSpec(rate_hz)


@pytest.mark.parametrize(("n_fft", "hop_samples"), [(0, 1), (-2, 1), (5, 2), (2048, 0), (2048, -512), (2048, 513)])
def test_transforms_that_cannot_be_inverted(n_fft: int, hop_samples: int) -> None:
    with pytest.raises(SpecError, match=r"n_fft|hop_samples"):
        StftSpec(n_fft, hop_samples)


@pytest.mark.parametrize(("length_s", "overlap_s"), [(0, 0), (10, 0), (10, 6), (10, -1), (1, 1)])
def test_overlaps_that_do_not_fit(length_s: int, overlap_s: int) -> None:
    with pytest.raises(SpecError, match="overlap"):
        ChunkSpec(length_s, overlap_s)


@pytest.mark.parametrize(
    ("stems", "complaint"),
    [
        (("vocals", "guitar", "other"), "unknown stems"),
        (("other",), "two or more"),
        (("other", "vocals", "other"), "two or more"),
        ((), "two or more"),
        (("accompaniment", "vocals"), "last stem"),
    ],
)
def test_stems_that_are_no_set_of_stems(tiny_spec: ModelSpec, stems: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        replace(tiny_spec, stems=stems)


def test_the_edges_of_every_range_are_allowed(tiny_spec: ModelSpec) -> None:
    assert AudioSpec(1_000) != AudioSpec(384_000)
    assert StftSpec(4, 1).bins == 3
    assert ChunkSpec(2, 1).overlap_s == 1
    assert replace(tiny_spec, stems=("vocals", "drums", "bass", "other")).stems[-1] == "other"


def test_bins_and_frames_are_the_plan_s() -> None:
    stft = StftSpec(n_fft=2048, hop_samples=512)
    assert stft.bins == 1025
    assert [stft.frames(s) for s in (0, 1, 511, 512, 15 * 22_050, 661_500)] == [1, 1, 1, 2, 646, 1292]


def test_facts_are_frozen(tiny_spec: ModelSpec) -> None:
    with pytest.raises(FrozenInstanceError):
        tiny_spec.audio.sample_rate_hz = 8_000  # type: ignore[misc]
