// The tree of takes: each below the one that it was forked from.

import { ask, pictureOf } from "./api.js";
import { byId, duration, el, fill } from "./dom.js";
import { beside, onChange, show, shown, state } from "./state.js";

let drawn = "";
let problem = null;

export function startTakes(guard) {
  problem = guard;
  onChange(draw);
}

function draw() {
  const takes = [...state.takes.values()];
  const now = JSON.stringify(takes.map((take) => [take.number, take.title, words(take), take.blocks, take.files.length]));
  const all = `${now} ${state.shown} ${state.beside} ${[...state.reports]}`;
  if (all === drawn) return;
  drawn = all;
  const focused = document.activeElement?.dataset?.focus;
  const rows = [];
  const add = (parent, depth) => {
    const children = takes.filter((take) => (take.request.parent ?? null) === parent || (parent === null && orphan(take)));
    for (const take of children.sort((one, other) => other.number - one.number)) {
      rows.push(row(take, depth));
      add(take.number, depth + 1);
    }
  };
  add(null, 0);
  fill(byId("takes"), ...(rows.length ? rows : [el("li", { className: "soft" }, "none yet")]));
  if (focused) document.querySelector(`[data-focus="${focused}"]`)?.focus();
}

function orphan(take) {
  return take.request.parent !== null && !state.takes.has(take.request.parent);
}

/** The state of a take for a person. */
function words(take) {
  if (take.state === "waiting") {
    const wait = take.wait ? `, in ${duration(take.wait)}` : "";
    return take.place ? `waits, ${take.place} before it${wait}` : "about to begin";
  }
  if (take.state === "making") {
    if (take.paused) return "paused";
    return take.left ? `being made, ${duration(take.left)} left` : "being made";
  }
  return take.state === "failed" ? `failed: ${take.error}` : take.state;
}

function row(take, depth) {
  const first = take.there ? el("img", { src: pictureOf(take.number, 0), alt: "" }) : el("div", { className: "blank" });
  const share = (100 * take.blocks) / Math.ceil(take.frames / state.choices.block);
  const bar = take.state === "done" ? null : el("div", { className: "bar" }, el("i", { style: { width: `${share}%` } }));
  const title = take.title || take.segments[0].prompt || "a fork";
  const about = el("div", { className: take.state === "failed" ? "failed" : "", title: take.error }, `${take.request.method} · ${words(take)}`);
  const button = el(
    "button",
    { className: "take", type: "button", "aria-current": take.number === state.shown, title, onclick: () => show(take.number) },
    first,
    el("div", { className: "words" }, el("div", {}, `${take.number} · ${title}`), about, bar),
  );
  button.dataset.focus = `take-${take.number}`;
  const item = el("li", { style: { marginLeft: `${Math.min(depth, 6) * 14}px` } }, button);
  if (take.number === state.shown || take.number === state.beside) item.append(more(take));
  return item;
}

/** What can be done with a take that is looked at. */
function more(take) {
  const parts = [];
  const link = (text, action, label) => {
    const made = el("button", { type: "button", className: "link", onclick: () => problem(action), "aria-label": label }, text);
    made.dataset.focus = `${text}-${take.number}`;
    return made;
  };
  parts.push(link("rename", () => rename(take), `rename take ${take.number}`));
  if (["paused", "stopped", "failed"].includes(take.state)) {
    parts.push(link("go on", () => ask("POST", `api/takes/${take.number}/resume`), `go on with take ${take.number}`));
  }
  if (!["waiting", "making"].includes(take.state)) {
    parts.push(link("delete", () => remove(take), `delete take ${take.number}`));
  }
  const other = take.number === state.shown ? beside() : shown();
  if (!other) parts.push(compare(take));
  return el("div", { className: "more" }, ...parts);
}

async function rename(take) {
  const title = window.prompt("Name of the take", take.title);
  if (title !== null) await ask("PATCH", `api/takes/${take.number}`, { title });
}

async function remove(take) {
  if (window.confirm(`Delete take ${take.number} and its files?`)) await ask("DELETE", `api/takes/${take.number}`);
}

/** A choice of the take to look at beside this one. */
function compare(take) {
  const others = [...state.takes.values()].filter((other) => other.number !== take.number && other.there);
  if (!others.length) return null;
  const select = el("select", { "aria-label": `compare take ${take.number} with`, className: "compare" });
  fill(select, el("option", { value: "" }, "compare with …"), ...others.map((other) => el("option", { value: other.number }, `take ${other.number}`)));
  select.addEventListener("change", () => select.value && show(take.number, Number(select.value)));
  select.dataset.focus = `compare-${take.number}`;
  return select;
}
