// Buttons for the take that is looked at: its making, its files, another prompt, the report of two.

import { ask } from "./api.js";
import { byId, el, fill, seconds } from "./dom.js";
import { beside, changed, onChange, shown, state } from "./state.js";
import { chosenBlock } from "./track.js";

let command = null; // number of the take whose command is shown
let links = "";

export function startActions(problem) {
  byId("pause").addEventListener("click", () => problem(() => each((take) => (take.wish === "pause" ? "resume" : "pause"))));
  byId("stop").addEventListener("click", () => problem(() => each(() => "stop")));
  byId("switch").addEventListener("submit", (event) => {
    event.preventDefault();
    problem(switchPrompt);
  });
  byId("command").addEventListener("toggle", () => problem(showCommand));
  onChange(() => draw(problem));
}

/** Tell the takes that are looked at what is wanted of them. */
async function each(wish) {
  for (const take of [shown(), beside()].filter(Boolean)) {
    if (["making", "waiting"].includes(take.state)) await ask("POST", `api/takes/${take.number}/${wish(take)}`);
  }
}

async function switchPrompt() {
  const content = { prompt: byId("switch-prompt").value.trim(), how: byId("switch-how").value };
  for (const take of [shown(), beside()].filter(Boolean)) {
    if (take.state === "making") await ask("POST", `api/takes/${take.number}/switch`, content);
  }
  byId("switch-prompt").value = "";
}

function draw(problem) {
  const take = shown();
  const making = Boolean(take) && take.state === "making";
  byId("make-controls").hidden = !take || !["making", "waiting"].includes(take.state);
  byId("pause").hidden = !making;
  byId("pause").textContent = making && take.wish === "pause" ? "Resume" : "Pause";
  byId("switch").hidden = !making;
  byId("command").hidden = !take;
  if (take && byId("command").open && command !== take.number) problem(showCommand);
  const block = take ? chosenBlock() : null;
  byId("block-actions").hidden = !block;
  if (block) {
    byId("block-words").textContent = `block ${block.block}, from ${seconds(block.first / take.fps)}`;
    const isReady = take.files.includes("latents");
    for (const id of ["fork", "redo"]) {
      byId(id).disabled = !isReady || (id === "fork" && block.start === 0);
      byId(id).title = isReady ? "" : "when the take is finished";
    }
  }
  drawLinks(take, problem);
}

function drawLinks(take, problem) {
  const other = beside();
  const name = other ? reportName(take, other) : "";
  const now = take ? [take.number, ...take.files, name, state.reports.get(name)].join() : "";
  if (now === links) return;
  links = now;
  const parts = [];
  if (take && !other) {
    const files = take.files.filter((kind) => kind !== "latents");
    parts.push(...files.map((kind) => el("a", { href: `api/takes/${take.number}/files/${kind}`, target: "_blank", rel: "noopener" }, kind)));
  }
  if (other && take.files.includes("video") && other.files.includes("video")) {
    const found = state.reports.get(name);
    if (found === "done") parts.push(el("a", { href: `api/reports/${name}`, target: "_blank", rel: "noopener" }, "report"));
    else if (found === "making") parts.push(el("span", { className: "soft" }, "the report is being made"));
    else parts.push(el("button", { type: "button", onclick: () => problem(() => report(name)) }, "Report of both"));
    if (found === undefined) problem(() => look(name));
  }
  fill(byId("links"), ...parts);
}

function reportName(one, other) {
  return `${one.number}/${other.number}`;
}

async function report(name) {
  state.reports.set(name, (await ask("POST", `api/reports/${name}`)).state);
  changed();
}

async function look(name) {
  state.reports.set(name, "none");
  state.reports.set(name, (await ask("GET", `api/reports/${name}`)).state);
  changed();
}

/** Reports may be finished: look again at those that were not. */
export async function lookAgain() {
  for (const [name, found] of state.reports) if (found !== "done") await look(name);
}

async function showCommand() {
  const take = shown();
  if (!take || !byId("command").open) return;
  command = take.number;
  byId("command-words").textContent = (await ask("GET", `api/takes/${take.number}`)).command;
}
