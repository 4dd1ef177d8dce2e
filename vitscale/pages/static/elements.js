"use strict";
/* Elements, tables, light and dark, and numbers as people read them.  Text from files only ever becomes text nodes: nothing here parses HTML. */

const V = {};

V.h = (tag, attributes, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) made.addEventListener(event, heard);
    else if (name === "class") made.className = value;
    else if (name === "width") made.style.width = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  V.fill(made, children);
  return made;
};
V.fill = (parent, children) => {
  for (const child of children.flat(9)) if (child !== null && child !== undefined && child !== false) parent.append(child);
  return parent;
};
V.swap = (parent, ...children) => { parent.replaceChildren(); return V.fill(parent, children); };
V.text = (node, text) => { if (node.textContent !== text) node.textContent = text; };

V.is = (value) => typeof value === "number" && Number.isFinite(value);
V.number = (value) => {
  if (!V.is(value)) return "–";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 0.001) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
};
V.whole = (value) => V.is(value) ? Math.round(value).toLocaleString("en") : "–";
V.percent = (value) => V.is(value) ? `${(100 * value).toFixed(value < 0.1 ? 1 : value < 0.995 ? 1 : 0)} %` : "–";
V.bytes = (value) => {
  if (!V.is(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < 4) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
};
V.span = (seconds) => {
  if (!V.is(seconds)) return "–";
  const days = Math.floor(seconds / 86400), hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return seconds >= 10 || seconds === 0 ? `${Math.round(seconds)} s` : seconds >= 0.1 ? `${seconds.toFixed(1)} s` : `${V.number(1000 * seconds)} ms`;
};
V.fine = (seconds) => V.is(seconds) && seconds >= 0.1 && seconds < 60 ? `${Number(seconds.toPrecision(3))} s` : V.span(seconds);      /* where two are held against each other */
V.two = (value) => String(value).padStart(2, "0");
V.clock = (time) => {
  if (!V.is(time)) return "–";
  const at = new Date(1000 * time);
  return `${at.getFullYear()}-${V.two(at.getMonth() + 1)}-${V.two(at.getDate())} ${V.two(at.getHours())}:${V.two(at.getMinutes())}:${V.two(at.getSeconds())}`;
};

/* What a page of one file carries; null where a server is asked instead. */
V.held = ((element) => element && JSON.parse(element.textContent))(document.getElementById("held"));

/* The head of a page with what is given, and the button between light and dark; `repaint` draws anew what is not drawn by styles. */
V.header = (repaint, ...children) => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  try { const kept = localStorage.getItem("theme"); if (kept === "light" || kept === "dark") root.dataset.theme = kept; } catch { /* a file may have no storage */ }
  dark.addEventListener("change", repaint);
  return V.h("header", {class: "top"}, V.h(V.held ? "span" : "a", {class: "brand", href: V.held ? null : "#/"}, "vitscale"), children, V.h("button", {id: "theme", type: "button", "aria-label": "Light or dark", on: {click: () => {
    root.dataset.theme = (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it is asked for again then */ }
    repaint();
  }}}, "◐"));
};

/* Of a name; of the eight, by its number; or at {place} of 0 to 1 on a scale from small to large. */
V.colour = (name) => typeof name === "number" ? V.colour(`--c${name % 8}`) : V.is(name.place) ? `hsl(${Math.round(265 - 225 * name.place)} 65% ${V.isDark() ? 66 : 42}%)`
  : getComputedStyle(document.documentElement).getPropertyValue(name).trim();
V.isDark = () => V.colour("--paper") < "#8";
V.key = (colour, label, value) => {
  const swatch = V.h("i");
  swatch.style.background = V.is(colour) ? `var(--c${colour % 8})` : V.colour(colour);
  return V.h("span", {class: "key"}, swatch, label, value === undefined ? null : V.h("b", {}, value));
};
V.short = (value) => {
  for (const [size, unit] of [[1e12, ""], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (unit && value >= 0.9995 * size && value < 999.5 * size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return value >= 1000 ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : V.number(value);
};

/* A table in a card; the first cell of a row is its head, the columns in `right` are numbers. */
V.table = (kind, heads, rows, right) => V.h("div", {class: "card scroll"}, V.h("table", {class: kind}, V.h("thead", {}, V.h("tr", {}, heads.map((head, at) => V.h("th", {scope: "col", class: right.includes(at) ? "num" : ""}, head)))),
  V.h("tbody", {}, rows.map((row) => V.h("tr", {}, row.map((cell, at) => V.h(at ? "td" : "th", {class: right.includes(at) ? "num" : "", scope: at ? null : "row"}, cell)))))));
V.formats = {number: V.number, ratio: V.percent, bytes: V.bytes, seconds: V.span};       /* of a unit: vitscale/metrics */
V.kinds = {number: "number", ratio: "percent", bytes: "bytes", seconds: "span"};
