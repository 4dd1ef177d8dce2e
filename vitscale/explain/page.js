"use strict";
// Maps over images, drawn from what the page carries.
const data = V.held;
const at = id => document.getElementById(id);
const [down, across] = data.grid, places = down * across, tokens = data.before + places;
const state = { image: 0, method: data.methods[0].id, layer: Math.max(data.layers - 1, 0), head: data.heads, held: null, pointed: null, class: null };
const pictures = data.images.map(image => Object.assign(new Image(), { src: image.picture }));

function bytes(text) { return Uint8Array.from(atob(text), one => one.charCodeAt(0)); }
function floats(text) { return new Float32Array(bytes(text).buffer); }
const unpacked = new Map();
function once(text, how) {
  if (!unpacked.has(text)) unpacked.set(text, how(text));
  return unpacked.get(text);
}

// Rows of a matrix are stored as 0..255 of their own maximum.
function rowOf(packed, row, count) {
  const values = once(packed.rows, bytes), top = once(packed.tops, floats)[row] / 255;
  return Array.from(values.subarray(row * count, (row + 1) * count), one => one * top);
}
function mixed(reading, rowAt) {
  const sum = new Array(tokens).fill(0);
  reading.forEach((share, token) => {
    if (share) rowAt(token).forEach((one, place) => { sum[place] += share * one; });
  });
  return sum;
}
function fromToken(token, rowAt, image) { return token === null ? mixed(image.reading, rowAt) : rowAt(token); }
function attentionRow(image, layer, head, token) {
  const packed = image.attention;
  if (head === data.heads) {       // the mean of all
    const sum = new Array(tokens).fill(0);
    for (let one = 0; one < data.heads; one += 1) attentionRow(image, layer, one, token).forEach((value, place) => { sum[place] += value / data.heads; });
    return sum;
  }
  return fromToken(token, one => rowOf(packed, (layer * data.heads + head) * tokens + one, tokens), image);
}

const method = () => data.methods.find(one => one.id === state.method);
const patch = () => state.pointed ?? state.held;
// -> {values, top, tail: what the tokens before the patches get} or {colours}
function shown() {
  const image = data.images[state.image], kind = method().kind, place = patch();
  const token = place === null ? null : data.before + place;
  if (kind === "attention" || kind === "matrix") {
    const row = kind === "attention" ? attentionRow(image, state.layer, state.head, token)
      : fromToken(token, one => rowOf(image.maps[state.method], one, tokens), image);
    return { values: row.slice(data.before), before: row.slice(0, data.before) };
  }
  if (kind === "similarity") {
    const values = rowOf(image.maps[state.method], place ?? middle, places);
    return { values: values.map(one => Math.max(one, 0)), top: 1 };
  }
  if (kind === "colours") return { colours: once(image.maps[state.method], bytes) };
  const stored = image.maps[state.method];
  return { values: Array.from(once(stored[method().byClass ? state.class : ""], floats)) };
}
const middle = Math.floor(down / 2) * across + Math.floor(across / 2);

const stops = data.colours;        // 256 x [r, g, b] of the colour map
const colour = share => stops[Math.max(0, Math.min(255, Math.round(share * 255)))];
function painted(colourOf) {
  const canvas = V.h("canvas"), context = canvas.getContext("2d");
  canvas.width = across; canvas.height = down;
  const pixels = context.createImageData(across, down);
  for (let place = 0; place < places; place += 1) pixels.data.set([...colourOf(place), 255], 4 * place);
  context.putImageData(pixels, 0, 0);
  return canvas;
}
function heat(values, top) { return painted(place => colour(top > 0 ? values[place] / top : 0)); }
function tinted(values) { return painted(place => values.subarray(3 * place, 3 * place + 3)); }

const where = place => `row ${Math.floor(place / across) + 1}, column ${place % across + 1}`;
const isShare = kind => kind === "attention" || kind === "matrix";

