/** The stems of one answer as audio that can be played, each as soon as it has come. */
import { Envelope } from "./waveform.js";
import { WavReader } from "./wav.js";
import { words } from "./words.js";
import { ZipReader } from "./zip.js";

const SHEET = "stems.json";
const LOWEST_RATE_HZ = 3_000;
const COMPRESSED_RATE_HZ = 44_100; // the browser's decoder resamples to this

/** One stem. `buffer` is allocated at full length and filled up to `filled` samples; `whole` when all are there. */
export class Track {
  constructor(name, fileName, start) {
    Object.assign(this, { name, fileName, start, bytes: 0, buffer: null, envelope: null, filled: 0, samples: 0, rateHz: 0, whole: false });
  }

  /** Throws where no browser plays this rate. */
  allocate({ channels, samples, rateHz }) {
    if (rateHz < LOWEST_RATE_HZ) throw new Error(words.noRate(rateHz));
    this.use(new AudioBuffer({ numberOfChannels: channels, length: Math.max(1, samples), sampleRate: rateHz }));
  }

  use(buffer) {
    this.buffer = buffer;
    this.envelope = new Envelope(buffer.length);
  }

  append(block) {
    block.forEach((samples, channel) => this.buffer.copyToChannel(samples, channel, this.filled));
    this.envelope.add(block, this.filled);
  }

  /** Null where nobody knows how long it will be. */
  get share() {
    return this.whole ? 1 : this.samples ? this.filled / this.samples : null;
  }

  get durationS() {
    return this.samples / this.rateHz || 0;
  }
}

/** Takes the bytes of a zip and makes tracks of them; `onChange(track)` tells of every step. Without `keep` it only counts. */
export class Tracks {
  constructor(onChange, keep = true) {
    Object.assign(this, { onChange, keep, list: [], sheet: null, whole: false, decoding: Promise.resolve() });
    this.zip = new ZipReader({
      begin: (fileName) => this.begin(fileName),
      data: (bytes) => this.reader.data(bytes),
      end: () => this.reader.end(),
    });
  }

  push(bytes) {
    this.zip.push(bytes);
  }

  /** Resolves when every stem can be played; throws where the zip is not whole. */
  async finish() {
    this.zip.finish();
    await this.decoding;
    this.whole = true;
  }

  get durationS() {
    const { samples, rate_hz: rateHz } = this.sheet?.song ?? {};
    return samples / rateHz || (this.list[0]?.durationS ?? 0);
  }

  begin(fileName) {
    if (fileName === SHEET) {
      this.reader = this.readSheet();
      return;
    }
    const [, name, suffix] = /^(.*)\.([^.]*)$/.exec(fileName) ?? [null, fileName, ""];
    const track = new Track(name, fileName, this.zip.memberStart);
    this.list.push(track);
    this.reader = suffix === "wav" ? this.readWav(track) : this.readCompressed(track);
    this.onChange(track);
  }

  readSheet() {
    const parts = [];
    return {
      data: (bytes) => parts.push(bytes.slice()),
      end: () => (this.decoding = this.decoding.then(async () => this.takeSheet(JSON.parse(await new Blob(parts).text())))),
    };
  }

  takeSheet(sheet) {
    this.sheet = sheet;
    this.list.forEach((track) => this.onChange(track));
  }

  readWav(track) {
    const wav = new WavReader();
    return {
      data: (bytes) => {
        const more = wav.push(bytes);
        if (wav.format && !track.samples) {
          Object.assign(track, { samples: wav.format.samples, rateHz: wav.format.rateHz });
          if (this.keep) track.allocate(wav.format);
        }
        if (more && this.keep) track.append(more.read());
        track.filled += more?.count ?? 0;
        this.onChange(track);
      },
      end: () => {
        track.bytes = this.zip.memberEnd - track.start;
        this.complete(track);
      },
    };
  }

  readCompressed(track) {
    const parts = [];
    return {
      data: (bytes) => this.keep && parts.push(bytes.slice()),
      end: () => {
        track.bytes = this.zip.memberEnd - track.start;
        this.decoding = this.decoding.then(() => (this.keep ? this.decode(track, new Blob(parts)) : this.complete(track)));
      },
    };
  }

  async decode(track, file) {
    const context = new OfflineAudioContext(2, 1, COMPRESSED_RATE_HZ);
    const decoded = await context.decodeAudioData(await file.arrayBuffer()).catch(() => null);
    if (!decoded) throw new Error(words.noAudio(track.fileName));
    track.use(decoded);
    track.append(Array.from({ length: decoded.numberOfChannels }, (_, channel) => decoded.getChannelData(channel)));
    this.complete(track);
  }

  complete(track) {
    track.whole = true;
    this.onChange(track);
  }
}
