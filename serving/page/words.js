/** Every English text of the page. Another language is another file of these names. */
export const words = {
  title: "Stemwright",
  tagline: "Drop a song, hear its stems.",
  contract: "HTTP API",
  model: (stems) => `This model gives ${list(stems)}.`,
  noModel: "The server does not answer.",

  choose: "Choose songs",
  drop: "or drop them here",
  dropHint: "WAV, FLAC, MP3, M4A, Ogg and most other audio files. They go to this server and nowhere else.",
  addMore: "Add songs",
  stems: "Stems",
  quality: "Quality",
  format: "Format",
  qualities: { fast: "Fast", best: "Best, 5 to 6 × the time" },
  formats: { wav: "WAV", float: "WAV, 32-bit float", flac: "FLAC", mp3: "MP3", ogg: "Ogg Vorbis" },
  noStem: "Choose at least one stem.",

  songs: "Songs",
  cancel: "Cancel",
  cancelSong: (name) => `Cancel ${name}`,
  remove: "Remove",
  removeSong: (name) => `Remove ${name}`,
  again: "Try again",
  openSong: (name) => `Open ${name}`,
  waiting: "Waits for its turn",
  sending: (sent, size) => `Sending ${megabytes(sent)} of ${megabytes(size)}`,
  sendingAll: (size) => `Sending ${megabytes(size)}`,
  working: "Sent. The server reads the song",
  receiving: (done, length) => `${clock(done)} of ${clock(length)} separated`,
  receivingStem: (stem, number, count) => `Receiving ${stem}, ${number} of ${count}`,
  receivingBytes: (bytes) => `${megabytes(bytes)} received`,
  done: (length, count) => `${clock(length)} · ${count} ${count === 1 ? "stem" : "stems"}`,
  cancelled: "Cancelled",
  nextTry: (message, seconds) => `${message.replace(/\.$/, "")}. Next try in ${seconds} s`,

  silent: {
    0: "The server cannot be reached: check that it runs, then try again.",
    413: "The file is larger than this server takes: send FLAC or MP3, or the song in parts.",
    503: "The server is busy.",
  },
  noReason: (status) => `The server answered ${status} without a reason: see its log.`,
  unreadable: "The file cannot be read: a folder, or gone since it was chosen. Choose a file.",
  brokeOff: "The connection broke off before the last stem: try again.",
  noZip: "The answer is no zip of stems: check that the address leads to Stemwright.",
  noRate: (hertz) => `Browsers play no sound of ${hertz} Hz: resample the song to 8,000 Hz or more.`,
  noAudio: (name) => `This browser cannot play ${name}: choose WAV.`,

  mixer: "Mixer",
  play: "Play",
  pause: "Pause",
  toStart: "To the start",
  position: "Position",
  positionText: (at, length) => `${clock(at)} of ${clock(length)}`,
  mixture: "Mixture",
  mixtureHint: "A/B: hear the mixture, the sum of all stems (A)",
  loop: "Loop",
  loopHint: "Repeat the region (L). Shift and drag over a lane marks one.",
  loopStart: "Loop from here",
  loopEnd: "Loop to here",
  pitch: "Key",
  pitchText: (semitones) => (semitones === 0 ? "Original" : `${semitones > 0 ? "+" : "−"}${Math.abs(semitones)} st`),
  pitchUp: "A semitone up",
  pitchDown: "A semitone down",
  downloadMix: "Download mix",
  downloadMixHint: "The mix as it is set, as a 24-bit WAV",
  mixing: (percent) => `Mixing ${percent} %`,
  turnedDown: (decibels) => `The mix went over full scale and was turned down by ${decibels} dB.`,
  downloadZip: "Download zip",
  mute: (stem) => `Mute ${stem}`,
  solo: (stem) => `Solo ${stem}`,
  level: (stem) => `Level of ${stem}`,
  levelText: (level) => `${Math.round(level * 100)} %`,
  spectrogram: (stem) => `Spectrogram of ${stem}`,
  download: (stem) => `Download ${stem}`,
  lanePending: "On its way",
  peak: (peak) => (peak > 0 ? `peak ${decibels(peak)} dB` : "silent"),
  clipped: (count) => `${count.toLocaleString("en")} samples clipped`,
  clippedHint: "This stem leaves full scale. WAV, 32-bit float keeps all of it.",
  note: (note) => `Note: ${note}.`,
  keys: "Keyboard",
  keyList: [
    ["Space", "play or pause"],
    ["← →", "5 s back or on, with Shift 1 s"],
    ["Home End", "start, end"],
    ["M then 1–9", "mute a stem"],
    ["S then 1–9", "solo a stem"],
    ["A", "mixture or stems"],
    ["[ ]", "loop from here, to here"],
    ["L", "loop on or off"],
    ["+ −", "a semitone up or down"],
  ],

  keyTitle: "API key",
  keyHint: "This server asks for a key. It is kept until this tab closes.",
  keyMissing: "This server gives stems only for an API key.",
  keyGive: "Give the key",
  keyWrong: "The server does not know this key.",
  keySend: "Continue",
};

export function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export function capital(word) {
  return word.charAt(0).toUpperCase() + word.slice(1);
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

function decibels(peak) {
  const tenths = Math.round(200 * Math.log10(peak));
  return `${tenths > 0 ? "+" : tenths < 0 ? "−" : ""}${Math.abs(tenths / 10).toFixed(1)}`;
}

function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
