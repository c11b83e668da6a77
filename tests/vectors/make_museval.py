"""Write museval's scores of a few stems of noise, which our own metric is held to.

    python -m tests.vectors.make_museval

museval imports musdb, which needs ffmpeg; its scores need neither, so that musdb is left out here. The stems come from seeds.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

SCORES = Path(__file__).with_name("museval.json")
RATE_HZ = 4_000
"""museval's filters are solved per sample rate; a low one keeps this short."""
SHAPES = {"mono": (0, 2, 1, 3.0), "stereo": (1, 2, 2, 4.9), "four stems": (2, 4, 2, 3.5), "silences": (3, 2, 2, 5.0)}
"""Seed, stems, channels and seconds by name."""


def stems(seed: int, count: int, channels: int, seconds: float) -> np.ndarray:
    """Noise (s, c, n)."""
    shape = (count, channels, int(seconds * RATE_HZ))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def song(name: str) -> tuple[np.ndarray, np.ndarray]:
    """References and estimates (s, c, n)."""
    seed, *shape = SHAPES[name]
    references = stems(seed, *shape)
    estimates = references + 0.3 * stems(seed + 10, *shape)
    if name == "silences":
        references[0, :, :RATE_HZ] = 0  # a reference is silent in the first second
        estimates[1, :, 2 * RATE_HZ : 3 * RATE_HZ] = 0  # an estimate in the third
        references[1, 1, 3 * RATE_HZ : 4 * RATE_HZ] = -references[
            1, 0, 3 * RATE_HZ : 4 * RATE_HZ
        ]  # channels cancel out
        references[0, 0, 4 * RATE_HZ :] = 0  # one channel alone is not the stem
    return references, estimates


def museval_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """SDR (s, frame) of BSSEval v4, NaN for a frame that does not count."""
    sys.modules.setdefault("musdb", ModuleType("musdb"))
    import museval

    sdr, *_ = museval.evaluate(
        references.swapaxes(1, 2), estimates.swapaxes(1, 2), win=RATE_HZ, hop=RATE_HZ, mode="v4", padding=True
    )
    return np.asarray(sdr)


def main() -> None:
    scores = {}
    for name in SHAPES:
        sdr = museval_sdr(*song(name))
        scores[name] = [[None if np.isnan(frame) else frame for frame in stem] for stem in sdr.tolist()]
    SCORES.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
