"""Songs in the formats that people have, encoded by PyAV and libsndfile, and FFmpeg's own decode of them."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
FRAME_SAMPLES = 4_096


def song(channels: int = 2, seconds: float = 3.0, rate_hz: int = 44_100, seed: int = 0) -> np.ndarray:
    """Audio (c, n): a tone for each channel, with noise, so that no place in it is like another."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    noise = 0.05 * np.random.default_rng(seed).standard_normal((channels, len(time_s)))
    tones = [0.4 * np.sin(2 * np.pi * 220 * (channel + 1) * time_s) for channel in range(channels)]
    return (np.stack(tones) + noise).astype(np.float32)


def by_soundfile(audio: np.ndarray, audio_format: str, subtype: str | None = None, rate_hz: int = 44_100) -> bytes:
    """A file with audio (c, n), encoded by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, audio.T, rate_hz, format=audio_format, subtype=subtype)
    return file.getvalue()


def encode(
    audio: np.ndarray | Sequence[np.ndarray],
    container: str,
    codec: str,
    rate_hz: int = 44_100,
    *,
    sample_format: str | None = None,
    bit_rate: int | None = None,
    options: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> bytes:
    """A file with audio (c, n), with a stream for each where there are several; `options` are the container's.

    `path` is for containers that read what they have written, such as an MP4 with its index in front.
    """
    file = io.BytesIO()
    streams = [audio] if isinstance(audio, np.ndarray) else list(audio)
    with av.open(str(path) if path else file, "w", format=container, container_options=dict(options or {})) as out:
        out.metadata.update(tags or {})
        # FFmpeg's encoder of Vorbis is an experiment and must be asked for as one.
        of_codec = {"options": {"strict": "-2"}} if codec == "vorbis" else {}
        if sample_format:
            of_codec["format"] = sample_format
        if bit_rate:
            of_codec["bit_rate"] = bit_rate
        layout = LAYOUTS[len(streams[0])]
        encoders = [out.add_stream(codec, rate=rate_hz, layout=layout, **of_codec) for _ in streams]
        for start in range(0, streams[0].shape[1], FRAME_SAMPLES):
            for encoder, samples in zip(encoders, streams, strict=True):
                part = np.ascontiguousarray(samples[:, start : start + FRAME_SAMPLES])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
                out.mux(encoder.encode(frame))
        for encoder in encoders:
            out.mux(encoder.encode(None))
    return path.read_bytes() if path else file.getvalue()


def by_ffmpeg(data: bytes) -> np.ndarray:
    """Audio (c, n) of FFmpeg's decode: what cannot be decoded is passed over, as its command line does."""
    parts = []
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        to_float = av.AudioResampler(format="fltp")
        for packet in container.demux(container.streams.best("audio")):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            parts += [part.to_ndarray() for frame in frames for part in to_float.resample(frame)]
    return np.concatenate(parts, axis=1)
