/** The page: songs are dropped into a queue, one after the other goes to the server, one is open in the mixer. */
import { byId, element } from "./dom.js";
import { Mixer } from "./mixer.js";
import { SongRow } from "./queue.js";
import { describe, keepKey } from "./server.js";
import { Song } from "./song.js";
import { words } from "./words.js";

const MEET_EVERY_MS = 3_000;

const rows = new Map();
let offer = null;
let open = null; // the song in the mixer
let mixer = null;
let early = []; // files that came before the server told what it gives

function fillWords() {
  document.title = words.title;
  for (const place of document.querySelectorAll("[data-words]")) place.textContent = words[place.dataset.words];
  for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", words[place.dataset.label]);
}

/** Asks the server what it gives, and for its key where it wants one. */
async function meet() {
  try {
    offer = await describe();
    byId("model").textContent = words.model(offer.own);
    choices("stems", "checkbox", offer.stems, (stem) => offer.own.includes(stem));
    choices("quality", "radio", offer.qualities, (_, index) => index === 0, words.qualities);
    const formats = offer.formats.map((format) => element("option", { value: format }, words.formats[format] ?? format));
    byId("format").replaceChildren(...formats);
    byId("wishes").hidden = false;
    complain("");
    addSongs(early.splice(0));
  } catch (error) {
    if (error.status === 401) return askForKey(meet);
    byId("model").textContent = words.noModel;
    complain(error.message);
    setTimeout(meet, MEET_EVERY_MS);
  }
}

function choices(name, type, values, chosen, labels = {}) {
  const made = values.map((value, index) =>
    element(
      "label",
      { class: "chip", "data-stem": name === "stems" ? value : null },
      element("input", { type, name, value, checked: chosen(value, index) }),
      element("span", {}, labels[value] ?? value),
    ),
  );
  byId(name).replaceChildren(...made);
}

function wishes() {
  const checked = (name) => [...document.querySelectorAll(`[name=${name}]:checked`)].map((input) => input.value);
  return { stems: checked("stems"), own: offer?.own ?? [], quality: checked("quality")[0] ?? "fast", format: byId("format").value || "wav" };
}

function addSongs(files) {
  const wanted = wishes();
  if (!offer) return void early.push(...files);
  complain(wanted.stems.length ? "" : words.noStem);
  if (!wanted.stems.length) return;
  for (const file of files) {
    const song = new Song(file, wanted, changed);
    const row = new SongRow(song, { open: openSong, cancel: (one) => one.cancel(), again, remove });
    rows.set(song, row);
    byId("songs").append(row.root);
  }
  arrange();
  next();
}

function changed(song) {
  rows.get(song)?.show();
  if (song.state === "receiving" && !open) openSong(song);
  if (song === open && song.state === "done") mixer?.enableFiles();
  if (song === open && ["failed", "cancelled"].includes(song.state)) openSong(null);
}

/** Sends the next song that waits, unless one is on its way. */
async function next() {
  const songs = [...rows.keys()];
  if (songs.some((song) => song.running)) return;
  const song = songs.find((one) => one.state === "waiting");
  if (!song) return;
  try {
    await song.run();
  } catch {
    return askForKey(next);
  }
  next();
}

async function openSong(song) {
  if (song === open || (song && !["receiving", "done"].includes(song.state))) return;
  mixer?.close();
  mixer = open = null;
  if (song) {
    open = song;
    mixer = new Mixer(song);
    byId("mixer").replaceChildren(mixer.root);
  }
  arrange();
  await mixer?.open().catch((error) => complain(error.message));
}

function again(song) {
  song.reset();
  changed(song);
  next();
}

function remove(song) {
  if (song === open) openSong(null);
  rows.get(song).root.remove();
  rows.delete(song);
  arrange();
}

function arrange() {
  document.body.classList.toggle("empty", rows.size === 0);
  byId("queue").hidden = rows.size === 0;
  byId("mixer").hidden = !open;
  for (const [song, row] of rows) {
    if (song === open) row.title.setAttribute("aria-current", "true");
    else row.title.removeAttribute("aria-current");
  }
}

/** Says what keeps songs from being sent, with a button for the remedy if there is one. */
function complain(message, remedy = "", act = null) {
  if (byId("complaint").textContent !== message) byId("complaint").textContent = message; // said aloud once
  byId("remedy").textContent = remedy;
  byId("remedy").hidden = !act;
  byId("remedy").onclick = act;
}

let wrong = false;
function askForKey(then) {
  const dialog = byId("key");
  byId("key-wrong").hidden = !wrong;
  byId("key-input").value = "";
  complain(words.keyMissing, words.keyGive, () => dialog.showModal());
  dialog.showModal();
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    wrong = true;
    keepKey(byId("key-input").value.trim());
    dialog.close();
    complain("");
    then();
  };
}

function listen() {
  const input = byId("files");
  input.addEventListener("change", () => {
    addSongs([...input.files]);
    input.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", kind === "dragover");
      if (kind === "drop") addSongs([...event.dataTransfer.files]);
    });
  }
}

fillWords();
arrange();
listen();
await meet();
