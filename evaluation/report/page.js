"use strict";
(() => {
  const body = document.body, box = document.getElementById("errors");
  const fail = (what) => {
    body.dataset.errors = Number(body.dataset.errors) + 1;
    box.hidden = false;
    box.append(Object.assign(document.createElement("div"), { textContent: what }));
  };
  addEventListener("error", (event) => { if (event.message) fail(`${event.message} (line ${event.lineno})`); });
  addEventListener("securitypolicyviolation", (event) => fail(`refused: ${event.blockedURI}`));

  const items = [...document.querySelectorAll("section.item")];
  const pick = document.getElementById("pick"), play = document.getElementById("play");
  const seek = document.getElementById("seek"), clock = document.getElementById("clock");
  const speed = document.getElementById("speed");
  let item = null, videos = [], playing = false;

  const length = () => Math.max(0, ...videos.map((v) => v.duration || 0));
  const ready = () => videos.filter((v) => v.readyState > 0 && !v.error);
  // The longest video leads; the others run a little faster or slower until they are with it, or jump when far away.
  const leader = () => ready().reduce((a, b) => (!a || b.duration > a.duration ? b : a), null);

  function place(seconds, of = videos) {
    for (const video of of) if (video.readyState > 0) video.currentTime = Math.min(seconds, video.duration - 0.01);
    show(seconds);
  }

  function show(seconds) {
    seek.value = seconds;
    clock.textContent = `${seconds.toFixed(1)} / ${length().toFixed(1)} s`;
    for (const svg of item.querySelectorAll("svg.chart")) {
      const { left, right, end } = svg.dataset, line = svg.querySelector("line.now");
      const x = Number(left) + (right - left) * Math.min(1, seconds / end);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  }

  function run(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    for (const video of ready()) {
      video.playbackRate = Number(speed.value);
      if (on && !video.ended) video.play().catch(() => {}); else video.pause();
    }
    if (on) requestAnimationFrame(follow);
  }

  function follow() {
    if (!playing) return;
    const lead = leader();
    if (!lead || lead.ended) return run(false);
    for (const video of ready()) {
      if (video === lead || video.ended) continue;
      const behind = lead.currentTime - video.currentTime;
      if (Math.abs(behind) > 0.25 && !video.seeking) video.currentTime = Math.min(lead.currentTime, video.duration - 0.01);
      video.playbackRate = Number(speed.value) * (1 + Math.max(-0.2, Math.min(0.2, 2 * behind)));
    }
    show(lead.currentTime);
    requestAnimationFrame(follow);
  }

  function open(number) {
    run(false);
    if (item) {
      item.hidden = true;
      for (const video of videos) { video.removeAttribute("src"); video.load(); }
    }
    item = items[number];
    item.hidden = false;
    videos = [...item.querySelectorAll("video")];
    body.dataset.players = videos.length;
    body.dataset.loaded = body.dataset.unplayable = 0;
    for (const video of videos) {
      const note = video.parentElement.querySelector(".unplayable");
      note.hidden = true;
      video.onloadedmetadata = () => {
        seek.max = length();
        body.dataset.loaded = Number(body.dataset.loaded) + 1;
        show(0);
      };
      video.onerror = () => {
        if (!video.getAttribute("src")) return;
        note.hidden = false;
        body.dataset.unplayable = Number(body.dataset.unplayable) + 1;
      };
      video.src = video.dataset.src;
    }
    show(0);
  }

  if (items.length) {
    pick.onchange = () => open(pick.selectedIndex);
    play.onclick = () => {
      if (!playing && leader() && leader().currentTime > leader().duration - 0.1) place(0);
      run(!playing);
    };
    seek.oninput = () => place(Number(seek.value));
    speed.onchange = () => { for (const video of videos) video.playbackRate = Number(speed.value); };
    document.addEventListener("click", (event) => {
      const jump = event.target.closest("[data-seek]"), svg = event.target.closest("section.item svg.chart");
      if (jump) { run(false); place(Number(jump.dataset.seek)); }
      if (svg) {
        const frame = svg.getBoundingClientRect(), { left, right, end } = svg.dataset;
        const x = (event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width;
        place(Math.max(0, Math.min(1, (x - left) / (right - left))) * end);
      }
    });
    document.addEventListener("keydown", (event) => {
      if (/INPUT|SELECT|BUTTON/.test(event.target.tagName)) return;
      const lead = leader();
      if (event.key === " ") { play.click(); event.preventDefault(); }
      if (lead && event.key === "ArrowRight") place(lead.currentTime + 1 / 16);
      if (lead && event.key === "ArrowLeft") place(Math.max(0, lead.currentTime - 1 / 16));
    });
    body.classList.add("live");
    open(0);
  }
  body.dataset.ready = 1;
})();
