/** The mixer by keyboard. Keys of a focused control stay its own; one that a click left focused does not hold the space bar. */
import { element } from "./dom.js";
import { words } from "./words.js";

const CHORD_MS = 1_500;
const TAKES_SPACE = "button, a, input, select, textarea, summary, [role=button]";
const TAKES_ARROWS = "input, select, textarea";

/** `actions` are the mixer's; the function that it returns stops listening. */
export function listenToKeys(actions) {
  let chord = null;
  let clicked = null; // the control that a click left focused
  const simple = {
    a: () => actions.toggleMixture(),
    l: () => actions.loop.toggle(),
    "[": () => actions.loop.fromHere(),
    "]": () => actions.loop.toHere(),
    "+": () => actions.shiftPitch(1),
    "=": () => actions.shiftPitch(1),
    "-": () => actions.shiftPitch(-1),
  };
  const moves = {
    ArrowLeft: (step) => actions.seekBy(-step),
    ArrowRight: (step) => actions.seekBy(step),
    Home: () => actions.seekTo(0),
    End: () => actions.seekTo(Infinity),
  };
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const at = event.target instanceof Element ? event.target : document.body;
    const typing = at.matches("select, textarea, input:not([type=range], [type=checkbox], [type=radio])");
    if (typing) return;
    if (key === " " && (at === clicked || !at.matches(TAKES_SPACE))) actions.togglePlay();
    else if (moves[key] && !at.matches(TAKES_ARROWS)) moves[key](event.shiftKey ? 1 : 5);
    else if (key === "m" || key === "s") chord = { kind: key, until: performance.now() + CHORD_MS };
    else if (/^[1-9]$/.test(key) && chord && performance.now() < chord.until) {
      actions[chord.kind === "m" ? "toggleMute" : "toggleSolo"](Number(key));
    } else if (simple[key]) simple[key]();
    else return;
    event.preventDefault();
  };
  const listening = new AbortController();
  const onClick = (event) => (clicked = event.detail ? event.target.closest(TAKES_SPACE) : null); // 0 is a click by keyboard
  document.addEventListener("keydown", onKey, listening);
  document.addEventListener("focusin", () => (clicked = null), listening);
  document.addEventListener("click", onClick, listening);
  return () => listening.abort();
}

/** The keys as a list that unfolds. */
export function keyHelp() {
  const rows = words.keyList.map(([key, does]) =>
    element("div", {}, element("dt", {}, element("kbd", {}, key)), element("dd", {}, does)),
  );
  return element("details", { class: "keys" }, element("summary", {}, words.keys), element("dl", {}, ...rows));
}
