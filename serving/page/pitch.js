/**
 * Shifts the pitch of stereo sound at constant tempo: a phase vocoder stretches the time (Laroche and Dolson, "Improved phase
 * vocoder time-scale modification of audio", 1999: bins turn with the peak that they belong to), and reading the stretched
 * sound faster or slower gives the time back and moves the pitch.
 *
 * Both channels turn by the angles of their sum, so that the image of the stereo stays.
 */
import { Fft, hann } from "./fft.js";

const N_FFT = 4_096;
const HOP = N_FFT / 4; // of the stretched sound
const RING = 4 * N_FFT;
const BINS = N_FFT / 2 + 1;

export class PitchShifter {
  /** Samples by which the sound comes late. */
  static delay = N_FFT + 128;

  constructor() {
    this.fft = new Fft(N_FFT);
    this.window = hann(N_FFT);
    this.input = [new Float64Array(RING), new Float64Array(RING)];
    this.output = [new Float64Array(RING), new Float64Array(RING)];
    this.real = new Float64Array(N_FFT);
    this.imaginary = new Float64Array(N_FFT);
    this.spectrum = Array.from({ length: 4 }, () => new Float64Array(BINS)); // left, right: real, imaginary
    this.turn = new Float64Array(BINS);
    this.lastPhase = new Float64Array(BINS);
    this.ratio = 1;
    this.written = 0; // samples taken in
    this.analysed = 0; // where the last frame began, a fraction of a sample exactly
    this.stretched = 0; // samples of the stretched sound that are complete
    this.read = 0; // where the next sample is read in it
    this.frames = 0;
  }

  /** Takes samples of two channels and gives as many; `left` and `right` may be the same array. */
  process(left, right, leftOut, rightOut) {
    for (let n = 0; n < left.length; n++) {
      const at = this.written++ % RING;
      this.input[0][at] = left[n];
      this.input[1][at] = right[n];
      while (this.written >= this.nextFrame() + N_FFT) this.frame();
      const ready = this.written > PitchShifter.delay && this.read + 2 < this.stretched;
      leftOut[n] = ready ? this.sampleAt(this.output[0]) : 0;
      rightOut[n] = ready ? this.sampleAt(this.output[1]) : 0;
      if (ready) this.read += this.ratio;
    }
  }

  nextFrame() {
    return this.frames ? Math.round(this.analysed + HOP / this.ratio) : 0;
  }

  frame() {
    const start = this.nextFrame();
    const step = start - Math.round(this.analysed);
    this.analysed = this.frames ? this.analysed + HOP / this.ratio : 0;
    for (let n = 0; n < N_FFT; n++) {
      const at = (start + n) % RING;
      this.real[n] = this.input[0][at] * this.window[n];
      this.imaginary[n] = this.input[1][at] * this.window[n];
    }
    this.fft.forward(this.real, this.imaginary);
    this.split();
    this.follow(step);
    this.turnAll();
    this.fft.forward(this.imaginary, this.real); // the inverse
    const scale = 1 / N_FFT / 1.5; // Hann squared at a quarter hop sums to 1.5
    for (let n = 0; n < N_FFT; n++) {
      const at = (this.frames * HOP + n) % RING;
      const fresh = n >= N_FFT - HOP;
      const gain = this.window[n] * scale;
      this.output[0][at] = (fresh ? 0 : this.output[0][at]) + this.real[n] * gain;
      this.output[1][at] = (fresh ? 0 : this.output[1][at]) + this.imaginary[n] * gain;
    }
    this.frames++;
    this.stretched = this.frames * HOP;
  }

  /** Two real signals went through one transform: left as real part, right as imaginary. */
  split() {
    const [leftRe, leftIm, rightRe, rightIm] = this.spectrum;
    for (let k = 0; k < BINS; k++) {
      const m = (N_FFT - k) % N_FFT;
      leftRe[k] = (this.real[k] + this.real[m]) / 2;
      leftIm[k] = (this.imaginary[k] - this.imaginary[m]) / 2;
      rightRe[k] = (this.imaginary[k] + this.imaginary[m]) / 2;
      rightIm[k] = (this.real[m] - this.real[k]) / 2;
    }
  }

  /** The angle by which each bin turns: what its peak gains on the way that the frame is moved. */
  follow(step) {
    const [leftRe, leftIm, rightRe, rightIm] = this.spectrum;
    const size = new Float64Array(BINS);
    const phase = new Float64Array(BINS);
    for (let k = 0; k < BINS; k++) {
      const re = leftRe[k] + 0.8 * rightRe[k]; // opposite channels would cancel
      const im = leftIm[k] + 0.8 * rightIm[k];
      size[k] = re * re + im * im;
      phase[k] = Math.atan2(im, re);
    }
    const turn = new Float64Array(BINS);
    let lastPeak = -1;
    for (let k = 0; k < BINS; k++) {
      const here = size[k];
      const higher = size[k - 2] > here || size[k - 1] > here || size[k + 1] > here || size[k + 2] > here;
      if (higher || here === 0) continue;
      const expected = (2 * Math.PI * k * step) / N_FFT;
      const excess = phase[k] - this.lastPhase[k] - expected;
      const frequency = (2 * Math.PI * k) / N_FFT + (excess - 2 * Math.PI * Math.round(excess / (2 * Math.PI))) / (step || 1);
      turn[k] = this.frames ? (this.turn[k] + (HOP - step) * frequency) % (2 * Math.PI) : 0;
      const border = lastPeak < 0 ? 0 : Math.ceil((lastPeak + k) / 2);
      for (let bin = border; bin < k; bin++) turn[bin] = turn[k];
      for (let bin = lastPeak + 1; bin < border; bin++) turn[bin] = turn[lastPeak];
      lastPeak = k;
    }
    for (let bin = lastPeak + 1; bin < BINS && lastPeak >= 0; bin++) turn[bin] = turn[lastPeak];
    this.turn = turn;
    this.lastPhase = phase;
  }

  turnAll() {
    const [leftRe, leftIm, rightRe, rightIm] = this.spectrum;
    for (let k = 0; k < BINS; k++) {
      const cos = Math.cos(this.turn[k]);
      const sin = Math.sin(this.turn[k]);
      const lr = leftRe[k] * cos - leftIm[k] * sin;
      const li = leftRe[k] * sin + leftIm[k] * cos;
      const rr = rightRe[k] * cos - rightIm[k] * sin;
      const ri = rightRe[k] * sin + rightIm[k] * cos;
      const m = (N_FFT - k) % N_FFT;
      this.real[m] = lr + ri;
      this.imaginary[m] = rr - li;
      this.real[k] = lr - ri;
      this.imaginary[k] = li + rr;
    }
  }

  /** A sample between two others, by a cubic through four (Catmull and Rom). */
  sampleAt(ring) {
    const whole = Math.floor(this.read);
    const x = this.read - whole;
    const a = ring[(whole - 1 + RING) % RING];
    const b = ring[whole % RING];
    const c = ring[(whole + 1) % RING];
    const d = ring[(whole + 2) % RING];
    return b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)));
  }
}
