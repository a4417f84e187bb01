// Shows a take's frames on a canvas. Blocks are fetched when they are needed; a few stay decoded.

import { pictures } from "./api.js";
import { blockAt, pixel, state } from "./state.js";

const KEPT_PIXELS = 60e6; // of decoded frames, a take

export class Player {
  constructor(take, canvas) {
    this.take = take;
    this.canvas = canvas;
    this.blocks = new Map(); // number -> decoded frames, or a promise of them
    this.pixels = 0;
    this.drawn = -1;
  }

  /** Draw a frame as soon as it is there; whether it is. */
  draw(frame) {
    const number = blockAt(frame);
    const block = this.fetch(number);
    this.fetch(number + 1);
    if (!Array.isArray(block)) return false;
    const picture = block[frame - pixel(number * state.choices.block)];
    if (!picture) return false;
    if (this.drawn === frame) return true;
    if (this.canvas.width !== picture.width) this.canvas.width = picture.width;
    if (this.canvas.height !== picture.height) this.canvas.height = picture.height;
    this.canvas.getContext("2d").drawImage(picture, 0, 0);
    this.canvas.dataset.frame = frame;
    this.drawn = frame;
    return true;
  }

  /** The decoded frames of a block; undefined as long as they are not there. */
  fetch(number) {
    const found = this.blocks.get(number);
    const take = state.takes.get(this.take);
    if (found !== undefined || !take || number >= take.blocks) return found;
    this.blocks.set(number, this.decode(number));
    return undefined;
  }

  async decode(number) {
    try {
      const found = await pictures(this.take, number);
      if (found === null) throw new Error("not there yet");
      const decoded = await Promise.all(found.map((blob) => createImageBitmap(blob)));
      this.blocks.delete(number); // now the youngest
      this.blocks.set(number, decoded);
      this.pixels += sizeOf(decoded);
      this.forget(number);
    } catch {
      setTimeout(() => this.blocks.delete(number), 300); // to be asked for again
    }
  }

  forget(number) {
    for (const [other, decoded] of this.blocks) {
      if (this.pixels <= KEPT_PIXELS) return;
      if (other === number || other === number + 1 || !Array.isArray(decoded)) continue;
      this.pixels -= sizeOf(decoded);
      decoded.forEach((picture) => picture.close());
      this.blocks.delete(other);
    }
  }

  /** Let all decoded frames go. */
  close() {
    for (const decoded of this.blocks.values()) {
      if (Array.isArray(decoded)) decoded.forEach((picture) => picture.close());
    }
    this.blocks.clear();
  }
}

function sizeOf(decoded) {
  return decoded.reduce((sum, picture) => sum + picture.width * picture.height, 0);
}
