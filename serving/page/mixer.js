/** The mixer of one song: its lanes under one ruler and one playhead, and what is set of them. */
import { element, press, save } from "./dom.js";
import { listenToKeys } from "./keys.js";
import { Lane } from "./lane.js";
import { mixdown } from "./mixdown.js";
import { Player } from "./player.js";
import { listen, Ruler } from "./ruler.js";
import { Transport } from "./transport.js";
import { words } from "./words.js";

export class Mixer {
  constructor(song) {
    this.song = song;
    this.lanes = [];
    this.player = null;
    this.mixture = false;
    this.region = null; // the marked loop, which may be off
    const { stems, own } = song.wishes;
    const mixtures = [own, ["vocals", "accompaniment"]].filter((sum) => sum.every((stem) => stems.includes(stem)));
    this.sum = mixtures[0] ?? stems; // stems that sum to the song, where there are some
    this.hasMixture = mixtures.length > 0;
    this.ruler = new Ruler();
    this.transport = new Transport(this);
    this.list = element("ol", { class: "lanes" });
    this.note = element("p", { class: "note", role: "status" });
    this.board = element("div", { class: "board" }, element("div", { class: "head" }, this.ruler.root), this.list);
    this.root = element("div", { class: "mixer" }, this.transport.root, this.board, this.note, keyHelp());
    this.stopKeys = listenToKeys(this);
    this.listenOn(this.ruler.root);
    this.frame = requestAnimationFrame(() => this.tick());
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => this.lanes.forEach((lane) => lane.draw());
    this.scheme.addEventListener("change", this.redraw);
  }

  /** Opens the song's tracks; each appears as it comes. Throws where one cannot be played. */
  async open() {
    await this.song.open((track) => this.take(track));
  }

  close() {
    this.stopKeys();
    cancelAnimationFrame(this.frame);
    this.scheme.removeEventListener("change", this.redraw);
    this.player?.close();
    this.song.close();
    this.root.remove();
  }

  take(track) {
    let lane = this.lanes.find((other) => other.track === track);
    if (!lane) {
      lane = new Lane(track, this.lanes.length + 1, { change: () => this.mix(), download: () => this.saveStem(lane) });
      this.lanes.push(lane);
      if (!this.sum.includes(track.name)) lane.toggleMute(); // it would be heard twice
      this.list.append(lane.root);
      this.listenOn(lane.stage);
    }
    if (track.whole && !this.player?.voices.has(track.name)) this.join(track);
    const sheet = this.song.tracks?.sheet;
    lane.show(sheet?.files?.[track.name]);
    if (sheet?.song?.note) this.note.textContent = words.note(sheet.song.note);
    this.ruler.setDuration(track.buffer?.duration);
    const full = Math.max(0.05, ...this.lanes.map((each) => each.track.envelope?.peak ?? 0));
    for (const each of this.lanes) {
      if (each === lane || each.full !== full) each.drawSoon();
      each.full = full;
    }
  }

  join(track) {
    this.player ??= new Player(track.buffer.sampleRate);
    this.player.add(track, 0);
    this.transport.enable(this.hasMixture);
    this.mix();
  }

  /** Gains of the lanes as they are heard. */
  gains() {
    const solo = this.lanes.some((lane) => lane.soloed);
    return this.lanes.map((lane) => {
      if (this.mixture) return this.sum.includes(lane.name) ? 1 : 0;
      return lane.muted || (solo && !lane.soloed) ? 0 : lane.level;
    });
  }

  mix() {
    this.gains().forEach((gain, index) => {
      this.player?.setGain(this.lanes[index].name, gain);
      this.lanes[index].root.classList.toggle("silent", gain === 0);
    });
  }

  togglePlay() {
    if (this.player?.playing) this.player.pause();
    else this.player?.play();
  }

  seekTo(position) {
    this.player?.seek(position);
  }

  seekBy(seconds) {
    if (this.player) this.player.seek(this.player.position + seconds);
  }

  toggleMute(number) {
    this.lanes[number - 1]?.toggleMute();
  }

  toggleSolo(number) {
    this.lanes[number - 1]?.toggleSolo();
  }

  toggleMixture() {
    this.mixture = !this.mixture;
    press(this.transport.mixture, this.mixture);
    this.mix();
  }

  mark(start, end) {
    this.region = { start, end };
    this.setLoop(true);
  }

  loopFromHere() {
    const at = this.player?.position ?? 0;
    this.mark(at, this.region && this.region.end > at ? this.region.end : this.durationS);
  }

  loopToHere() {
    const at = this.player?.position ?? 0;
    if (at > 0) this.mark(this.region && this.region.start < at ? this.region.start : 0, at);
  }

  toggleLoop() {
    this.region ??= { start: 0, end: this.durationS };
    this.setLoop(!this.player?.loop);
  }

  setLoop(on) {
    if (!this.player) return;
    this.player.setLoop(on ? this.region : null);
    press(this.transport.loop, on);
    this.board.classList.toggle("looped", on);
    this.board.style.setProperty("--from", this.region.start / this.durationS);
    this.board.style.setProperty("--to", this.region.end / this.durationS);
  }

  shiftPitch(step) {
    if (!this.player) return;
    const semitones = Math.max(-6, Math.min(6, this.player.semitones + step));
    this.player.setSemitones(semitones);
    this.transport.showPitch(semitones);
  }

  saveStem({ track }) {
    const zip = this.song.zip;
    if (zip) save(zip.slice(track.start, track.start + track.bytes), `${this.song.plainName} (${track.name})${/\.[^.]*$/.exec(track.fileName)[0]}`);
  }

  saveZip() {
    save(this.song.zip, `${this.song.plainName}.zip`);
  }

  async saveMix() {
    const tracks = this.lanes.map((lane) => lane.track);
    const onShare = (share) => (this.note.textContent = words.mixing(Math.round(100 * share)));
    const { wav, gain } = await mixdown(tracks, this.gains(), this.player.semitones, onShare);
    this.note.textContent = gain < 1 ? words.turnedDown((-20 * Math.log10(gain)).toFixed(1)) : "";
    save(wav, `${this.song.plainName} (mix).wav`);
  }

  get durationS() {
    return this.player?.durationS ?? 0;
  }

  listenOn(stage) {
    listen(stage, () => this.durationS, {
      seek: (share) => this.seekTo(share * this.durationS),
      mark: (from, to) => this.mark(from * this.durationS, to * this.durationS),
    });
  }

  tick() {
    const position = this.player?.position ?? 0;
    if (this.player?.playing && position >= this.durationS) this.player.pause();
    this.board.style.setProperty("--at", this.durationS ? position / this.durationS : 0);
    this.ruler.say(position);
    this.transport.show(position, this.durationS, this.player?.playing ?? false);
    this.frame = requestAnimationFrame(() => this.tick());
  }
}

function keyHelp() {
  const rows = words.keyList.map(([key, does]) =>
    element("div", {}, element("dt", {}, element("kbd", {}, key)), element("dd", {}, does)),
  );
  return element("details", { class: "keys" }, element("summary", {}, words.keys), element("dl", {}, ...rows));
}
