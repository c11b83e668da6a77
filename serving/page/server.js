/** The separation server behind this page: what it offers, and a song's way there and back. */
import { words } from "./words.js";

const ADDRESS = "predictions/stemwright";
const KEY = "stemwright-api-key";
const TYPES = { wav: "audio/wav", float: "audio/wav", flac: "audio/flac", mp3: "audio/mpeg", ogg: "audio/ogg" };
const LOOK_EVERY_MS = 200;
const RETRY_AFTER_S = 5;

/** The server's own sentence on why there are no stems; status 0 if it could not be asked, seconds if it may be asked again. */
export class Refusal extends Error {
  constructor(status, message, retryAfterS = 0) {
    super(message || words.silent[status] || words.noReason(status));
    Object.assign(this, { status, retryAfterS });
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What the model gives: `{ stems, own, qualities, formats }`; `own` are the stems of a song that asks for none by name. */
export async function describe() {
  const response = await ask(null, { describe: "true", "Content-Type": "application/octet-stream" });
  const { stems, offered = stems, qualities = ["fast"], formats = ["audio/wav"] } = await response.json();
  const names = Object.keys(TYPES).filter((name) => formats.includes(TYPES[name]));
  return { stems: offered, own: stems, qualities, formats: names };
}

/** The answer to a song, a zip of stems that still comes. `onSent` is called with the bytes that are through. */
export async function separate(file, wishes, signal, onSent) {
  const start = file.size ? file.slice(0, 1) : file; // one that is gone has no bytes, too
  await start.arrayBuffer().catch(() => {
    throw new Refusal(0, words.unreadable);
  });
  const id = crypto.randomUUID();
  const headers = {
    Accept: `application/zip, ${TYPES[wishes.format]}`,
    "Content-Type": "application/octet-stream",
    "Content-Disposition": `attachment; filename*=UTF-8''${encodeURIComponent(file.name)}`,
    "X-Stems": wishes.stems.join(","),
    "X-Quality": wishes.quality,
    "X-Request-Id": id,
  };
  if (wishes.format === "float") headers["X-Bit-Depth"] = "float";
  if (streamsUp()) return ask(counted(file, onSent), headers, signal, { duplex: "half" });
  const stop = /^http\/1/.test(protocol()) ? askPageServer(id, onSent) : () => {};
  try {
    return await ask(file, headers, signal);
  } finally {
    stop();
  }
}

async function ask(body, headers, signal, more = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-Api-Key"] = key;
  let response;
  try {
    response = await fetch(ADDRESS, { method: "POST", body, headers, signal, cache: "no-store", ...more });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0);
  }
  if (response.ok) return response;
  const { error, message } = await response.json().catch(() => ({}));
  const isTorchServes = response.status === 503 && !error; // its queue is full; its words are for operators
  const after = response.headers.get("Retry-After") ?? (isTorchServes ? RETRY_AFTER_S : 0);
  throw new Refusal(response.status, isTorchServes ? "" : message, Number(after));
}

/** How the page itself came, and so how its requests go. */
function protocol() {
  return performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "";
}

/** True where this browser sends a body piece by piece, which needs HTTP/2: only there it can count what is sent. */
function streamsUp() {
  if (!/^h[23]/.test(protocol())) return false;
  let asked = false;
  const request = new Request(ADDRESS, {
    method: "POST",
    body: new ReadableStream(),
    get duplex() {
      asked = true;
      return "half";
    },
  });
  return asked && !request.headers.has("Content-Type");
}

function counted(file, onSent) {
  let sent = 0;
  const count = (piece, controller) => {
    sent += piece.length;
    onSent(sent);
    controller.enqueue(piece);
  };
  return file.stream().pipeThrough(new TransformStream({ transform: count }));
}

/** `stemwright page` speaks HTTP/1.1 and lies on this machine: it counts what it has sent on to the server. */
function askPageServer(id, onSent) {
  let waiting = true;
  const timer = setInterval(async () => {
    const answer = await fetch(`sent/${id}`).catch(() => null);
    if (!answer?.ok) return clearInterval(timer);
    const { sent_bytes: sent } = await answer.json();
    if (waiting && sent) onSent(sent); // an answer may be slower than the song's
  }, LOOK_EVERY_MS);
  return () => {
    waiting = false;
    clearInterval(timer);
  };
}
