"""The learning rate over a run."""

import math


def schedule(progress: float, warmup: float) -> float:
    """The share of the peak learning rate: linear from 0 during warm-up, then a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
