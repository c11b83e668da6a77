"""Write songs in the formats that PyAV reads and does not write: a short tone in each.

    python -m tests.vectors.make_songs

Needs the program ffmpeg, which the tests do not.
"""

import subprocess
from pathlib import Path

FOLDER = Path(__file__).with_name("songs")
TONES = {
    "tone.thd": ("truehd", 48_000, 2, 0.75),
    "tone.mlp": ("mlp", 48_000, 1, 0.75),
    "tone.dts": ("dca", 48_000, 2, 0.1),
    "tone.spx": ("libspeex", 16_000, 1, 0.5),
}
"""Encoder, rate, channels and seconds by name. FFmpeg knows TrueHD and MLP by their bytes only from some 25 kB on."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (codec, rate_hz, channels, seconds) in TONES.items():
        tone = ("-f", "lavfi", "-i", f"sine=f=440:d={seconds}:r={rate_hz}", "-ac", str(channels), "-strict", "-2")
        subprocess.run(["ffmpeg", "-v", "error", "-y", *tone, "-c:a", codec, FOLDER / name], check=True)


if __name__ == "__main__":
    main()
