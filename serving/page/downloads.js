/** The files that a song leaves: a stem, the mix as it is set, the zip as it came. */
import { save } from "./dom.js";
import { mixdown } from "./mixdown.js";
import { words } from "./words.js";

export function saveStem({ zip, plainName }, { name, fileName, start, bytes }) {
  const suffix = /\.[^.]*$/.exec(fileName)[0];
  save(zip.slice(start, start + bytes), `${plainName} (${name})${suffix}`);
}

export function saveZip({ zip, plainName }) {
  save(zip, `${plainName}.zip`);
}

/** Tells how far it is, and at last whether the mix had to be turned down. */
export async function saveMix({ plainName }, tracks, gains, semitones, say) {
  const { wav, gain } = await mixdown(tracks, gains, semitones, (share) => say(words.mixing(Math.round(100 * share))));
  save(wav, `${plainName} (mix).wav`);
  say(gain < 1 ? words.turnedDown((-20 * Math.log10(gain)).toFixed(1)) : "");
}
