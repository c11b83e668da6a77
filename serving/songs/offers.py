"""Everything that a request to a model may ask for. The endpoint tells it, the page lets people choose from it."""

from typing import get_args

from serving.audio.encoding import AudioFormat
from serving.model.spec import ModelSpec, Quality


def offers(model: ModelSpec) -> dict[str, list[str]]:
    """Names of stems, qualities and formats, as JSON holds them."""
    return {"stems": list(model.offered), "qualities": list(get_args(Quality)), "formats": list(get_args(AudioFormat))}
