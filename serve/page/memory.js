// What the model remembers: the context of a block from its plan, what was retrieved, where it is kept.

import { pictureOf } from "./api.js";
import { byId, bytes, duration, el, fill, seconds } from "./dom.js";
import { beside, blockAt, blocksOf, isMaking, onChange, pixel, shown, state } from "./state.js";

let drawn = "";

export function startMemory() {
  onChange(draw);
}

function draw() {
  const takes = [shown(), beside()].filter(Boolean);
  const now = takes.map((take) => [take.number, take.blocks, take.making, take.state, chosen(take).label].join()).join(";");
  const sums = blockAt(state.frame);
  if (`${now} ${sums}` === drawn) return;
  drawn = `${now} ${sums}`;
  if (!takes.length) {
    fill(byId("memory"), el("p", { className: "soft" }, "What each block attends to is shown here."));
    return;
  }
  const made = takes.map((take) => panels(take, takes.length > 1));
  fill(byId("memory"), ...made.map(([context]) => context), ...made.map(([, over]) => over)); // contexts first
}

/** The block that is shown: the one in the making while it is followed, else the one of the picture. */
function chosen(take) {
  const block = blocksOf(take.number)[blockAt(state.frame)];
  if (state.live && isMaking(take) && take.plan && take.plan.length) {
    const done = blocksOf(take.number);
    const retrieved = (take.plan || []).filter((piece) => piece[0] === "retrieved").map((piece) => [piece[1], null]);
    const last = done[done.length - 1];
    return { label: `block ${take.making}, in the making`, pieces: take.plan, retrieved, tiers: last ? last.tier_bytes : {} };
  }
  if (!block) return { label: "", pieces: [], retrieved: [], tiers: {} };
  return { label: `block ${block.block}`, pieces: block.pieces, retrieved: block.retrieved, tiers: block.tier_bytes };
}

function panels(take, isOneOfTwo) {
  const view = chosen(take);
  const name = `take ${take.number} · ${take.request.method}`;
  const heading = isOneOfTwo ? `${name} · ${view.label}` : view.label;
  const map = el("canvas", { width: 560, height: 400, role: "img", "aria-label": describeMap(take) });
  const curve = el("canvas", { width: 560, height: 120, role: "img", "aria-label": describeDrift(take) });
  const made = [
    el("div", { className: "panel" }, el("h3", {}, heading || "no block yet"), boxes(view.pieces), legend(view.pieces), thumbs(take, view)),
    el("div", { className: "panel" }, el("h3", {}, isOneOfTwo ? `${name}: retrieved over time` : "Retrieved over time"), map, el("h3", {}, "Drift so far"), curve, numbers(take, view)),
  ];
  drawMap(map, take);
  drawDrift(curve, take);
  return made;
}

function boxes(pieces) {
  const shownPositions = pieces.length <= 24;
  const words = pieces.map(([role, frame, position]) => `${role} ${nameOf(frame)} at position ${position}`).join(", ");
  const parts = pieces.map(([role, frame, position, pool]) => {
    const place = position < 0 ? "the positions of what it is made of" : `temporal position ${position}`;
    const title = `${role}: ${nameOf(frame)}, ${place}`;
    const box = el("i", { className: role, title: pool > 1 ? `${title}, pooled ${pool} x ${pool}` : title });
    if (pool > 1) box.style.flexGrow = 1 / (pool * pool);
    if (shownPositions && position >= 0) box.append(el("span", {}, String(position)));
    return box;
  });
  return el("div", { className: "boxes", role: "img", "aria-label": `context: ${words || "nothing"}` }, ...parts);
}

/** A piece's frame for a person; negative ones are merged of many frames. */
function nameOf(frame) {
  if (frame < 0) return `merged of frames that left, number ${-frame}`;
  return `latent frame ${frame} (${seconds(pixel(frame) / state.choices.fps)})`;
}

function legend(pieces) {
  const counts = new Map();
  for (const [role] of pieces) counts.set(role, (counts.get(role) || 0) + 1);
  const parts = [...counts].map(([role, count]) => el("span", {}, el("i", { className: role }), `${role} ${count}`));
  return el("div", { className: "legend" }, ...parts);
}

