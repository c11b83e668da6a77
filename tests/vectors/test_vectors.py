import numpy as np
import safetensors.torch

from serving.networks import build
from serving.separator import Separator
from tests.vectors.make_vectors import CLASSIC, RATE_HZ, VECTORS


def test_classic_gives_the_vocals_it_gave() -> None:
    tensors = safetensors.torch.load_file(VECTORS / "classic.safetensors")
    network = build(CLASSIC)
    network.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    separator = Separator(CLASSIC, network, "cpu")
    separator.bfloat16 = False
    vocals = separator.separate(tensors["song"].numpy(), RATE_HZ)["vocals"]
    assert tensors["vocals"].abs().max() > 0.01
    # Other processors and versions of torch and soxr round otherwise; a change of the method shows far above this.
    np.testing.assert_allclose(vocals, tensors["vocals"].numpy(), rtol=0, atol=1e-5)
