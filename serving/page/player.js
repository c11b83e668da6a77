/** Plays tracks together, to the sample: all sources start at one time of one clock, and every change starts them anew. */

const LEAD_S = 0.03; // what is started so far ahead starts in time
const FADE_S = 0.008;

export class Player {
  constructor(rateHz) {
    this.context = new AudioContext({ sampleRate: rateHz });
    this.sum = new GainNode(this.context);
    this.sum.connect(this.context.destination);
    this.voices = new Map();
    this.playing = false;
    this.from = { time: 0, position: 0 }; // the clock's time at which a position of the song is heard
    this.loop = null;
    this.durationS = 0;
    this.semitones = 0;
  }

  /** Adds a whole track, which joins in where the others are. */
  add(track, gain) {
    const node = new GainNode(this.context, { gain });
    node.connect(this.sum);
    const voice = { track, node, source: null };
    this.voices.set(track.name, voice);
    this.durationS = Math.max(this.durationS, track.buffer.duration);
    if (this.playing) {
      const time = this.context.currentTime + LEAD_S;
      this.start(voice, time, this.positionAt(time));
    }
  }

  setGain(name, gain) {
    this.voices.get(name)?.node.gain.setTargetAtTime(gain, this.context.currentTime, FADE_S);
  }

  get position() {
    return this.playing ? this.positionAt(this.context.currentTime) : this.from.position;
  }

  async play() {
    if (this.playing || !this.voices.size) return;
    this.playing = true;
    await this.context.resume();
    if (this.from.position >= this.durationS - 0.01) this.from.position = this.loop?.start ?? 0;
    this.restart(this.from.position);
  }

  pause() {
    if (!this.playing) return;
    this.from.position = Math.min(this.position, this.durationS);
    this.playing = false;
    this.stopSources(0);
    this.context.suspend();
  }

  seek(position) {
    this.from.position = Math.max(0, Math.min(this.durationS, position));
    if (this.playing) this.restart(this.from.position);
  }

  /** Repeats `{ start, end }` in seconds, or nothing for null. */
  setLoop(loop) {
    const time = this.context.currentTime + LEAD_S;
    const position = this.playing ? this.positionAt(time) : this.from.position;
    const outside = loop && (position < loop.start || position >= loop.end);
    this.loop = loop;
    if (outside) this.seek(loop.start);
    else if (this.playing) this.restart(position, time);
  }

  /** Shifts the pitch of the sum at constant tempo; 0 takes the shifter out of the way. */
  async setSemitones(semitones) {
    this.semitones = semitones;
    if (semitones !== 0 && !this.shifter) {
      this.loading ??= this.context.audioWorklet.addModule(new URL("pitch-worklet.js", import.meta.url));
      await this.loading;
      this.shifter ??= new AudioWorkletNode(this.context, "pitch", { outputChannelCount: [2] });
      this.shifter.connect(this.context.destination);
    }
    this.sum.disconnect();
    this.sum.connect(this.semitones === 0 ? this.context.destination : this.shifter);
    if (this.shifter) this.shifter.port.postMessage(2 ** (this.semitones / 12));
  }

  close() {
    this.stopSources(0);
    this.playing = false;
    this.context.close();
  }

  restart(position, time = this.context.currentTime + LEAD_S) {
    this.stopSources(time);
    this.from = { time, position };
    for (const voice of this.voices.values()) this.start(voice, time, position);
  }

  start(voice, time, position) {
    const loop = this.loop ? { loop: true, loopStart: this.loop.start, loopEnd: this.loop.end } : {};
    voice.source = new AudioBufferSourceNode(this.context, { buffer: voice.track.buffer, ...loop });
    voice.source.connect(voice.node);
    voice.source.start(time, position);
  }

  stopSources(time) {
    for (const voice of this.voices.values()) {
      voice.source?.stop(time);
      voice.source = null;
    }
  }

  positionAt(time) {
    const position = this.from.position + Math.max(0, time - this.from.time);
    const loop = this.loop;
    if (!loop || position < loop.end || this.from.position >= loop.end) return position;
    return loop.start + ((position - loop.start) % (loop.end - loop.start));
  }
}
