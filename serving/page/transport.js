/** The buttons over the lanes: play, time, mixture, loop, key; and the downloads beside the song's name. */
import { element, press } from "./dom.js";
import { toggle } from "./lane.js";
import { clock, words } from "./words.js";

export class Transport {
  constructor(mixer) {
    this.play = element("button", { type: "button", class: "play", "aria-label": words.play, onclick: () => mixer.togglePlay() });
    this.start = button("", words.toStart, () => mixer.seekTo(0));
    this.start.classList.add("start");
    this.time = element("span", { class: "time" }, "0:00");
    this.length = element("span", { class: "length" });
    this.mixture = toggle(words.mixture, words.mixtureHint, () => mixer.toggleMixture(), words.mixture);
    this.loop = toggle(words.loop, words.loopHint, () => mixer.loop.toggle(), words.loop);
    const from = button("[", words.loopStart, () => mixer.loop.fromHere());
    const to = button("]", words.loopEnd, () => mixer.loop.toHere());
    const down = button("−", words.pitchDown, () => mixer.shiftPitch(-1));
    const up = button("+", words.pitchUp, () => mixer.shiftPitch(1));
    this.pitch = element("output", { "aria-live": "polite" }, words.pitchText(0));
    this.mix = element("button", { type: "button", title: words.downloadMixHint, onclick: () => mixer.saveMix() }, words.downloadMix);
    this.zip = element("button", { type: "button", onclick: () => mixer.saveZip() }, words.downloadZip);
    this.root = element(
      "div",
      { class: "transport", role: "toolbar", "aria-label": words.mixer },
      element("div", { class: "run" }, this.play, this.start, element("p", { class: "clock" }, this.time, this.length)),
      group(this.mixture),
      group(from, this.loop, to),
      element("div", { class: "pitch" }, element("span", { class: "label" }, words.pitch), group(down, this.pitch, up)),
    );
    this.files = element("div", { class: "files" }, this.mix, this.zip);
    this.controls = [this.play, this.start, this.mixture, this.loop, from, to, down, up];
    for (const control of [...this.controls, this.mix, this.zip]) control.disabled = true;
  }

  /** As soon as one lane can be played. */
  enable(hasMixture) {
    for (const control of this.controls) control.disabled = false;
    this.mixture.disabled = !hasMixture;
  }

  /** When the whole answer is there. */
  enableFiles() {
    this.mix.disabled = this.zip.disabled = false;
  }

  show(position, durationS, playing) {
    const [time, length] = [clock(position), ` / ${clock(durationS)}`];
    if (this.time.textContent !== time) this.time.textContent = time;
    if (this.length.textContent !== length) this.length.textContent = length;
    if (playing === this.playing) return;
    this.playing = playing;
    this.play.setAttribute("aria-label", playing ? words.pause : words.play);
    press(this.play, playing);
  }

  showPitch(semitones) {
    this.pitch.textContent = words.pitchText(semitones);
  }
}

function button(label, title, onclick) {
  return element("button", { type: "button", class: "icon", "aria-label": title, title, onclick }, label);
}

function group(...children) {
  return element("div", { class: "group" }, ...children);
}
