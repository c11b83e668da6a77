/** One song on its way: sent, separated, received. It keeps the answer as Blobs, which the browser may put on disk, and samples only while it is open. */
import { Refusal, separate } from "./server.js";
import { Tracks } from "./tracks.js";

const LONGEST_WAIT_S = 60;
const FOLD_BYTES = 8e6;

/** `state`: waiting, sending, working, receiving, done, failed or cancelled. `onChange` tells of every change. */
export class Song {
  constructor(file, wishes, onChange) {
    Object.assign(this, { file, wishes, onChange });
    this.reset();
  }

  reset() {
    Object.assign(this, { state: "waiting", error: "", sentBytes: 0, receivedBytes: 0, retryInS: 0, parts: [], zip: null, tracks: null, isLive: false });
    this.folded = new Blob([]);
    this.progress = new Tracks(() => {}, false);
    this.stop = new AbortController();
  }

  get name() {
    return this.file.name;
  }

  get plainName() {
    return this.name.replace(/\.[^.]*$/, "");
  }

  get running() {
    return ["sending", "working", "receiving"].includes(this.state);
  }

  /** Resolves when the song is done, failed or cancelled. Throws a Refusal of 401, for which the caller has the remedy. */
  async run() {
    try {
      const response = await this.ask();
      this.become("receiving");
      await this.receive(response.body);
      this.become("done");
    } catch (error) {
      this.parts = [];
      this.folded = new Blob([]);
      if (this.stop.signal.aborted) {
        this.retryInS = 0;
        this.become("cancelled");
      } else if (error.status === 401) {
        this.become("waiting");
        throw error;
      } else {
        this.stop.abort();
        this.error = error.message;
        this.become("failed");
      }
    }
  }

  cancel() {
    this.stop.abort();
    if (this.state === "waiting") this.become("cancelled");
  }

  /** Reads the answer so far into tracks; what still comes goes to them as well. */
  async open(onTrack) {
    const tracks = (this.tracks = new Tracks(onTrack));
    for (let at = 0; at < this.folded.size; ) {
      const answer = this.folded.slice(at);
      for (const reader = answer.stream().getReader(); ; ) {
        const { value, done } = await reader.read();
        if (this.tracks !== tracks) return;
        if (done) break;
        tracks.push(value);
      }
      at += answer.size;
    }
    for (const part of this.parts) tracks.push(part); // without a pause, in which more could come
    this.isLive = true;
    if (this.zip) await tracks.finish();
  }

  /** Lets the samples go; the answer stays. */
  close() {
    this.tracks = null;
    this.isLive = false;
  }

  /** True when every stem is open and can be saved. */
  get isOpen() {
    return Boolean(this.zip && this.tracks?.whole);
  }

  get answer() {
    return new Blob([this.folded, ...this.parts], { type: "application/zip" });
  }

  /** Asks again for as long as the server is busy: whoever listens may cancel. */
  async ask() {
    for (let attempt = 1; ; attempt++) {
      this.become("sending");
      try {
        return await separate(this.file, this.wishes, this.stop.signal, (bytes) => {
          this.sentBytes = bytes;
          this.become(bytes < this.file.size ? "sending" : "working");
        });
      } catch (error) {
        if (!(error instanceof Refusal) || !error.retryAfterS) throw error;
        this.error = error.message;
        await this.wait(Math.min(LONGEST_WAIT_S, Math.ceil(error.retryAfterS * attempt)));
      }
    }
  }

  async wait(seconds) {
    for (this.retryInS = seconds; this.retryInS > 0; this.retryInS--) {
      this.onChange(this);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      this.stop.signal.throwIfAborted();
    }
  }

  async receive(body) {
    for (const reader = body.getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) break;
      this.parts.push(value);
      this.receivedBytes += value.length;
      if (this.receivedBytes - this.folded.size > FOLD_BYTES) {
        this.folded = this.answer;
        this.parts = [];
      }
      this.progress.push(value);
      if (this.isLive) this.tracks.push(value);
      this.onChange(this);
    }
    await this.progress.finish();
    this.zip = this.folded = this.answer;
    this.parts = [];
    if (this.isLive) await this.tracks.finish();
  }

  become(state) {
    this.state = state;
    this.onChange(this);
  }
}
