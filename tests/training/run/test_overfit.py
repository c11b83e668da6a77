"""A network that cannot learn one example by heart will not learn a thousand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from serving.model.networks import build
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from serving.model.spectrogram import Stft
from training.evaluation.metrics import usdr
from training.optimization.losses import relative_error_db

pytestmark = [pytest.mark.slow, pytest.mark.long]

RATE_HZ = 44_100
STEPS = 400


def stems() -> np.ndarray:
    """A quarter second of four stereo stems (s, c, n) over each other: a voice's harmonics, clicks, low tone, chord."""
    rng, time_s = np.random.default_rng(0), np.arange(RATE_HZ // 4) / RATE_HZ
    clicks = np.zeros(len(time_s))
    clicks[::6_000] = 1
    shapes = [
        sum(0.2 / k * np.sin(2 * np.pi * 220 * k * time_s + np.sin(2 * np.pi * 5 * time_s)) for k in range(1, 9)),
        np.convolve(clicks, rng.standard_normal(1_500) * np.exp(-np.arange(1_500) / 300))[: len(time_s)],
        0.4 * np.sin(2 * np.pi * 80 * time_s),
        sum(0.1 * np.sin(2 * np.pi * hz * time_s) for hz in (330, 440, 550, 1_320, 2_750)),
    ]
    places = [(1, 1), (0.8, 1), (1, 1), (1, 0.2)]
    return np.stack([np.outer(p, s) for p, s in zip(places, shapes, strict=True)]).astype(np.float32)


def test_one_example_is_learnt_by_heart(tiny_banded: tuple[ModelSpec, nn.Module]) -> None:
    dimensions = {**tiny_banded[0].dimensions, "channels": (24, 32, 48), "units": 16}
    spec = dataclasses.replace(tiny_banded[0], dimensions=dimensions)
    torch.manual_seed(0)
    network, references = build(spec), stems()
    spectrograms = Stft(spec.stft)(torch.from_numpy(references))[None]
    optimizer = torch.optim.Adam(network.train().parameters())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * 0.01 ** (step / STEPS)
        optimizer.zero_grad()
        relative_error_db(network(spectrograms.sum(dim=1)), spectrograms).backward()
        optimizer.step()
    separator = Separator(spec, network, "cpu")
    found = separator.separate(references.sum(axis=0), RATE_HZ)
    scores = usdr(references, np.stack([found[stem] for stem in spec.stems]))
    assert scores.mean() > 20, scores