function thumbs(take, view) {
  if (!view.retrieved.length) return null;
  const parts = view.retrieved.slice(0, 12).map(([frame, similarity]) => {
    const time = seconds(pixel(frame) / take.fps);
    const words = similarity === null ? time : `${time} · ${similarity.toFixed(3)}`;
    const picture = frame === 0 ? 0 : pixel(frame) + 1;
    return el("figure", {}, el("img", { src: pictureOf(take.number, picture), alt: `retrieved from ${time}` }), el("figcaption", {}, words));
  });
  return el("div", {}, el("h3", {}, "Retrieved: time and similarity"), el("div", { className: "thumbs" }, ...parts));
}

function numbers(take, view) {
  const rows = [];
  const held = Object.entries(view.tiers).filter(([, value]) => value > 0);
  for (const [tier, value] of held) rows.push([`kept on ${tier}`, bytes(value)]);
  if (!held.length) rows.push(["kept outside the window", "nothing"]);
  if (take.seconds) {
    const frames = state.choices.block * state.choices.temporal;
    rows.push(["frames a second", (frames / take.seconds).toFixed(1)]);
  }
  if (take.left) rows.push(["time left", duration(take.left)]);
  const drift = state.drift.get(take.number) || [];
  if (drift.length) rows.push(["drift", drift[drift.length - 1].toFixed(2)]);
  return el("dl", { className: "numbers" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function describeMap(take) {
  const count = blocksOf(take.number).reduce((sum, block) => sum + block.retrieved.length, 0);
  return `map of what blocks retrieved: ${count} frames over ${take.blocks} blocks`;
}

function describeDrift(take) {
  const drift = state.drift.get(take.number) || [];
  return drift.length ? `drift from the first seconds: now ${drift[drift.length - 1].toFixed(2)}` : "drift: nothing yet";
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
}

/** Block against retrieved frame, as in the plot beside a video. */
function drawMap(canvas, take) {
  const pen = canvas.getContext("2d");
  const x = (frame) => 30 + (frame / take.frames) * (canvas.width - 40);
  const y = (frame) => canvas.height - 24 - (frame / take.frames) * (canvas.height - 34);
  pen.strokeStyle = colour("line");
  pen.lineWidth = 2;
  pen.beginPath();
  pen.moveTo(x(0), y(0));
  pen.lineTo(x(take.frames), y(take.frames));
  pen.stroke();
  for (const block of blocksOf(take.number)) {
    for (const [frame, similarity] of block.retrieved) {
      pen.fillStyle = colour("retrieved");
      pen.globalAlpha = 0.25 + 0.75 * Math.min(Math.max((similarity - 0.5) * 2, 0), 1);
      pen.beginPath();
      pen.arc(x(block.start), y(frame), 5, 0, 7);
      pen.fill();
    }
  }
  pen.globalAlpha = 1;
  pen.fillStyle = colour("soft");
  pen.font = "20px system-ui";
  pen.fillText("block →", canvas.width - 90, canvas.height - 4);
  pen.fillText("↑ retrieved frame", 4, 22);
  const latent = blockAt(state.frame) * state.choices.block;
  pen.strokeStyle = colour("ink");
  pen.globalAlpha = 0.5;
  pen.beginPath();
  pen.moveTo(x(latent), 30);
  pen.lineTo(x(latent), canvas.height - 24);
  pen.stroke();
}

function drawDrift(canvas, take) {
  const values = state.drift.get(take.number) || [];
  const pen = canvas.getContext("2d");
  const blocks = Math.ceil(take.frames / state.choices.block);
  const most = Math.max(1.2, ...values);
  const x = (block) => (block / Math.max(blocks - 1, 1)) * canvas.width;
  const y = (value) => canvas.height - 4 - (value / most) * (canvas.height - 10);
  pen.strokeStyle = colour("line");
  pen.lineWidth = 2;
  pen.setLineDash([6, 6]);
  pen.beginPath();
  pen.moveTo(0, y(1));
  pen.lineTo(canvas.width, y(1));
  pen.stroke();
  pen.setLineDash([]);
  pen.strokeStyle = colour("accent");
  pen.lineWidth = 3;
  pen.beginPath();
  values.forEach((value, block) => (block ? pen.lineTo(x(block), y(value)) : pen.moveTo(x(block), y(value))));
  pen.stroke();
}
