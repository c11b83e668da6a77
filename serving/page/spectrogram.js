/** Draws the spectrogram of a stem: time to the right, frequency upwards on a logarithmic scale, 80 dB from faint to full. */
import { Fft, hann } from "./fft.js";
import { surface } from "./waveform.js";

const N_FFT = 2_048;
const RANGE_DB = 80;
const LOWEST_HZ = 40;
const SLICE_MS = 12;

/** Resolves when it is drawn, or as soon as `signal` says that nobody wants it any more. */
export async function drawSpectrogram(canvas, buffer, signal) {
  const paint = surface(canvas);
  const { width, height } = canvas;
  const fft = new Fft(N_FFT);
  const window = hann(N_FFT);
  const [red, green, blue] = rgb(getComputedStyle(canvas).color);
  const column = paint.createImageData(1, height);
  const real = new Float64Array(N_FFT);
  const imaginary = new Float64Array(N_FFT);
  const bins = rows(height, buffer.sampleRate);
  let until = performance.now() + SLICE_MS;
  for (let x = 0; x < width; x++) {
    excerpt(buffer, Math.floor(((x + 0.5) / width) * buffer.length) - N_FFT / 2, window, real, imaginary);
    fft.forward(real, imaginary);
    for (let y = 0; y < height; y++) {
      const level = 20 * Math.log10(loudest(real, imaginary, bins[y], bins[y + 1]) / (N_FFT / 4) + 1e-9);
      const share = Math.max(0, Math.min(1, 1 + level / RANGE_DB));
      column.data.set([red, green, blue, 255 * share ** 1.5], 4 * (height - 1 - y));
    }
    paint.putImageData(column, x, 0);
    if (performance.now() > until) {
      await new Promise((resolve) => setTimeout(resolve));
      if (signal.aborted) return;
      until = performance.now() + SLICE_MS;
    }
  }
}

/** Edges of the rows in bins, from the lowest frequency to half the rate. */
function rows(height, rateHz) {
  const octaves = Math.log2(rateHz / 2 / LOWEST_HZ);
  return Float64Array.from({ length: height + 1 }, (_, y) => ((LOWEST_HZ * 2 ** ((y / height) * octaves)) / rateHz) * N_FFT);
}

function excerpt(buffer, start, window, real, imaginary) {
  real.fill(0);
  imaginary.fill(0);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let n = Math.max(0, -start); n < N_FFT && start + n < samples.length; n++) {
      real[n] += (samples[start + n] * window[n]) / buffer.numberOfChannels;
    }
  }
}

function loudest(real, imaginary, from, to) {
  let power = 0;
  for (let bin = Math.floor(from); bin < Math.max(to, Math.floor(from) + 1) && bin <= N_FFT / 2; bin++) {
    power = Math.max(power, real[bin] ** 2 + imaginary[bin] ** 2);
  }
  return Math.sqrt(power);
}

function rgb(colour) {
  const paint = new OffscreenCanvas(1, 1).getContext("2d");
  paint.fillStyle = colour;
  paint.fillRect(0, 0, 1, 1);
  return paint.getImageData(0, 0, 1, 1).data;
}
