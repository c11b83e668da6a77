"""The memory that a training step of the `studio` presets keeps for its backward pass, counted over the tensors that are saved.

python -m pytest -q -s tests/benchmarks/bench_step_memory.py
"""

import pytest
import torch
from torch import Tensor

from serving.model.networks import build
from serving.model.spectrogram import Stft
from training.config import Budget
from training.optimization.losses import relative_error_db
from training.presets import PRESETS

EXCERPT_S = 10
COPIES = 6
"""Bytes of the weights in float32: they, their gradients, two moments and two averages."""


@pytest.mark.parametrize("preset", ["studio", "studio-small"])
def test_memory_of_an_excerpt(preset: str) -> None:
    spec = PRESETS[preset]("", Budget(steps=1)).model
    network = build(spec).train()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; held, so that no storage is used again

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    stems = torch.randn(1, len(spec.stems), 1, EXCERPT_S * spec.audio.sample_rate_hz)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        references = Stft(spec.stft)(stems)
        with torch.autocast("cpu", torch.bfloat16):
            estimates = network(references.sum(dim=1))
        relative_error_db(estimates, references)
    saved_bytes = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)
    state_bytes = COPIES * 4 * sum(p.numel() for p in network.parameters())
    print(
        f"\n{preset}: {saved_bytes / 1e9:.2f} GB for {EXCERPT_S} s, "
        f"{state_bytes / 1e9:.2f} GB for weights, gradients, moments and averages"
    )
    assert saved_bytes > 0
