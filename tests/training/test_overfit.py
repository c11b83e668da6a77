"""A network that cannot learn one example by heart will not learn a thousand."""

import dataclasses

import numpy as np
import torch
from torch import nn

from serving.separator import Separator
from serving.spec import ModelSpec
from serving.spectrogram import Stft
from training.losses import relative_error_db
from training.metrics import usdr

RATE_HZ = 44_100


def stems() -> np.ndarray:
    """A second of four stereo stems (s, c, n) that lie over each other: a sweep, clicks, a low tone and noise."""
    rng, time_s = np.random.default_rng(0), np.arange(RATE_HZ) / RATE_HZ
    clicks = np.zeros(RATE_HZ)
    clicks[::6_000] = 1
    shapes = [
        0.3 * np.sin(2 * np.pi * (300 + 400 * time_s) * time_s),
        np.convolve(clicks, rng.standard_normal(1_500) * np.exp(-np.arange(1_500) / 300))[:RATE_HZ],
        0.4 * np.sin(2 * np.pi * 80 * time_s),
        0.1 * rng.standard_normal(RATE_HZ),
    ]
    places = [(1, 1), (0.8, 1), (1, 1), (1, 0.2)]
    return np.stack([np.outer(p, s) for p, s in zip(places, shapes, strict=True)]).astype(np.float32)


def test_one_example_is_learnt_by_heart(tiny_banded: tuple[ModelSpec, nn.Module]) -> None:
    spec, network = tiny_banded
    references = stems()
    spectrograms = Stft(spec.stft)(torch.from_numpy(references))[None]
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-2)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.01 ** (step / 300)
        optimizer.zero_grad()
        relative_error_db(network(spectrograms.sum(dim=1)), spectrograms).backward()
        optimizer.step()
    separator = Separator(dataclasses.replace(spec), network, "cpu")
    found = separator.separate(references.sum(axis=0), RATE_HZ)
    scores = usdr(references, np.stack([found[stem] for stem in spec.stems]))
    assert scores.mean() > 20, scores
