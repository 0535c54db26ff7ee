"use strict";

const find = (selector, from = document) => [...from.querySelectorAll(selector)];

/* Text beside the pointer. */

const tip = document.getElementById("tip");

function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const above = event.clientY - height - 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 18}px`;
}

function hideTip() {
  tip.hidden = true;
}

/* Box plots: a point tells its track, which lights up in all the others. */

const points = find("circle");
const names = new Map();
for (const point of points) {
  const title = point.querySelector("title"); // what is shown without this script
  names.set(point, title.textContent);
  title.remove();
}

function light(track) {
  for (const point of points) point.classList.toggle("lit", point.dataset.track === track);
}

for (const plot of find("[data-boxes]")) {
  plot.addEventListener("pointerover", (event) => {
    const text = names.get(event.target);
    if (text === undefined) return;
    light(event.target.dataset.track);
    showTip(text, event);
  });
  plot.addEventListener("pointerout", () => {
    light(null);
    hideTip();
  });
}

/* Scores over time: those of the window under the pointer, or where the arrow keys went. */

for (const figure of find("[data-curves]")) {
  const chart = figure.querySelector(".curves");
  const cursor = figure.querySelector(".cursor");
  const rows = Object.entries(JSON.parse(figure.querySelector("[data-values]").textContent));
  const windows = Math.max(...rows.map(([, values]) => values.length));
  const seconds = Number(chart.dataset.seconds);
  let current = -1;
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  const show = (second, event) => {
    if (second < 0 || second >= windows) return hide();
    current = second;
    cursor.setAttribute("visibility", "visible");
    const x = `${((second + 0.5) / seconds) * 100}%`;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const at = `${Math.floor(second / 60)}:${String(second % 60).padStart(2, "0")}`;
    showTip([at, ...rows.map(([name, values]) => `${name}: ${values[second] ?? "–"}`)].join("\n"), event);
  };
  chart.addEventListener("pointermove", (event) => {
    const { left, width } = chart.getBoundingClientRect();
    show(Math.floor(((event.clientX - left) / width) * seconds), event);
  });
  chart.addEventListener("keydown", (event) => {
    const places = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: windows - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    const second = Math.min(Math.max(places[event.key], 0), windows - 1);
    const { left, top, width } = chart.getBoundingClientRect();
    show(second, { clientX: left + ((second + 0.5) / seconds) * width, clientY: top + 60 });
  });
  const curves = find(".curve", figure);
  find(".legend li", figure).forEach((item, index) => {
    const alone = (on) => curves.forEach((curve) =>
      curve.classList.toggle("faint", on && curve.dataset.curve !== String(index)));
    item.addEventListener("pointerenter", () => alone(true));
    item.addEventListener("pointerleave", () => alone(false));
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
}

/* The table of tracks: one metric at a time, all sorted alike. */

const tables = find("[data-metric]");
const order = { column: 0, falling: false };

function showMetric(metric) {
  for (const table of tables) table.hidden = table.dataset.metric !== metric;
}

function compare(one, other) {
  const cells = [one, other].map((row) => row.cells[order.column]);
  if (order.column === 0) {
    return cells[0].textContent.localeCompare(cells[1].textContent) * (order.falling ? -1 : 1);
  }
  const [a, b] = cells.map((cell) => Number(cell.dataset.value));
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // last, always
  return a === b ? 0 : (a < b ? -1 : 1) * (order.falling ? -1 : 1);
}

function sortBy(column, falling) {
  Object.assign(order, { column, falling });
  for (const table of tables) {
    const body = table.querySelector("tbody");
    body.append(...[...body.rows].sort(compare));
    table.querySelectorAll("thead tr:last-child th").forEach((head, index) => {
      const kind = falling ? "descending" : "ascending";
      head.setAttribute("aria-sort", index === column ? kind : "none");
    });
  }
}

for (const table of tables) {
  table.querySelectorAll("thead tr:last-child button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const again = order.column === column;
      sortBy(column, again ? !order.falling : column > 0);
    });
  });
}
for (const radio of find("#metrics input")) {
  radio.addEventListener("change", () => showMetric(radio.value));
  if (radio.checked) showMetric(radio.value);
}
if (tables.length) sortBy(0, false);

/* Players. All that can be heard of an excerpt is started at once and runs on together; which of it
   is heard is a matter of gains, so a switch neither waits nor loses its place. */

const FADE = 0.004; // seconds, the time constant of a switch: it does not click

class Deck {
  /** `context`: of Web Audio; `buffers`: Map of decoded sound by name; `seconds`: their length;
      `lead`: seconds of silence that an MP3 encoder puts before, which some browsers keep. */
  constructor(context, buffers, seconds, lead) {
    this.context = context;
    this.buffers = buffers;
    this.seconds = seconds;
    this.lead = lead;
    this.gains = new Map();
    this.nodes = [];
    for (const name of buffers.keys()) {
      const gain = context.createGain();
      gain.gain.value = 0;
      gain.connect(context.destination);
      this.gains.set(name, gain);
    }
  }

  start(when, offset, loop, ended) {
    for (const [name, buffer] of this.buffers) {
      const node = this.context.createBufferSource();
      const lead = buffer.duration >= this.seconds + this.lead ? this.lead : 0;
      Object.assign(node, { buffer, loop, loopStart: lead, loopEnd: lead + this.seconds });
      node.connect(this.gains.get(name));
      if (loop) node.start(when, lead + offset);
      else node.start(when, lead + offset, this.seconds - offset);
      this.nodes.push(node);
    }
    this.nodes[0].onended = ended;
  }

  stop() {
    for (const node of this.nodes) {
      node.onended = null;
      node.stop();
      node.disconnect();
    }
    this.nodes = [];
  }

  choose(chosen, when, fade = FADE) {
    for (const [name, { gain }] of this.gains) {
      const level = name === chosen ? 1 : 0;
      gain.cancelScheduledValues(when);
      if (fade) gain.setTargetAtTime(level, when, fade);
      else gain.setValueAtTime(level, when);
    }
  }
}

let shared = null; // one context for all players, made when the first is started
const players = [];

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
}

class Player {
  constructor(section) {
    this.part = (name) => section.querySelector(`[data-${name}]`);
    this.section = section;
    this.radios = find("[data-stream]", section);
    this.heads = find("[data-head]", section);
    this.sound = JSON.parse(this.part("sound").textContent);
    this.seconds = this.sound.seconds;
    this.offset = 0; // seconds, of where it stands, or stood when it was last started
    this.started = null; // time of the context at that moment, null where it does not play
    this.deck = null;
    this.listen();
    this.draw();
  }

  listen() {
    this.part("play").addEventListener("click", () => this.toggle());
    this.part("seek").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    this.part("loop").addEventListener("change", () => this.seek(this.position()));
    for (const radio of this.radios) {
      radio.addEventListener("change", () => this.choose());
    }
    for (const picture of find("[data-seekable]", this.section)) {
      picture.addEventListener("click", (event) => {
        const { left, width } = picture.getBoundingClientRect();
        this.seek(((event.clientX - left) / width) * this.seconds);
      });
    }
    this.section.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.closest("button, [data-loop]")) return;
      event.preventDefault();
      this.toggle();
    });
  }

  get chosen() {
    return this.radios.find((radio) => radio.checked).value;
  }

  get playing() {
    return this.started !== null;
  }

  position() {
    if (!this.playing) return this.offset;
    const reached = this.offset + Math.max(0, shared.currentTime - this.started);
    return this.part("loop").checked ? reached % this.seconds : Math.min(reached, this.seconds);
  }

  async load() {
    shared ??= new AudioContext();
    this.loading ??= (async () => {
      this.part("status").textContent = "Decoding…";
      const decoded = Object.entries(this.sound.streams).map(async ([name, text]) => [
        name,
        await shared.decodeAudioData(bytes(text)),
      ]);
      this.deck = new Deck(shared, new Map(await Promise.all(decoded)), this.seconds, this.sound.lead);
      this.deck.choose(this.chosen, 0, 0);
      this.sound = null;
      this.part("status").textContent = "";
    })();
    try {
      await this.loading;
      await shared.resume();
    } catch (error) {
      this.part("status").textContent = `This browser can't play the excerpt (${error.message}).`;
    }
    return this.deck !== null;
  }

  async toggle() {
    if (this.playing) return this.pause();
    if (!(await this.load()) || this.playing) return;
    for (const other of players) other.pause();
    if (this.offset >= this.seconds - 0.01) this.offset = 0;
    this.run();
  }

  run() {
    const loop = this.part("loop").checked;
    this.started = shared.currentTime + 0.02;
    this.deck.start(this.started, this.offset, loop, () => {
      this.pause();
      this.offset = 0;
      this.draw();
    });
    this.draw();
  }

  pause() {
    if (!this.playing) return;
    this.offset = this.position();
    this.started = null;
    this.deck.stop();
    this.draw();
  }

  seek(seconds) {
    const { playing } = this;
    this.pause();
    this.offset = Math.min(Math.max(0, seconds), this.seconds);
    if (playing && this.offset < this.seconds) this.run();
    this.draw();
  }

  choose() {
    this.deck?.choose(this.chosen, shared.currentTime);
  }

  draw() {
    const at = this.position();
    this.part("play").textContent = this.playing ? "Pause" : "Play";
    this.part("seek").value = at;
    this.part("seek").setAttribute("aria-valuetext", `${at.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
    this.part("time").textContent = `${at.toFixed(1)} / ${this.seconds.toFixed(1)} s`;
    for (const head of this.heads) {
      head.setAttribute("x1", `${(at / this.seconds) * 100}%`);
      head.setAttribute("x2", `${(at / this.seconds) * 100}%`);
    }
    cancelAnimationFrame(this.frame);
    if (this.playing) this.frame = requestAnimationFrame(() => this.draw());
  }
}

for (const section of find("[data-player]")) players.push(new Player(section));

// For who wants to know what plays: see the tests.
globalThis.report = { Deck, players, sortBy, context: () => shared };
