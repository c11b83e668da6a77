/** One stem in the mixer: its name, mute, solo and level, its waveform or spectrogram, and its download. */
import { element, press } from "./dom.js";
import { drawSpectrogram } from "./spectrogram.js";
import { drawWaveform } from "./waveform.js";
import { capital, words } from "./words.js";

const DRAW_EVERY_MS = 120;

export class Lane {
  /** `track` is null until the stem comes. `on.change()` tells of another mix, `on.download()` asks for the stem as a file. */
  constructor(name, number, on) {
    Object.assign(this, { name, on, track: null, level: 1, muted: false, soloed: false, showsSpectrum: false });
    const title = capital(name);
    this.mute = toggle("M", words.mute(title), () => this.toggleMute());
    this.solo = toggle("S", words.solo(title), () => this.toggleSolo());
    this.slider = element("input", {
      ...{ type: "range", min: 0, max: 1.5, step: 0.01, value: 1, class: "level" },
      ...{ "aria-label": words.level(title), "aria-valuetext": words.levelText(1) },
      oninput: () => this.setLevel(Number(this.slider.value)),
    });
    this.spectrum = toggle("≋", words.spectrogram(title), () => this.toggleSpectrum());
    this.file = element(
      "button",
      { type: "button", class: "icon", "aria-label": words.download(title), title: words.download(title), disabled: true },
      "↓",
    );
    this.file.addEventListener("click", () => on.download());
    this.facts = element("p", { class: "facts" }, words.lanePending);
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.stage = element("div", { class: "stage" }, this.canvas);
    this.root = element(
      "li",
      { class: "lane", "data-stem": name },
      element(
        "div",
        { class: "strip", role: "group", "aria-label": title },
        element("div", { class: "name" }, element("kbd", { "aria-hidden": "true" }, String(number)), element("h3", {}, title), this.facts),
        element("div", { class: "buttons" }, this.mute, this.solo, this.slider, this.spectrum, this.file),
      ),
      this.stage,
    );
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  toggleMute() {
    this.muted = !this.muted;
    press(this.mute, this.muted);
    this.on.change();
  }

  toggleSolo() {
    this.soloed = !this.soloed;
    press(this.solo, this.soloed);
    this.on.change();
  }

  setLevel(level) {
    this.level = level;
    this.slider.setAttribute("aria-valuetext", words.levelText(level));
    this.on.change();
  }

  toggleSpectrum() {
    this.showsSpectrum = !this.showsSpectrum;
    press(this.spectrum, this.showsSpectrum);
    this.draw();
  }

  /** Shows what the fact sheet says of the stem, `{}` where there is none. */
  show({ peak, clipped_samples: clipped } = {}) {
    this.root.classList.toggle("whole", this.track.whole);
    if (this.track.whole) {
      this.facts.replaceChildren(peak === undefined ? "" : words.peak(peak));
      if (clipped) this.facts.append(" ", element("strong", { title: words.clippedHint }, words.clipped(clipped)));
    }
  }

  /** Draws soon; often asked while a stem comes in, it draws a few times a second. */
  drawSoon() {
    this.timer ??= setTimeout(() => this.draw(), DRAW_EVERY_MS);
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.drawing?.abort();
    this.drawing = new AbortController();
    if (!this.track?.buffer || !this.stage.isConnected) return;
    if (this.showsSpectrum && this.track.whole) drawSpectrogram(this.canvas, this.track.buffer, this.drawing.signal);
    else drawWaveform(this.canvas, this.track.envelope, this.full ?? 1);
  }
}

/** A button that stays pressed; `name` is what it is called where its label is but a sign. */
export function toggle(label, title, onclick, name = title) {
  return element("button", { type: "button", class: "toggle", "aria-pressed": "false", "aria-label": name, title, onclick }, label);
}
