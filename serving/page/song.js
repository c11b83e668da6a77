/** One song on its way: sent, separated, received. It keeps the answer as one Blob, which the browser may put on disk. */
import { Refusal, separate } from "./server.js";
import { Tracks } from "./tracks.js";

const LONGEST_WAIT_S = 60;
const FOLD_BYTES = 8e6;

/** `state`: waiting, sending, working, receiving, done, failed or cancelled. `onChange` tells of every change. */
export class Song {
  constructor(file, wishes, onChange) {
    Object.assign(this, { file, wishes, onChange, onTrack: () => {} });
    this.reset();
  }

  reset() {
    Object.assign(this, { state: "waiting", error: "", sentBytes: 0, receivedBytes: 0, retryInS: 0, durationS: 0, zip: null, tracks: null });
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
      if (this.stop.signal.aborted) {
        this.tracks = null;
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

  /** The song's tracks, read anew from the answer where they were let go. */
  async open(onTrack) {
    this.onTrack = onTrack;
    if (this.tracks) this.tracks.list.forEach((track) => onTrack(track));
    else if (this.state === "done") {
      const tracks = this.newTracks();
      for (const reader = this.zip.stream().getReader(); ; ) {
        const { value, done } = await reader.read();
        if (done || this.tracks !== tracks) break;
        tracks.push(value);
      }
      if (this.tracks === tracks) await tracks.finish();
    }
  }

  /** Lets the samples go; the answer stays. */
  close() {
    this.onTrack = () => {};
    this.tracks = null;
  }

  newTracks() {
    this.tracks = new Tracks((track) => this.onTrack(track));
    return this.tracks;
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
    const tracks = this.newTracks();
    let parts = [];
    let blob = new Blob([]);
    let folded = 0;
    for (const reader = body.getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) break;
      parts.push(value);
      this.receivedBytes += value.length;
      if (this.receivedBytes - folded > FOLD_BYTES) {
        blob = new Blob([blob, ...parts]);
        parts = [];
        folded = this.receivedBytes;
      }
      tracks.push(value);
      this.onChange(this);
    }
    await tracks.finish();
    this.durationS = tracks.durationS;
    this.zip = new Blob([blob, ...parts], { type: "application/zip" });
  }

  become(state) {
    this.state = state;
    this.onChange(this);
  }
}
