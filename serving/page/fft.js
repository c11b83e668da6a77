/** The discrete Fourier transform of complex numbers in place, for lengths that are powers of two (Cooley and Tukey). */
export class Fft {
  constructor(size) {
    this.size = size;
    this.cos = Float64Array.from({ length: size / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / size));
    this.sin = Float64Array.from({ length: size / 2 }, (_, k) => Math.sin((2 * Math.PI * k) / size));
    const bits = Math.log2(size);
    this.order = Uint32Array.from({ length: size }, (_, n) => {
      let reversed = 0;
      for (let bit = 0; bit < bits; bit++) reversed |= ((n >> bit) & 1) << (bits - 1 - bit);
      return reversed;
    });
  }

  /** X[k] = Σ x[n]·e^(−2πikn/N). The inverse, but for its factor 1/N, is `forward(imaginary, real)`. */
  forward(real, imaginary) {
    const { size, cos, sin, order } = this;
    for (let n = 0; n < size; n++) {
      const m = order[n];
      if (m > n) {
        [real[n], real[m]] = [real[m], real[n]];
        [imaginary[n], imaginary[m]] = [imaginary[m], imaginary[n]];
      }
    }
    for (let half = 1; half < size; half *= 2) {
      const step = size / (2 * half);
      for (let start = 0; start < size; start += 2 * half) {
        for (let k = 0, turn = 0; k < half; k++, turn += step) {
          const a = start + k;
          const b = a + half;
          const re = real[b] * cos[turn] + imaginary[b] * sin[turn];
          const im = imaginary[b] * cos[turn] - real[b] * sin[turn];
          real[b] = real[a] - re;
          imaginary[b] = imaginary[a] - im;
          real[a] += re;
          imaginary[a] += im;
        }
      }
    }
  }
}

export function hann(size) {
  return Float64Array.from({ length: size }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / size));
}
