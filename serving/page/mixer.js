/** The mixer of one song: its lanes under one ruler and one playhead, and what is set of them. */
import { element, press } from "./dom.js";
import { saveMix, saveStem, saveZip } from "./downloads.js";
import { keyHelp, listenToKeys } from "./keys.js";
import { Lane } from "./lane.js";
import { Loop } from "./loop.js";
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
    this.loop = new Loop(this);
    const { stems, own } = song.wishes;
    const mixtures = [own, ["vocals", "accompaniment"]].filter((sum) => sum.every((stem) => stems.includes(stem)));
    this.sum = mixtures[0] ?? stems; // stems that sum to the song, where there are some
    this.hasMixture = mixtures.length > 0;
    this.ruler = new Ruler();
    this.transport = new Transport(this);
    this.list = element("ol", { class: "lanes" });
    stems.forEach((stem) => this.addLane(stem));
    this.note = element("p", { class: "note", role: "status" });
    const title = element("div", { class: "open" }, element("h2", { title: song.name }, song.plainName), this.transport.files);
    this.board = element("div", { class: "board" }, this.transport.root, element("div", { class: "head" }, this.ruler.root), this.list);
    this.root = element("div", { class: "mixer" }, title, this.board, this.note, keyHelp());
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
    this.enableFiles();
  }

  close() {
    this.stopKeys();
    cancelAnimationFrame(this.frame);
    this.scheme.removeEventListener("change", this.redraw);
    this.player?.close();
    this.song.close();
    this.root.remove();
  }

  /** Once every stem is there. */
  enableFiles() {
    if (!this.song.isOpen) return;
    this.transport.enableFiles();
    for (const lane of this.lanes) lane.file.disabled = false;
  }

  addLane(stem) {
    const lane = new Lane(stem, this.lanes.length + 1, { change: () => this.mix(), download: () => this.saveStem(lane) });
    this.lanes.push(lane);
    if (!this.sum.includes(stem)) lane.toggleMute(); // it would be heard twice
    this.list.append(lane.root);
    this.listenOn(lane.stage);
    return lane;
  }

  take(track) {
    const lane = this.lanes.find((other) => other.name === track.name) ?? this.addLane(track.name);
    lane.track = track;
    if (track.whole && !this.player?.voices.has(track.name)) this.join(track);
    const sheet = this.song.tracks?.sheet;
    lane.show(sheet?.files?.[track.name]);
    this.say();
    this.ruler.setDuration(track.buffer?.duration);
    const full = Math.max(0.05, ...this.lanes.map((each) => each.track?.envelope?.peak ?? 0));
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

  shiftPitch(step) {
    if (!this.player) return;
    const semitones = Math.max(-6, Math.min(6, this.player.semitones + step));
    this.player.setSemitones(semitones);
    this.transport.showPitch(semitones);
  }

  saveStem({ track }) {
    saveStem(this.song, track);
  }

  saveZip() {
    saveZip(this.song);
  }

  async saveMix() {
    const tracks = this.lanes.map((lane) => lane.track);
    this.transport.mix.disabled = true;
    await saveMix(this.song, tracks, this.gains(), this.player.semitones, (text) => this.say(text));
    this.transport.mix.disabled = false;
  }

  /** Says something of the mix, else the server's note on the song. */
  say(text = "") {
    const note = this.song.tracks?.sheet?.song?.note;
    const said = text || (note ? words.note(note) : "");
    if (this.note.textContent !== said) this.note.textContent = said;
  }

  get position() {
    return this.player?.position ?? 0;
  }

  get durationS() {
    return this.player?.durationS ?? 0;
  }

  listenOn(stage) {
    listen(stage, () => this.durationS, {
      seek: (share) => this.seekTo(share * this.durationS),
      mark: (from, to) => this.loop.mark(from * this.durationS, to * this.durationS),
    });
  }

  tick() {
    const { position } = this;
    if (this.player?.playing && position >= this.durationS) this.player.pause();
    this.board.style.setProperty("--at", this.durationS ? position / this.durationS : 0);
    this.ruler.say(position);
    this.transport.show(position, this.ruler.durationS ?? 0, this.player?.playing ?? false);
    this.frame = requestAnimationFrame(() => this.tick());
  }
}