function draw() {
  const canvas = at("map"), context = canvas.getContext("2d"), picture = pictures[state.image];
  if (!picture.complete) { picture.onload = draw; return; }
  const found = shown(), strength = at("strength").value / 100, kind = method().kind;
  canvas.height = Math.round(canvas.width * picture.naturalHeight / picture.naturalWidth);
  context.imageSmoothingEnabled = picture.naturalWidth >= canvas.width;
  context.filter = "grayscale(1)";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.imageSmoothingEnabled = false;
  context.globalAlpha = strength;
  const top = found.colours ? 0 : found.top ?? Math.max(...found.values);
  context.drawImage(found.colours ? tinted(found.colours) : heat(found.values, top), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  const place = patch() ?? (kind === "similarity" ? middle : null);
  if (place !== null) outline(context, place, canvas.width / across, canvas.height / down, state.held !== null && state.pointed === null);
  at("scale").hidden = Boolean(found.colours);
  at("top").textContent = found.colours ? "" : isShare(kind) ? V.percent(top) : V.number(top);
  at("says").textContent = says(found, kind);
  if (kind === "attention") drawHeads();
}
function outline(context, place, width, height, dashed) {
  const x = place % across * width, y = Math.floor(place / across) * height;
  context.setLineDash(dashed ? [8, 5] : []);
  for (const [line, ink] of [[6, "#000"], [3, "#22d3ee"]]) {
    context.lineWidth = line; context.strokeStyle = ink;
    context.strokeRect(x + 2, y + 2, width - 4, height - 4);
  }
  context.setLineDash([]);
}

function says(found, kind) {
  const place = patch();
  if (found.colours) return place === null ? "Patches of like colour have like features, also in other images." : `Patch in ${where(place)}.`;
  const best = found.values.map((value, one) => [value, one]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  if (kind === "similarity") {
    const own = place ?? middle, others = best.filter(one => one[1] !== own).slice(0, 2);
    return `The features of the patch in ${where(own)} are most like those in ${others.map(([value, one]) => `${where(one)} (${value.toFixed(2)})`).join("; ")}.`;
  }
  if (!isShare(kind)) {
    const most = `Most in ${where(best[0][1])}.`;
    return place === null ? most : `Patch in ${where(place)}: ${V.number(found.values[place])}, rank ${1 + found.values.filter(one => one > found.values[place]).length} of ${places}. ${most}`;
  }
  const who = place === null ? data.reader : `The patch in ${where(place)}`;
  const verb = kind === "attention" ? "attends to" : "holds";
  const list = best.map(([value, one]) => `${where(one)} (${V.percent(value)})`).join("; ");
  const special = found.before.map((value, one) => `${data.tokens[one]} ${V.percent(value)}`).join(", ");
  return `${who} ${verb} most: ${list}.${special ? ` Of what is no patch: ${special}.` : ""}`;
}

const cell = { gap: 2 };
function drawHeads() {
  const canvas = at("heads"), columns = data.heads + 1, image = data.images[state.image];
  const token = patch() === null ? null : data.before + patch();
  const room = Math.max(240, at("controls").clientWidth - 36);
  cell.width = Math.max(14, Math.min(64, Math.floor((room - 34) / columns) - cell.gap));
  cell.height = Math.round(cell.width * down / across);
  const width = 34 + columns * (cell.width + cell.gap), height = 18 + data.layers * (cell.height + cell.gap);
  const sharp = window.devicePixelRatio || 1;
  canvas.width = width * sharp; canvas.height = height * sharp;
  canvas.style.width = `${width}px`;
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  context.imageSmoothingEnabled = false;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = V.colour("--soft");
  context.textAlign = "center";
  for (let head = 0; head < columns; head += 1)
    if (cell.width >= 26 || head % 2 === 0) context.fillText(head === data.heads ? "all" : head, 34 + head * (cell.width + cell.gap) + cell.width / 2, 12);
  context.textAlign = "right";
  for (let layer = 0; layer < data.layers; layer += 1) {
    context.fillStyle = V.colour("--soft");
    context.fillText(layer, 26, 18 + layer * (cell.height + cell.gap) + cell.height / 2 + 4);
    for (let head = 0; head < columns; head += 1) {
      const values = attentionRow(image, layer, head, token).slice(data.before);
      const x = 34 + head * (cell.width + cell.gap), y = 18 + layer * (cell.height + cell.gap);
      context.drawImage(heat(values, Math.max(...values)), x, y, cell.width, cell.height);
      if (layer === state.layer && head === state.head) {
        context.strokeStyle = "#22d3ee"; context.lineWidth = 3;
        context.strokeRect(x + 1, y + 1, cell.width - 2, cell.height - 2);
      }
    }
  }
}

function choose(change) {
  Object.assign(state, change);
  const image = data.images[state.image], kind = method();
  if ("image" in change) state.class = image.classes.length ? String(image.classes[0][0]) : "";
  at("name").textContent = image.name;
  at("answer").textContent = image.top.length ? `The model says ${image.top.map(([label, share]) => `${label} (${V.percent(share)})`).join(", ")}.` : "";
  document.querySelectorAll("#images button").forEach((button, one) => {
    button.setAttribute("aria-checked", String(one === state.image));
    button.tabIndex = one === state.image ? 0 : -1;
  });
  document.querySelectorAll("#methods input").forEach(input => { input.checked = input.value === state.method; });
  at("about").textContent = kind.about;
  at("class-row").hidden = !kind.byClass;
  at("attention-rows").hidden = kind.kind !== "attention";
  if (kind.byClass) {
    at("class").replaceChildren(...image.classes.map(([index, label]) => new Option(label, index, false, String(index) === state.class)));
  }
  at("layer").value = state.layer; at("head").value = state.head;
  at("map").setAttribute("aria-label", `${kind.title} over ${image.name}`);
  draw();
}

data.images.forEach((image, one) => at("images").append(V.h("button", {type: "button", role: "radio", title: image.name, on: {click: () => choose({ image: one, held: null, pointed: null })}},
  V.h("img", {src: image.picture, alt: ""}), V.h("span", {}, image.name))));
at("images").addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  choose({ image: (state.image + step + data.images.length) % data.images.length, held: null, pointed: null });
  at("images").children[state.image].focus();
});
data.methods.forEach(one => at("methods").append(V.h("label", {},
  V.h("input", {type: "radio", name: "method", value: one.id, on: {change: () => choose({ method: one.id })}}), one.title)));
