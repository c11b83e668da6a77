/** The outline of a stem over its whole length, and its drawing. */

const BINS = 2_000;

/** Largest magnitude and power of a song's samples in 2,000 equal bins. */
export class Envelope {
  constructor(samples) {
    this.binSamples = Math.max(1, samples / BINS);
    this.peaks = new Float32Array(BINS);
    this.power = new Float32Array(BINS);
    this.peak = 0;
  }

  /** Adds channels of samples whose first one is sample `start` of the song. */
  add(block, start) {
    const scale = 1 / (this.binSamples * block.length);
    for (const samples of block) {
      for (let n = 0; n < samples.length; ) {
        const bin = Math.min(BINS - 1, Math.floor((start + n) / this.binSamples));
        const next = bin === BINS - 1 ? samples.length : Math.ceil((bin + 1) * this.binSamples) - start;
        const end = Math.max(n + 1, Math.min(samples.length, next));
        let peak = this.peaks[bin];
        let power = 0;
        for (; n < end; n++) {
          const value = samples[n];
          if (value > peak) peak = value;
          else if (-value > peak) peak = -value;
          power += value * value;
        }
        this.peaks[bin] = peak;
        this.power[bin] += power * scale;
        if (peak > this.peak) this.peak = peak;
      }
    }
  }

  /** Peak and root mean square of the bins from `from` to `to`, shares of the song. */
  between(from, to) {
    const first = Math.min(BINS - 1, Math.floor(from * BINS));
    const last = Math.max(first + 1, Math.min(BINS, Math.ceil(to * BINS)));
    let peak = 0;
    let power = 0;
    for (let bin = first; bin < last; bin++) {
      peak = Math.max(peak, this.peaks[bin]);
      power += this.power[bin];
    }
    return [peak, Math.sqrt(power / (last - first))];
  }
}

/** The canvas's drawing surface, as many pixels as the screen has there. */
export function surface(canvas) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  return canvas.getContext("2d");
}

/** Draws peaks pale and their power strong, mirrored about the middle; `full` is the magnitude of a lane's full height. */
export function drawWaveform(canvas, envelope, full) {
  const paint = surface(canvas);
  const { width, height } = canvas;
  const middle = height / 2;
  paint.fillStyle = getComputedStyle(canvas).color;
  const outline = Array.from({ length: width }, (_, x) => envelope.between(x / width, (x + 1) / width));
  for (const [part, alpha] of [[0, 0.38], [1, 1]]) {
    paint.globalAlpha = alpha;
    outline.forEach((values, x) => {
      const tall = Math.min(1, values[part] / full) * (middle - 3);
      if (values[0] > 0) paint.fillRect(x, middle - Math.max(0.5, tall), 1, Math.max(1, 2 * tall));
    });
  }
}
