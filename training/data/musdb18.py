"""Songs of MUSDB18, `train|test/<Artist - Title>.stem.mp4`, read by the musdb package and ffmpeg.

The mixture that comes with a song is not read: it is an AAC stream of its own, 27 dB away from the sum of the stems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.song import Audio, Header, Song
from training.errors import DataError

STREAMS = ("drums", "bass", "other", "vocals")
"""The order of the stems in a file, after the mixture."""


@dataclass(frozen=True)
class StemFile(Song):
    """A `.stem.mp4` file: five AAC streams, the mixture and the four stems."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def tolerance_samples(self) -> int:
        return 2048  # two AAC frames: headers and streams do not agree on the padding

    def track(self) -> Any:
        import ffmpeg  # type: ignore[import-untyped]  # both on demand: they need ffmpeg, only this layout does
        import musdb

        try:
            track = musdb.MultiTrack(name=self.name, path=str(self.path), stem_id=0)
        except (ffmpeg.Error, IndexError, KeyError) as error:
            raise DataError(f"{self.path} is no readable .stem.mp4 file: get it again") from error
        if len(track.info.audio_streams) != 5:
            raise DataError(f"{self.path} has {len(track.info.audio_streams)} audio streams, not five: get it again")
        return track

    def headers(self) -> dict[str, Header]:
        streams = self.track().info.audio_streams[1:]
        return {
            stem: Header(int(stream["sample_rate"]), int(stream["channels"]), int(stream["duration_ts"]))
            for stem, stream in zip(STREAMS, streams, strict=True)
        }

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        track = self.track()
        audio = []
        for stem in sources:
            try:
                samples = track.load_audio(str(self.path), 1 + STREAMS.index(stem))
            except (Warning, ValueError) as error:  # ffprobe failed, or ffmpeg broke off within a sample
                raise DataError(f"{self.path} is damaged, ffmpeg cannot read {stem}: get the song again") from error
            if len(samples) < track.samples - self.tolerance_samples:
                raise DataError(f"{self.path} is damaged, {stem} ends before its header says: get the song again")
            if not np.isfinite(samples).all():
                raise DataError(
                    f"{self.path} is damaged, {stem} holds samples that are not numbers: get the song again"
                )
            audio.append(samples.reshape(len(samples), -1).T.astype(np.float32))
        return audio, track.rate
