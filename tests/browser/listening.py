"""Reads back what a tab plays, and finds the stems in it."""

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page

RATE_HZ = 16_000
TAP_SAMPLES = 32_768
# An AnalyserNode beside the loudspeaker, put there before the page's own code runs.
TAP = f"""
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {{
  if (target === this.context.destination) {{
    window.tap ??= new AnalyserNode(this.context, {{ fftSize: {TAP_SAMPLES} }});
    if (window.tap.context === this.context) connect.call(this, window.tap);
  }}
  return connect.call(this, target, ...rest);
}};
"""


def clock_s(tab: Page) -> float:
    """The clock of the sound, once the page plays or may play: a busy machine plays late, but every sample."""
    tab.wait_for_function("() => window.tap")
    return float(tab.evaluate("tap.context.currentTime"))


def listen_for(tab: Page, seconds: float) -> None:
    """Wait until so much more was played."""
    tab.wait_for_function("(until) => tap.context.currentTime >= until", arg=clock_s(tab) + seconds, timeout=30_000)


def heard(tab: Page) -> NDArray[np.float64]:
    """The last two seconds that were played, both channels as one, (n,)."""
    script = "() => { const x = new Float32Array(tap.fftSize); tap.getFloatTimeDomainData(x); return Array.from(x); }"
    return np.array(tab.evaluate(script))


def gains_heard(
    tab: Page, stems: NDArray[np.float64], window_s: float = 0.5
) -> tuple[NDArray[np.float64], float, float]:
    """How loud each stem (s, n) is in what was just played, the time in seconds that it comes from, and the largest error.

    The error is small only where all stems are aligned to the sample.
    """
    window = heard(tab)[-int(window_s * RATE_HZ) :]
    size = stems.shape[1] + window.size
    spectrum = np.conj(np.fft.rfft(window, size))
    # The stem that is heard best tells when. Normalised, so that loud places do not win.
    best = max(
        (correlation(stem, window, spectrum, size) for stem in [*stems, stems.sum(0)]), key=lambda found: found[0]
    )
    start = best[1]
    part = stems[:, start : start + window.size]
    gains, *_ = np.linalg.lstsq(part.T, window, rcond=None)
    return gains, (start + window.size) / RATE_HZ, float(np.abs(gains @ part - window).max())


def correlation(
    stem: NDArray[np.float64], window: NDArray[np.float64], spectrum: NDArray[np.complex128], size: int
) -> tuple[float, int]:
    products = np.fft.irfft(np.fft.rfft(stem, size) * spectrum, size)[: stem.size - window.size]
    summed = np.concatenate([[0.0], np.cumsum(stem**2)])
    energy = (summed[window.size :] - summed[: -window.size])[: products.size]
    likeness = np.abs(products) / np.sqrt(energy + 1e-6)
    return float(likeness.max()), int(likeness.argmax())
