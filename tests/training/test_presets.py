from training.config import Budget
from training.presets import classic


def test_the_classic_preset_keeps_the_numbers_of_the_plan() -> None:
    model = classic("songs", Budget(steps=1)).model
    assert (model.audio.sample_rate_hz, model.stft.n_fft, model.stft.hop_samples, model.stft.bins) == (
        22_050,
        2048,
        512,
        1025,
    )
    assert 30 * model.audio.sample_rate_hz == 661_500
    assert model.stft.frames(model.chunk.length_s * model.audio.sample_rate_hz) == 646
