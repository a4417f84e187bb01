// The video, or two side by side, and the clock that plays them.

import { byId, el, fill, seconds } from "./dom.js";
import { Player } from "./player.js";
import { beside, blocksOf, changed, isMaking, onChange, shown, state, total } from "./state.js";

let players = [];
let last = 0; // time of the last picture in ms
let due = 0; // fraction of a frame that is due

/** Frames that can be shown, of all that are looked at. */
export function there() {
  const counts = [shown(), beside()].filter(Boolean).map((take) => take.there);
  return counts.length ? Math.min(...counts) : 0;
}

/** Show a frame. */
export function seek(frame) {
  const end = Math.max(there() - 1, 0);
  state.frame = Math.min(Math.max(Math.round(frame), 0), end);
  due = 0;
  changed();
}

export function startStage() {
  byId("play").addEventListener("click", togglePlay);
  byId("live").addEventListener("click", toggleLive);
  onChange(arrange);
  onChange(describe);
  requestAnimationFrame(tick);
}

export function togglePlay() {
  state.playing = !state.playing;
  if (!state.playing) state.live = false;
  else if (state.frame >= there() - 1 && !isMaking(shown())) state.frame = 0;
  changed();
}

export function toggleLive() {
  state.live = !state.live;
  state.playing = state.playing || state.live;
  changed();
}

function tick(now) {
  const passed = Math.min((now - last) / 1000, 0.25);
  last = now;
  const end = there() - 1;
  if (state.playing && state.frame < end) {
    due += passed * state.choices.fps * pace(end - state.frame);
    const step = Math.floor(due);
    due -= step;
    // A frame that is not here yet is waited for.
    const next = Math.min(state.frame + step, end);
    if (step && players.every((player) => player.draw(next))) {
      state.frame = next;
      changed();
    }
  }
  for (const player of players) player.draw(state.frame);
  requestAnimationFrame(tick);
}

/** How fast to play what is being made: so that about a block stays ahead. */
function pace(ahead) {
  if (!state.live || !isMaking(shown())) return 1;
  const block = state.choices.block * state.choices.temporal;
  return Math.min(Math.max(ahead / block, 0.6), 6);
}

/** One player for each take that is looked at. */
function arrange() {
  const takes = [shown(), beside()].filter(Boolean);
  const same = takes.length === players.length && takes.every((take, place) => take.number === players[place].take);
  if (same && (takes.length || byId("stage").children.length)) return;
  players.forEach((player) => player.close());
  players = [];
  const figures = takes.map((take) => {
    const label = `Video of take ${take.number}, ${take.request.method}`;
    const canvas = el("canvas", { width: state.choices.width, height: state.choices.height, role: "img", "aria-label": label });
    players.push(new Player(take.number, canvas));
    const words = `take ${take.number} · ${take.request.method}`;
    return el("figure", {}, canvas, el("figcaption", {}, takes.length > 1 ? words : ""));
  });
  const empty = el("p", { className: "empty" }, "Describe a video, and watch it while it is made.");
  fill(byId("stage"), ...(figures.length ? figures : [empty]));
}

function describe() {
  const take = shown();
  byId("transport").hidden = !take;
  if (!take) return;
  const fps = take.fps;
  byId("play").textContent = state.playing ? "Hold" : "Play";
  byId("play").setAttribute("aria-pressed", state.playing);
  byId("live").hidden = !isMaking(take);
  byId("live").setAttribute("aria-pressed", state.live);
  byId("time").textContent = `${seconds(state.frame / fps)} of ${seconds(total(take) / fps)}`;
  byId("differ").textContent = beside() ? difference(take, beside()) : "";
}

/** Where two takes first differ, told by the digests of their latents. */
function difference(one, other) {
  const mine = blocksOf(one.number);
  const theirs = blocksOf(other.number);
  const count = Math.min(mine.length, theirs.length);
  for (let place = 0; place < count; place += 1) {
    if (mine[place].latents !== theirs[place].latents) return `first differ at ${seconds(mine[place].first / one.fps)}`;
  }
  return count ? "the same so far" : "";
}
