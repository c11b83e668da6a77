"""The stems of songs as the stems of a model.

Axes: b batch, s stem, c channel, n sample.
"""

import torch
from torch import Tensor

from serving.model.spec import ModelSpec
from training.data.song import PAIR, SOURCES, SUMS


def model_stems(decoded: Tensor, spec: ModelSpec) -> Tensor:
    """Sum decoded stems into the model's stems (b, s, c, n).

    `decoded` holds SOURCES, (b, 4, c, n), or PAIR, (b, 2, c, n), for models of that pair. The accompaniment of four stems
    is the sum of all but the vocals.
    """
    rows = SOURCES if decoded.shape[1] == len(SOURCES) else PAIR
    parts = [(stem,) if stem in rows else SUMS[stem] for stem in spec.stems]
    chosen = [[float(row in part) for row in rows] for part in parts]
    return torch.einsum("sd,bdcn->bscn", torch.tensor(chosen, device=decoded.device), decoded)
