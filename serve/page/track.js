// Under the video: a strip of its pictures, its prompts, its blocks. A slider, by blocks.

import { pictureOf } from "./api.js";
import { byId, el, fill, seconds } from "./dom.js";
import { seek } from "./stage.js";
import { blockAt, blocksOf, onChange, pixel, shown, state, total } from "./state.js";

const PICTURES = 12;
let drawn = ""; // what the strip shows now
let drawnCells = "";

export function startTrack() {
  const track = byId("track");
  track.addEventListener("pointerdown", (event) => {
    track.setPointerCapture(event.pointerId);
    to(event);
  });
  track.addEventListener("pointermove", (event) => {
    if (event.buttons) to(event);
  });
  track.addEventListener("keydown", onKey);
  onChange(draw);
}

function to(event) {
  const take = shown();
  if (!take) return;
  const box = byId("track").getBoundingClientRect();
  hold();
  seek(((event.clientX - box.left) / box.width) * total(take));
}

function hold() {
  state.playing = false;
  state.live = false;
}

function onKey(event) {
  const take = shown();
  if (!take) return;
  const block = blockAt(state.frame);
  const places = {
    ArrowLeft: pixel(Math.max(block - 1, 0) * state.choices.block),
    ArrowDown: pixel(Math.max(block - 1, 0) * state.choices.block),
    ArrowRight: pixel((block + 1) * state.choices.block),
    ArrowUp: pixel((block + 1) * state.choices.block),
    Home: 0,
    End: take.there - 1,
  };
  if (!(event.key in places)) return;
  event.preventDefault();
  hold();
  seek(places[event.key]);
}

function draw() {
  const take = shown();
  byId("track").hidden = !take;
  if (!take) return;
  const whole = total(take);
  drawStrip(take, whole);
  drawSegments(take);
  drawCells(take);
  byId("head").style.left = `calc(${(100 * state.frame) / whole}% - 1px)`;
  const track = byId("track");
  track.setAttribute("aria-valuemax", Math.max(take.blocks - 1, 0));
  track.setAttribute("aria-valuenow", blockAt(state.frame));
  track.setAttribute("aria-valuetext", `block ${blockAt(state.frame)}, ${seconds(state.frame / take.fps)}`);
}

function drawStrip(take, whole) {
  const frames = [];
  for (let place = 0; place < PICTURES; place += 1) frames.push(Math.floor(((place + 0.5) / PICTURES) * whole));
  const count = frames.filter((frame) => frame < take.there).length;
  const now = `${take.number} ${count}`;
  if (now === drawn) return;
  const strip = byId("strip");
  if (!drawn.startsWith(`${take.number} `)) fill(strip, ...frames.map(() => el("div")));
  drawn = now;
  frames.slice(0, count).forEach((frame, place) => {
    const box = strip.children[place];
    if (!box.firstChild) box.append(el("img", { src: pictureOf(take.number, frame), alt: "", draggable: false }));
  });
}

function drawSegments(take) {
  const segments = take.segments;
  const parts = segments.map((segment, place) => {
    const end = place + 1 < segments.length ? segments[place + 1].start : take.frames;
    const style = { left: `${(100 * segment.start) / take.frames}%`, width: `${(100 * (end - segment.start)) / take.frames}%` };
    const rule = segment.how ? `${segment.how}: ` : "";
    return el("span", { style, title: `${rule}${segment.prompt}` }, segment.prompt);
  });
  fill(byId("segments"), ...parts);
}

function drawCells(take) {
  const count = Math.ceil(take.frames / state.choices.block);
  const chosen = blockAt(state.frame);
  const making = take.making ?? -1;
  const now = [take.number, take.blocks, making, chosen].join(" ");
  if (now === drawnCells) return;
  drawnCells = now;
  const cells = [];
  for (let number = 0; number < count; number += 1) {
    const names = [];
    if (number < take.blocks) names.push("there");
    else if (number === making) names.push("now");
    if (number === chosen) names.push("chosen");
    cells.push(el("i", { className: names.join(" ") }));
  }
  fill(byId("cells"), ...cells);
}

/** The latent frame with which the chosen block begins, where it is there. */
export function chosenBlock() {
  const block = blocksOf(state.shown)[blockAt(state.frame)];
  return block || null;
}
