/** Reads and writes WAV (RIFF, and RF64 for lengths beyond 4 GB) piece by piece. */

const text = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Turns bytes into samples while they come. `format` is null until the head is read. */
export class WavReader {
  constructor() {
    this.held = new Uint8Array(0);
    this.format = null;
  }

  /** What the bytes complete, null for nothing: how many samples, and a function that reads them, one Float32Array a channel. */
  push(bytes) {
    const both = new Uint8Array(this.held.length + bytes.length);
    both.set(this.held);
    both.set(bytes, this.held.length);
    this.held = both;
    if (!this.format && !this.readHead()) return null;
    const { channels, sampleBytes } = this.format;
    const count = Math.min(Math.floor(this.held.length / (channels * sampleBytes)), this.left);
    if (!count) return null;
    this.left -= count;
    const taken = this.held;
    this.held = taken.slice(count * channels * sampleBytes);
    return { count, read: () => samplesOf(taken, count, this.format) };
  }

  /** True when the samples' first byte is known and `held` begins with it. */
  readHead() {
    const bytes = this.held;
    const numbers = view(bytes);
    const found = {};
    let dataBytes = 0;
    for (let at = 12; at + 8 <= bytes.length; ) {
      const name = text(bytes, at);
      let size = numbers.getUint32(at + 4, true);
      if (name === "data") {
        if (size === 0xffffffff) size = dataBytes;
        const samples = size / (found.channels * found.sampleBytes);
        this.format = { ...found, samples };
        this.left = samples;
        this.held = bytes.slice(at + 8);
        return true;
      }
      if (at + 8 + size > bytes.length) return false;
      if (name === "ds64") dataBytes = Number(numbers.getBigUint64(at + 16, true));
      if (name === "fmt ") {
        found.channels = numbers.getUint16(at + 10, true);
        found.rateHz = numbers.getUint32(at + 12, true);
        found.sampleBytes = numbers.getUint16(at + 22, true) / 8;
        const tag = numbers.getUint16(at + 8, true);
        found.float = (tag === 0xfffe ? numbers.getUint16(at + 32, true) : tag) === 3;
      }
      at += 8 + size + (size % 2);
    }
    return false;
  }
}

function samplesOf(bytes, count, { channels, sampleBytes, float }) {
  const numbers = view(bytes);
  const readers = {
    2: (at) => numbers.getInt16(at, true) / 2 ** 15,
    3: (at) => ((numbers.getInt8(at + 2) << 16) | numbers.getUint16(at, true)) / 2 ** 23,
    4: (at) => (float ? numbers.getFloat32(at, true) : numbers.getInt32(at, true) / 2 ** 31),
  };
  const read = readers[sampleBytes];
  return Array.from({ length: channels }, (_, channel) => {
    const samples = new Float32Array(count);
    for (let n = 0, at = channel * sampleBytes; n < count; n++, at += channels * sampleBytes) samples[n] = read(at);
    return samples;
  });
}

/** The head of a 24-bit WAV. */
export function wavHead(rateHz, channels, samples) {
  const head = new DataView(new ArrayBuffer(44));
  const dataBytes = samples * channels * 3;
  const write = (at, letters) => [...letters].forEach((letter, n) => head.setUint8(at + n, letter.charCodeAt(0)));
  write(0, "RIFF");
  head.setUint32(4, 36 + dataBytes + (dataBytes % 2), true);
  write(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, channels, true);
  head.setUint32(24, rateHz, true);
  head.setUint32(28, rateHz * channels * 3, true);
  head.setUint16(32, channels * 3, true);
  head.setUint16(34, 24, true);
  write(36, "data");
  head.setUint32(40, dataBytes, true);
  return head.buffer;
}

/** Channels of samples as bytes of a 24-bit WAV, at a gain. */
export function wavBytes(block, gain) {
  const bytes = new Uint8Array(block.length * block[0].length * 3);
  let at = 0;
  for (let n = 0; n < block[0].length; n++) {
    for (const samples of block) {
      const value = Math.max(-(2 ** 23), Math.min(2 ** 23 - 1, Math.round(samples[n] * gain * 2 ** 23)));
      bytes[at++] = value & 255;
      bytes[at++] = (value >> 8) & 255;
      bytes[at++] = (value >> 16) & 255;
    }
  }
  return bytes;
}
