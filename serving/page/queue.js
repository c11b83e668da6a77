/** The list of songs: one is sent at a time, the others wait. */
import { element } from "./dom.js";
import { words } from "./words.js";

/** Shows one song in the list. `on.open`, `on.cancel`, `on.again` and `on.remove` take the song. */
export class SongRow {
  constructor(song, on) {
    this.song = song;
    const act = (does) => () => on[does](song);
    this.title = element("button", { type: "button", class: "title", title: song.name, "aria-label": words.openSong(song.name), onclick: act("open") }, song.name);
    this.status = element("p", { class: "status", role: "status" });
    this.bar = element("progress", { max: 1, "aria-label": song.name });
    this.cancel = element("button", { type: "button", "aria-label": words.cancelSong(song.name), onclick: act("cancel") }, words.cancel);
    this.again = element("button", { type: "button", onclick: act("again") }, words.again);
    this.remove = element("button", { type: "button", "aria-label": words.removeSong(song.name), onclick: act("remove") }, words.remove);
    this.root = element(
      "li",
      { class: "song" },
      element("div", { class: "what" }, this.title, this.status),
      element("div", { class: "acts" }, this.cancel, this.again, this.remove),
      this.bar,
    );
    this.show();
  }

  show() {
    const { song } = this;
    const busy = song.running || song.state === "waiting";
    this.root.dataset.state = song.state;
    const text = statusOf(song);
    if (this.status.textContent !== text) this.status.textContent = text;
    this.cancel.hidden = !busy;
    this.again.hidden = !["failed", "cancelled"].includes(song.state);
    this.remove.hidden = busy;
    this.bar.hidden = !song.running;
    const share = shareOf(song);
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
  }
}

/** The share of the present step that is done, null where nobody knows. */
function shareOf(song) {
  if (song.state === "sending" && song.sentBytes) return song.sentBytes / song.file.size;
  if (song.state !== "receiving") return null;
  return song.progress.list.at(-1)?.share ?? null;
}

function statusOf(song) {
  if (song.retryInS > 0) return words.nextTry(song.error, song.retryInS);
  const simple = { waiting: words.waiting, working: words.working, cancelled: words.cancelled, failed: song.error };
  if (song.state in simple) return simple[song.state];
  if (song.state === "sending") {
    return song.sentBytes ? words.sending(song.sentBytes, song.file.size) : words.sendingAll(song.file.size);
  }
  if (song.state === "done") return words.done(song.progress.durationS, song.wishes.stems.length);
  const tracks = song.progress.list;
  const current = tracks.at(-1);
  if (!current?.samples) return words.receivingBytes(song.receivedBytes);
  // The first stem comes while it is made, the others when all is done.
  if (tracks.length === 1) return words.receiving(current.share * current.durationS, current.durationS);
  return words.receivingStem(current.name, tracks.length, song.wishes.stems.length);
}