for (let layer = 0; layer < data.layers; layer += 1) at("layer").append(new Option(layer, layer));
for (let head = 0; head < data.heads; head += 1) at("head").append(new Option(head, head));
at("head").append(new Option("mean of all", data.heads));
at("layer").addEventListener("change", event => choose({ layer: Number(event.target.value) }));
at("head").addEventListener("change", event => choose({ head: Number(event.target.value) }));
at("class").addEventListener("change", event => choose({ class: event.target.value }));
at("strength").addEventListener("input", draw);
function placeAt(event) {
  const box = at("map").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / box.width * across), row = Math.floor((event.clientY - box.top) / box.height * down);
  return Math.max(0, Math.min(down - 1, row)) * across + Math.max(0, Math.min(across - 1, column));
}
let waiting = false;
function later() {     // a map is drawn once a frame, however often the pointer moves
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
at("map").addEventListener("pointermove", event => {
  const place = placeAt(event);
  if (place !== state.pointed) { state.pointed = place; later(); }
});
at("map").addEventListener("pointerleave", () => { state.pointed = null; later(); });
at("map").addEventListener("click", event => {
  const place = placeAt(event);
  state.held = state.held === place ? null : place;
  draw();
});
at("map").addEventListener("keydown", event => {
  const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (!dy && !dx) return;
  event.preventDefault();
  const from = patch() ?? middle, row = Math.floor(from / across) + dy, column = from % across + dx;
  const start = patch() === null;
  state.pointed = null;
  state.held = start ? middle : Math.max(0, Math.min(down - 1, row)) * across + Math.max(0, Math.min(across - 1, column));
  draw();
});
at("heads").addEventListener("click", event => {
  const box = at("heads").getBoundingClientRect();
  const head = Math.floor((event.clientX - box.left - 34) / (cell.width + cell.gap)), layer = Math.floor((event.clientY - box.top - 18) / (cell.height + cell.gap));
  if (head >= 0 && head <= data.heads && layer >= 0 && layer < data.layers) choose({ head, layer });
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const turn = (value, step, count) => (value + step + count) % count;
  const order = data.methods.findIndex(one => one.id === state.method);
  const changes = {
    "[": () => ({ layer: Math.max(0, state.layer - 1) }), "]": () => ({ layer: Math.min(data.layers - 1, state.layer + 1) }),
    ",": () => ({ head: turn(state.head, -1, data.heads + 1) }), ".": () => ({ head: turn(state.head, 1, data.heads + 1) }),
    "m": () => ({ method: data.methods[turn(order, 1, data.methods.length)].id }),
    "n": () => ({ image: turn(state.image, 1, data.images.length), held: null, pointed: null }),
    "Escape": () => ({ held: null, pointed: null }),
  };
  if (event.key in changes) choose(changes[event.key]());
});
window.addEventListener("resize", later);

const strip = at("bar").getContext("2d");
stops.forEach(([r, g, b], one) => { strip.fillStyle = `rgb(${r},${g},${b})`; strip.fillRect(one, 0, 1, 1); });
V.swap(document.getElementById("page"), V.header(draw, V.h("h1", {}, data.title), V.h("span", {class: "where"}, data.told)));
choose({ image: 0 });
