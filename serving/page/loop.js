/** The region of the song that repeats: where it begins and ends, and whether it is on. */
import { press } from "./dom.js";

export class Loop {
  constructor(mixer) {
    this.mixer = mixer;
    this.region = null; // { start, end } in seconds, which stays when the loop is off
  }

  mark(start, end) {
    this.region = { start, end };
    this.set(true);
  }

  fromHere() {
    const at = this.mixer.position;
    this.mark(at, this.region && this.region.end > at ? this.region.end : this.mixer.durationS);
  }

  toHere() {
    const at = this.mixer.position;
    if (at > 0) this.mark(this.region && this.region.start < at ? this.region.start : 0, at);
  }

  toggle() {
    this.region ??= { start: 0, end: this.mixer.durationS };
    this.set(!this.mixer.player?.loop);
  }

  set(on) {
    const { player, board, transport, durationS } = this.mixer;
    if (!player) return;
    player.setLoop(on ? this.region : null);
    press(transport.loop, on);
    board.classList.toggle("looped", on);
    board.style.setProperty("--from", this.region.start / durationS);
    board.style.setProperty("--to", this.region.end / durationS);
  }
}
