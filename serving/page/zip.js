/**
 * Reads a zip of uncompressed members while it comes. A member's size stands after its bytes (APPNOTE 4.3.9), so the end is
 * where a descriptor stands that names exactly the bytes seen so far.
 */
import { words } from "./words.js";

const MEMBER = 0x04034b50;
const DESCRIPTOR = 0x08074b50;
const DIRECTORY = 0x02014b50;
const HEAD_BYTES = 30;
const FLAG_SIZE_AFTER = 8;

/** Calls `begin(name)`, `data(bytes)` and `end()` for each member in turn. */
export class ZipReader {
  constructor({ begin, data, end }) {
    Object.assign(this, { begin, data, end });
    this.held = new Uint8Array(0);
    this.inMember = false;
    this.atDirectory = false;
    this.position = 0; // of the next byte that is not held
    this.memberStart = 0;
  }

  push(bytes) {
    if (this.atDirectory) return;
    this.held = joined(this.held, bytes);
    while (this.inMember ? this.readData() : this.readHead());
  }

  /** Throws unless every member came whole. */
  finish() {
    if (!this.atDirectory) throw new Error(this.position || this.held.length ? words.brokeOff : words.noZip);
  }

  readHead() {
    if (this.held.length < HEAD_BYTES || this.atDirectory) return false;
    const head = view(this.held);
    const signature = head.getUint32(0, true);
    if (signature === DIRECTORY) {
      this.atDirectory = true;
      return false;
    }
    if (signature !== MEMBER || head.getUint16(8, true) !== 0) throw new Error(words.noZip);
    const nameBytes = head.getUint16(26, true);
    const extraBytes = head.getUint16(28, true);
    const bytes = HEAD_BYTES + nameBytes + extraBytes;
    if (this.held.length < bytes) return false;
    const name = new TextDecoder().decode(this.held.subarray(HEAD_BYTES, HEAD_BYTES + nameBytes));
    const hasZip64 = extraBytes >= 4 && head.getUint16(HEAD_BYTES + nameBytes, true) === 1;
    const sizeKnown = !(head.getUint16(6, true) & FLAG_SIZE_AFTER);
    this.size = sizeKnown ? head.getUint32(18, true) : null;
    this.descriptorBytes = sizeKnown ? 0 : hasZip64 ? 24 : 16;
    this.take(bytes);
    this.memberStart = this.position;
    this.inMember = true;
    this.begin(name);
    return true;
  }

  /** Hands on what is surely data; true when the member has ended. */
  readData() {
    const done = this.position - this.memberStart;
    const dataBytes = this.size === null ? this.findDescriptor(done) : Math.min(this.size - done, this.held.length);
    const ended = this.size === null ? dataBytes !== null : done + dataBytes === this.size;
    const sure = dataBytes ?? Math.max(0, this.held.length - this.descriptorBytes + 1);
    if (sure) this.data(this.take(sure));
    if (!ended) return false;
    this.memberEnd = this.position;
    this.take(this.descriptorBytes);
    this.inMember = false;
    this.end();
    return true;
  }

  /** Bytes of data before the descriptor, null where it has not come yet. */
  findDescriptor(done) {
    const held = this.held;
    const numbers = view(held);
    for (let at = held.indexOf(0x50); at >= 0; at = held.indexOf(0x50, at + 1)) {
      if (at + this.descriptorBytes > held.length) return null;
      if (numbers.getUint32(at, true) !== DESCRIPTOR) continue;
      const size = this.descriptorBytes === 24 ? Number(numbers.getBigUint64(at + 8, true)) : numbers.getUint32(at + 8, true);
      if (size === done + at) return at;
    }
    return null;
  }

  take(bytes) {
    const taken = this.held.subarray(0, bytes);
    this.held = this.held.subarray(bytes);
    this.position += bytes;
    return taken;
  }
}

function joined(first, second) {
  if (!first.length) return second;
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

function view(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
