/** Sums tracks as the mixer is set into a 24-bit WAV, piece by piece. */
import { PitchShifter } from "./pitch.js";
import { wavBytes, wavHead } from "./wav.js";

const BLOCK_SAMPLES = 1 << 16;

/** The WAV and the gain that kept it within full scale, 1 where none was needed. `gains` go with `tracks`. */
export async function mixdown(tracks, gains, semitones, onShare) {
  const { numberOfChannels: channels, length: samples, sampleRate: rateHz } = tracks[0].buffer;
  const peak = await blocks(tracks, gains, semitones, (block, share) => {
    onShare(share / 2);
    return largest(block);
  });
  const gain = 1 / Math.max(1, Math.max(...peak));
  const bytes = await blocks(tracks, gains, semitones, (block, share) => {
    onShare((1 + share) / 2);
    return wavBytes(block, gain);
  });
  const odd = (samples * channels) % 2 ? [new Uint8Array(1)] : [];
  return { wav: new Blob([wavHead(rateHz, channels, samples), ...bytes, ...odd], { type: "audio/wav" }), gain };
}

/** What `use(block, share)` makes of each block of the mix; lets the page breathe between them. */
async function blocks(tracks, gains, semitones, use) {
  const { numberOfChannels: channels, length: samples } = tracks[0].buffer;
  const shift = semitones === 0 || channels > 2 ? null : shifted(2 ** (semitones / 12));
  const delay = shift ? PitchShifter.delay : 0;
  const made = [];
  for (let start = 0; start < samples + delay; start += BLOCK_SAMPLES) {
    let block = summed(tracks, gains, start, Math.min(BLOCK_SAMPLES, samples + delay - start));
    if (shift) block = shift(block).map((channel) => channel.subarray(Math.max(0, Math.min(channel.length, delay - start))));
    if (block[0].length) made.push(use(block, start / (samples + delay)));
    await new Promise((resolve) => setTimeout(resolve));
  }
  return made;
}

function summed(tracks, gains, start, count) {
  return Array.from({ length: tracks[0].buffer.numberOfChannels }, (_, channel) => {
    const sum = new Float32Array(count);
    tracks.forEach((track, index) => {
      if (gains[index] === 0) return;
      const samples = track.buffer.getChannelData(channel).subarray(start, start + count);
      for (let n = 0; n < samples.length; n++) sum[n] += gains[index] * samples[n];
    });
    return sum;
  });
}

function shifted(ratio) {
  const shifter = new PitchShifter();
  shifter.ratio = ratio;
  return (block) => {
    const out = block.map((channel) => new Float32Array(channel.length));
    shifter.process(block[0], block.at(-1), out[0], out.length > 1 ? out[1] : new Float32Array(out[0].length));
    return out;
  };
}

function largest(block) {
  let peak = 0;
  for (const channel of block) for (const sample of channel) peak = Math.max(peak, Math.abs(sample));
  return peak;
}
