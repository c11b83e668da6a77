/** The pitch shifter in the audio thread. A message is the ratio of the new frequencies to the old. */
import { PitchShifter } from "./pitch.js";

class Pitch extends AudioWorkletProcessor {
  constructor() {
    super();
    this.shifter = new PitchShifter();
    this.port.onmessage = (message) => {
      this.shifter.ratio = message.data;
    };
  }

  process([[left, right]], [[leftOut, rightOut]]) {
    const silence = new Float32Array(leftOut.length);
    this.shifter.process(left ?? silence, right ?? left ?? silence, leftOut, rightOut);
    return true;
  }
}

registerProcessor("pitch", Pitch);
