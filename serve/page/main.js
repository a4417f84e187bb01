// Starts the page: what can be chosen, the news, the keys.

import { lookAgain, startActions } from "./actions.js";
import { ask, follow } from "./api.js";
import { startCompose } from "./compose.js";
import { byId } from "./dom.js";
import { startMemory } from "./memory.js";
import { startStage, toggleLive, togglePlay } from "./stage.js";
import { beside, changed, fetchBlocks, named, onChange, show, shown, state } from "./state.js";
import { startTakes } from "./takes.js";
import { startTrack } from "./track.js";

/** Do something that may fail, and say so. */
async function problem(action) {
  try {
    await action();
    say("");
  } catch (error) {
    say(error.message);
  }
}

function say(words) {
  byId("problem").textContent = words;
  byId("problem").hidden = !words;
}

function hear(news) {
  if (news.all) state.takes.clear();
  for (const take of news.takes) state.takes.set(take.number, take);
  for (const number of news.gone) {
    for (const known of [state.takes, state.blocks, state.drift]) known.delete(number);
    if (state.shown === number || state.beside === number) show(null);
  }
  if (news.reports) problem(lookAgain);
  if (state.shown === null && named() !== null) show(named());
  const newest = Math.max(0, ...state.takes.keys());
  const isComing = Number(location.hash.slice(1)) > newest; // a take that the address names ahead of time
  if (state.shown === null && newest && !isComing) show(newest);
  changed();
}

function needed() {
  for (const take of [shown(), beside()].filter(Boolean)) fetchBlocks(take.number).catch((error) => say(error.message));
}

function status() {
  const takes = [...state.takes.values()];
  const making = takes.filter((take) => take.state === "making").length;
  const waiting = takes.filter((take) => take.state === "waiting").length;
  const words = making ? `${making} being made` : "idle";
  const now = waiting ? `${words}, ${waiting} waiting` : words;
  if (byId("status").textContent !== now) byId("status").textContent = now;
}

function keys(event) {
  const isTyping = ["INPUT", "TEXTAREA", "SELECT", "BUTTON"].includes(event.target.tagName);
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = { " ": togglePlay, l: toggleLive, f: () => byId("fork").click(), p: () => byId("pause").click() };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

async function start() {
  state.choices = await ask("GET", "api/choices");
  byId("backbone").textContent = `${state.choices.backbone}, ${state.choices.width} x ${state.choices.height}`;
  startCompose(problem);
  startTakes(problem);
  startStage();
  startTrack();
  startMemory();
  startActions(problem);
  onChange(needed);
  onChange(status);
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", () => named() !== null && named() !== state.shown && show(named()));
  follow(hear, (isLost) => say(isLost ? "the server does not answer; the page waits for it" : ""));
  changed();
  document.body.dataset.ready = "1";
}

problem(start);
