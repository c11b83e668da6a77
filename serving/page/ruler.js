/** Time along the top of the lanes, and the pointer on them: click and drag to seek, with Shift to mark the loop. */
import { element } from "./dom.js";
import { clock, words } from "./words.js";

const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800];
const SHORTEST_LOOP_S = 0.05;

export class Ruler {
  constructor() {
    this.ticks = element("div", { class: "ticks", "aria-hidden": "true" });
    this.root = element(
      "div",
      { class: "ruler stage", role: "slider", tabindex: "0", "aria-label": words.position, "aria-valuemin": "0" },
      this.ticks,
    );
  }

  setDuration(durationS) {
    if (durationS === this.durationS || !durationS) return;
    this.durationS = durationS;
    const step = STEPS_S.find((seconds) => durationS / seconds <= 9) ?? 3_600;
    const times = Array.from({ length: Math.ceil(durationS / step) }, (_, n) => n * step);
    this.ticks.replaceChildren(...times.map((time) => element("span", {}, clock(time))));
    [...this.ticks.children].forEach((tick, n) => (tick.style.left = `${(100 * times[n]) / durationS}%`));
    this.root.setAttribute("aria-valuemax", durationS.toFixed(1));
  }

  say(position) {
    if (Math.floor(position) === this.said) return;
    this.said = Math.floor(position);
    this.root.setAttribute("aria-valuenow", position.toFixed(1));
    this.root.setAttribute("aria-valuetext", words.positionText(position, this.durationS ?? 0));
  }
}

/** Tells of pointers on a stage: `seek(share)` while one moves, `mark(from, to)` while one moves with Shift held. */
export function listen(stage, durationS, { seek, mark }) {
  let start = null;
  const share = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - left) / width));
  };
  const move = (event) => {
    if (!start) return;
    const at = share(event);
    if (!start.marks) seek(at);
    else if (Math.abs(at - start.at) * durationS() > SHORTEST_LOOP_S) mark(Math.min(at, start.at), Math.max(at, start.at));
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = { at: share(event), marks: event.shiftKey };
    stage.setPointerCapture(event.pointerId);
    move(event);
  });
  stage.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (start = null));
}
