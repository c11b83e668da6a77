"""The starter's architecture, known without its weights: Spleeter's two stems."""

from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec

SPEC = ModelSpec(
    architecture="spleeter",
    dimensions={"bins": 1024, "piece_frames": 512, "channels": (16, 32, 64, 128, 256, 512)},
    stems=("vocals", "accompaniment"),
    audio=AudioSpec(sample_rate_hz=44_100),
    stft=StftSpec(n_fft=4096, hop_samples=1024),
    chunk=ChunkSpec(length_s=11, overlap_s=1),  # 474 frames: a window is one piece
)
