"""From the stems that songs have to the stems and channels that a model hears.

Axes: b batch, s stem, c channel, n sample.
"""

import torch
from torch import Tensor

from serving.model.spec import ModelSpec

DECODED_STEMS = ("vocals", "drums", "bass", "other")
ACCOMPANIMENT = ("drums", "bass", "other")


def model_stems(decoded: Tensor, spec: ModelSpec) -> Tensor:
    """The model's stems (b, s, c, n) of decoded ones (b, 4, c, n): accompaniment is the sum of all but the vocals."""
    parts = [ACCOMPANIMENT if stem == "accompaniment" else (stem,) for stem in spec.stems]
    chosen = [[float(name in part) for name in DECODED_STEMS] for part in parts]
    return torch.einsum("sd,bdcn->bscn", torch.tensor(chosen, device=decoded.device), decoded)
