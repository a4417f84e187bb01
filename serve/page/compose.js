// The form for a new take, a fork, or two takes side by side.

import { ask } from "./api.js";
import { byId, el, fill, options, seconds } from "./dom.js";
import { changed, pixel, show, shown, state } from "./state.js";
import { chosenBlock } from "./track.js";

let fork = null; // what is forked: parent, and at or redo
let upload = null; // name of what was uploaded

export function startCompose(problem) {
  const choices = state.choices;
  const methods = Object.keys(choices.methods);
  options(byId("method"), methods, choices.method);
  options(byId("method-b"), methods, methods.find((name) => name !== choices.method));
  options(byId("how"), Object.keys(choices.switches), "text");
  options(byId("switch-how"), Object.keys(choices.switches), "text");
  byId("seed").value = choices.seed;
  byId("seconds").value = Math.round((pixel(choices.frames) / choices.fps) * 2) / 2;
  byId("seconds").max = choices.limits.longest;
  byId("example").hidden = !choices.prompts.length;
  byId("example").addEventListener("click", example);
  for (const suffix of ["", "-b"]) {
    byId(`method${suffix}`).addEventListener("change", () => fields(suffix));
    fields(suffix);
  }
  byId("against").addEventListener("change", () => {
    byId("against-part").hidden = !byId("against").checked;
  });
  byId("fork").addEventListener("click", () => beginFork("at"));
  byId("redo").addEventListener("click", () => beginFork("redo"));
  byId("fork-cancel").addEventListener("click", endFork);
  byId("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    problem(submit);
  });
  startUpload(problem);
}

let shownExample = -1;

function example() {
  shownExample = (shownExample + 1) % state.choices.prompts.length;
  byId("prompt").value = state.choices.prompts[shownExample];
}

/** The settings of the chosen method. */
function fields(suffix) {
  const settings = state.choices.methods[byId(`method${suffix}`).value];
  const parts = settings.map((setting) => {
    const id = `setting${suffix}-${setting.name}`;
    const label = el("label", { for: id, title: setting.meaning }, setting.name.split(".").pop().replaceAll("_", " "));
    let input;
    const isFlag = typeof setting.value === "boolean";
    const words = isFlag ? ["true", "false"] : setting.choices;
    if (words.length) {
      input = el("select", { id, title: setting.meaning });
      options(input, words, String(setting.value));
    } else {
      input = el("input", { id, title: setting.meaning, value: String(setting.value), autocomplete: "off" });
    }
    input.dataset.name = setting.name;
    input.dataset.value = String(setting.value);
    return el("div", {}, label, input);
  });
  fill(byId(`settings${suffix}-fields`), ...parts);
}

/** Those settings that were changed. */
function settings(suffix) {
  const found = {};
  for (const input of byId(`settings${suffix}-fields`).querySelectorAll("[data-name]")) {
    if (input.value !== input.dataset.value) found[input.dataset.name] = input.value;
  }
  return found;
}

/** Latent frames of the wanted seconds: whole blocks. */
function frames() {
  const { block, fps, temporal } = state.choices;
  const latent = (Number(byId("seconds").value) * fps - 1) / temporal + 1;
  return Math.max(Math.round(latent / block), 1) * block;
}

async function submit() {
  const request = {
    prompt: byId("prompt").value.trim(),
    method: byId("method").value,
    settings: settings(""),
    switch: byId("how").value,
  };
  const seed = byId("seed").value.trim();
  if (seed) request.seed = Number(seed);
  if (fork) Object.assign(request, fork);
  else {
    request.frames = frames();
    if (upload) request.start = upload;
  }
  if (byId("against").checked) request.against = { method: byId("method-b").value, settings: settings("-b") };
  byId("make").disabled = true;
  try {
    const { takes } = await ask("POST", "api/takes", request);
    for (const take of takes) state.takes.set(take.number, take);
    endFork();
    show(takes[0].number, takes.length > 1 ? takes[1].number : null);
    state.live = true;
  } finally {
    byId("make").disabled = false;
  }
}

/** The next take starts from the chosen block of the one that is shown. */
function beginFork(kind) {
  const take = shown();
  const block = chosenBlock();
  if (!take || !block) return;
  const at = `${block.start}f`;
  fork = { parent: take.number };
  if (kind === "at") fork.at = at;
  else fork.redo = `${at}-${block.start + block.length}f`;
  if (kind === "redo") fork.keep_after = true;
  const from = seconds(block.first / take.fps);
  byId("fork-words").textContent = kind === "at" ? `Fork of take ${take.number} at ${from}` : `Redo of ${from} in take ${take.number}`;
  byId("fork-note").hidden = false;
  byId("compose-title").textContent = kind === "at" ? "New fork" : "Redo";
  byId("prompt").value = "";
  byId("prompt").placeholder = "empty: its prompt goes on";
  byId("method").value = take.request.method;
  byId("seconds").disabled = true;
  byId("start").disabled = true;
  byId("seed").value = kind === "at" ? byId("seed").value : Number(byId("seed").value || 0) + 1;
  fields("");
  byId("prompt").focus();
}

function endFork() {
  fork = null;
  byId("fork-note").hidden = true;
  byId("compose-title").textContent = "New take";
  byId("prompt").placeholder = "A harbour at dawn[5s] | a market";
  byId("seconds").disabled = false;
  byId("start").disabled = false;
  changed();
}

function startUpload(problem) {
  const drop = byId("drop");
  byId("start").addEventListener("change", () => problem(() => send(byId("start").files[0])));
  byId("start-clear").addEventListener("click", clear);
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    problem(() => send(event.dataTransfer.files[0]));
  });
}

function clear() {
  upload = null;
  byId("start").value = "";
  byId("start-words").textContent = "choose one, or drop it here";
  byId("start-clear").hidden = true;
}

async function send(file) {
  if (!file) return;
  clear();
  if (file.size > state.choices.limits.upload_mb * 1e6) {
    throw new Error(`${file.name} is larger than ${state.choices.limits.upload_mb} MB`);
  }
  byId("start-words").textContent = `sending ${file.name}`;
  try {
    const found = await ask("POST", "api/uploads", file);
    upload = found.name;
    const length = found.seconds ? `, ${found.seconds} s` : "";
    byId("start-words").textContent = `${file.name}: ${found.width} x ${found.height}${length}`;
    byId("start-clear").hidden = false;
  } catch (error) {
    clear();
    throw error;
  }
}
