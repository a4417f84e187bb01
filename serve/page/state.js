// What the page knows: the choices, the takes, their blocks, and what is looked at.

import { ask } from "./api.js";

export const state = {
  choices: null, // what can be asked for
  takes: new Map(), // number -> take
  blocks: new Map(), // number -> its blocks in order
  drift: new Map(), // number -> drift of each block
  shown: null, // number of the take that is looked at
  beside: null, // number of the one beside it
  frame: 0, // pixel frame that is shown
  playing: true,
  live: true, // follow what is being made
  reports: new Map(), // "1/2" -> state of the report
};

const listeners = [];

/** Call `listener` whenever something has changed. */
export function onChange(listener) {
  listeners.push(listener);
}

let planned = false;

/** Something has changed: all is drawn anew, once before the next picture. */
export function changed() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    for (const listener of listeners) listener();
  });
}

export function shown() {
  return state.takes.get(state.shown) || null;
}

export function beside() {
  return state.takes.get(state.beside) || null;
}

export function blocksOf(number) {
  return state.blocks.get(number) || [];
}

/** Look at a take, and at its partner where it was made beside one. */
export function show(number, other = null) {
  const take = state.takes.get(number);
  state.shown = number;
  state.beside = other;
  if (take && other === null) {
    const partner = [...state.takes.values()].find((one) => one.request.pair === number);
    if (take.request.pair !== null && state.takes.has(take.request.pair)) {
      state.shown = take.request.pair;
      state.beside = number;
    } else if (partner) {
      state.beside = partner.number;
    }
  }
  state.frame = 0;
  state.live = isMaking(take);
  state.playing = true;
  if (take) history.replaceState(null, "", `#${number}`);
  changed();
}

/** The take that the address names, as soon as it is there. */
export function named() {
  const number = Number(location.hash.slice(1));
  return state.takes.has(number) ? number : null;
}

export function isMaking(take) {
  return Boolean(take) && (take.state === "making" || take.state === "waiting");
}

/** First pixel frame of a latent frame. */
export function pixel(latent) {
  return latent === 0 ? 0 : state.choices.temporal * (latent - 1) + 1;
}

/** Pixel frames of a take when it is whole. */
export function total(take) {
  return 1 + state.choices.temporal * (take.frames - 1);
}

/** Number of the block that holds a pixel frame. */
export function blockAt(frame) {
  const latent = frame === 0 ? 0 : Math.floor((frame - 1) / state.choices.temporal) + 1;
  return Math.floor(latent / state.choices.block);
}

const asking = new Set();

/** Fetch the blocks of a take that are not here yet. */
export async function fetchBlocks(number) {
  const take = state.takes.get(number);
  if (!take || asking.has(number)) return;
  const known = blocksOf(number);
  if (known.length >= take.blocks) return;
  asking.add(number);
  try {
    const found = await ask("GET", `api/takes/${number}/blocks?from=${known.length}`);
    state.blocks.set(number, [...known, ...found.blocks]);
    state.drift.set(number, found.drift);
  } finally {
    asking.delete(number);
  }
  changed();
}
