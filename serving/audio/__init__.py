"""Bytes to samples and samples to bytes."""

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
