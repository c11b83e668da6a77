import dataclasses

import torch

from serving.model.spec import ModelSpec
from training.data.stems import model_stems


def test_accompaniment_is_all_but_the_vocals(tiny_spec: ModelSpec) -> None:
    vocals, drums, bass, other = decoded = torch.randn(4, 2, 100)
    found = model_stems(decoded[None], tiny_spec)
    torch.testing.assert_close(found[0], torch.stack([vocals, drums + bass + other]))


def test_a_model_of_four_stems_hears_them_in_its_own_order(tiny_spec: ModelSpec) -> None:
    vocals, drums, bass, other = decoded = torch.randn(4, 2, 100)
    spec = dataclasses.replace(tiny_spec, stems=("bass", "drums", "vocals", "other"))
    torch.testing.assert_close(model_stems(decoded[None], spec)[0], torch.stack([bass, drums, vocals, other]))


def test_songs_of_two_stems_are_heard_as_they_are(tiny_spec: ModelSpec) -> None:
    decoded = torch.randn(2, 2, 100)
    torch.testing.assert_close(model_stems(decoded[None], tiny_spec)[0], decoded)
