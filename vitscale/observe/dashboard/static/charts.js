"use strict";
/* Elements, numbers as people read them, and charts.  Text from run files only ever becomes text nodes: nothing here parses HTML. */

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
V.two = (value) => String(value).padStart(2, "0");
V.clock = (time) => {
  if (!V.is(time)) return "–";
  const at = new Date(1000 * time);
  return `${at.getFullYear()}-${V.two(at.getMonth() + 1)}-${V.two(at.getDate())} ${V.two(at.getHours())}:${V.two(at.getMinutes())}:${V.two(at.getSeconds())}`;
};
/* Labels of a time axis: the day where it begins, else hours and minutes, seconds where ticks are closer than a minute. */
V.clockTicks = (u, ticks) => ticks.map((tick) => {
  if (tick === null) return "";
  const at = new Date(1000 * tick), midnight = at.getHours() === 0 && at.getMinutes() === 0 && at.getSeconds() === 0;
  const close = ticks.length > 1 && ticks[1] - ticks[0] < 60;
  if (midnight) return `${at.getFullYear()}-${V.two(at.getMonth() + 1)}-${V.two(at.getDate())}`;
  return `${V.two(at.getHours())}:${V.two(at.getMinutes())}${close ? `:${V.two(at.getSeconds())}` : ""}`;
});
V.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
V.key = (index, label, value) => {
  const swatch = V.h("i");
  swatch.style.background = `var(--c${index % 8})`;
  return V.h("span", {class: "key"}, swatch, label, value === undefined ? null : V.h("b", {}, value));
};
V.BUCKET_COLOURS = {train: "--c2", data_wait: "--c1", checkpoint: "--c4", evaluate: "--c5", startup: "--c0", restore: "--c3", repeated: "--c6",
  waiting: "--idle", lost: "--bad"};
V.MARKS = {restart: "--bad", rollback: "--c3", checkpoint: "--c2"};

V.spark = (values) => {
  const space = "http://www.w3.org/2000/svg", drawn = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  drawn.setAttribute("class", "spark");
  drawn.setAttribute("viewBox", "0 0 100 26");
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("aria-hidden", "true");
  const known = values.filter(V.is);
  if (known.length > 1) {
    const most = Math.max(...known), least = Math.min(0.8 * most, ...known), high = most - least || 1;
    let pen = "M";
    path.setAttribute("d", values.map((value, at) => {
      if (!V.is(value)) { pen = "M"; return ""; }
      const point = `${pen}${(100 * at / (values.length - 1)).toFixed(1)} ${(24 - 22 * (value - least) / high).toFixed(1)}`;
      pen = "L";
      return point;
    }).join(""));
  }
  drawn.append(path);
  return drawn;
};

/* 1, 2 and 5 times the powers of ten; of many, the powers alone. */
V.logTicks = (least, most) => {
  const found = [], wide = Math.log10(most / least) > 2.5;
  for (let power = 10 ** Math.floor(Math.log10(least)); power <= most; power *= 10)
    for (const times of wide ? [1] : [1, 2, 5]) if (power * times >= least && power * times <= most) found.push(power * times);
  return found;
};
V.short = (value) => {
  for (const [size, unit] of [[1e12, ""], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (unit && value >= 0.9995 * size && value < 999.5 * size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return value >= 1000 ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : V.number(value);
};

/* One chart that is fed again and again.
   spec: {title, unit, format, lines: [{name, label, colour, dots, joined, curve, dashed}], stacked, log, bars, time, xlog, sync, xformat, scatter}; fed by
   feed({x, series: {name: {mean, low, high}}, marks, range}). */
V.Chart = class {
  constructor(spec) {
    this.spec = spec;
    this.now = V.h("span", {class: "now"});
    this.plot = V.h("div", {class: "plot", role: "img"});
    this.legend = V.h("div", {class: "legend"});
    this.log = Boolean(spec.log);
    const scale = spec.loggable ? V.h("button", {type: "button", "aria-pressed": String(this.log), on: {click: () => {
      this.log = !this.log;
      scale.setAttribute("aria-pressed", String(this.log));
      this.rebuild();
    }}}, "log") : null;
    this.element = V.h("figure", {class: `card ${spec.whole ? "whole" : ""}`}, V.h("figcaption", {}, V.h("span", {class: "title"}, spec.title),
      V.h("span", {class: "unit"}, spec.unit || ""), this.now, scale), this.plot, this.legend);
    this.watch = new ResizeObserver(() => { if (this.u) this.u.setSize(this.size()); });
    this.watch.observe(this.plot);
  }

  size() { return {width: Math.max(this.plot.clientWidth, 200), height: this.spec.height || 190}; }

  feed(data) {
    this.data = data;
    const lines = this.spec.lines.filter((line) => data.series[line.name] && data.series[line.name].mean.some(V.is));
    this.element.hidden = lines.length === 0;
    if (!lines.length) return;
    const banded = !this.spec.stacked && lines.some((line) => data.series[line.name].low);
    const shape = JSON.stringify([lines.map((line) => line.name), banded, this.spec.time, this.log]);
    this.lines = lines;
    this.banded = banded;
    const columns = this.columns();
    if (!this.u || shape !== this.shape) {
      this.shape = shape;
      if (this.u) this.u.destroy();
      this.u = new uPlot(this.options(), columns, this.plot);
    } else {
      this.u.setData(columns);
    }
    this.say(null);
  }

  rebuild() { if (this.data && this.u) { this.shape = null; this.feed(this.data); } }

  columns() {
    const {x, series} = this.data;
    if (this.spec.stacked) {        /* the highest sum is drawn first, the others over it */
      let sum = x.map(() => 0);
      const sums = this.lines.map((line) => {
        const values = series[line.name].mean;
        sum = sum.map((value, at) => values[at] === null ? null : value === null ? null : value + values[at]);
        return sum;
      });
      return [x, ...sums.reverse()];
    }
    const columns = [x];
    for (const line of this.lines) {
      const own = series[line.name];
      const clean = this.log ? (values) => values.map((value) => value > 0 ? value : null) : (values) => values;
      columns.push(clean(own.mean));
      if (this.banded) columns.push(clean(own.low || own.mean), clean(own.high || own.mean));
    }
    return columns;
  }

  options() {
    const spec = this.spec, ink = V.colour("--soft"), grid = {stroke: V.colour("--grid"), width: 1};
    const font = "11px system-ui, sans-serif", series = [{}], bands = [];
    const drawn = spec.stacked ? [...this.lines].reverse() : this.lines;
    for (const line of drawn) {
      const colour = V.colour(`--c${line.colour % 8}`);
      if (spec.stacked) series.push({stroke: colour, fill: colour, width: 0, points: {show: false}});
      else series.push({stroke: colour, width: line.curve ? 1.2 : 1.6, dash: line.dashed ? [5, 4] : undefined, pxAlign: line.curve ? 0 : 1, spanGaps: Boolean(spec.scatter || spec.spanGaps || line.dots), paths: line.dots && !line.joined ? () => null : undefined,
        points: {show: !line.curve && Boolean(spec.scatter || line.dots || this.data.x.length < 3), size: 6, fill: colour}});
      if (this.banded) {
        const at = series.length;
        series.push({stroke: "transparent", width: 0, points: {show: false}}, {stroke: "transparent", width: 0, points: {show: false}});
        bands.push({series: [at + 1, at], fill: colour + "2e"});
      }
    }
    const format = spec.format || V.number;
    return {
      ...this.size(), series, bands, legend: {show: false}, padding: [8, 8, 0, 0],
      scales: {
        x: {time: Boolean(spec.time), distr: spec.xlog ? 3 : 1,
            range: (u, least, most) => this.data.range || (least === most && !spec.xlog ? [least - 0.5, most + 0.5] : spec.xlog ? [least / 1.15, most * 1.15] : [least, most])},
        y: this.log ? {distr: 3} : {range: (u, least, most) => {
          if (least === null) return [0, 1];
          if (spec.zero) return [0, most > 0 ? most * 1.08 : 1];
          const room = (most - least) * 0.08 || Math.abs(most) * 0.1 || 1;
          return [spec.positive || least >= 0 ? Math.max(0, least - room) : least - room, spec.most !== undefined ? Math.min(spec.most, most + room) : most + room];
        }},
      },
      axes: [
        {stroke: ink, font, grid, ticks: {show: false}, size: 26, space: 70, splits: spec.xlog ? (u, axis, least, most) => V.logTicks(least, most) : undefined, filter: spec.xlog ? (u, ticks) => ticks : undefined,
          values: spec.time ? V.clockTicks : (u, ticks) => ticks.map((tick) => tick === null ? "" : (spec.xformat || V.whole)(tick))},
        {stroke: ink, font, grid, ticks: {show: false}, size: 58, space: 34, values: (u, ticks) => ticks.map((tick) => tick === null ? "" : format(tick))},
      ],
      cursor: {sync: spec.sync ? {key: spec.sync, setSeries: false} : undefined, points: {size: 6}, drag: {x: Boolean(spec.zoomed), y: false, setScale: false}},
      hooks: {
        draw: [(u) => this.mark(u)],
        setCursor: [(u) => this.say(u.cursor.idx)],
        setSelect: [(u) => {
          if (u.select.width > 4 && spec.zoomed) spec.zoomed(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
        }],
      },
    };
  }

  mark(u) {
    const {ctx, bbox} = u;
    ctx.save();
    for (const mark of this.data.marks || []) {
      const at = Math.round(u.valToPos(mark.x, "x", true));
      if (at < bbox.left || at > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = V.colour(V.MARKS[mark.kind] || "--soft");
      if (mark.kind === "checkpoint") {
        ctx.beginPath();
        ctx.moveTo(at - 4 * devicePixelRatio, bbox.top + bbox.height);
        ctx.lineTo(at + 4 * devicePixelRatio, bbox.top + bbox.height);
        ctx.lineTo(at, bbox.top + bbox.height - 6 * devicePixelRatio);
        ctx.fill();
      } else {
        ctx.lineWidth = 1.5 * devicePixelRatio;
        ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(at, bbox.top);
        ctx.lineTo(at, bbox.top + bbox.height);
        ctx.stroke();
      }
    }
    ctx.restore();
  }

  /* The legend, at a place of the axis or at the end; and in words for those who do not see the chart. */
  say(index) {
    const {x, series} = this.data, format = this.spec.format || V.number;
    const at = (values) => {
      if (index !== null && index !== undefined) return values[index];
      for (let last = values.length - 1; last >= 0; last -= 1) if (V.is(values[last])) return values[last];
      return null;
    };
    const several = this.lines.length > 1;
    const hovering = V.is(index) && V.is(x[index]);
    const place = hovering ? (this.spec.time ? V.clock(x[index]) : `${this.spec.xlabel || "step"} ${(this.spec.xformat || V.whole)(x[index])}`) : "";
    V.text(this.now, several ? place : format(at(series[this.lines[0].name].mean)));
    V.swap(this.legend, several ? this.lines.filter((line) => !line.curve).map((line) => V.key(line.colour, line.label, format(at(series[line.name].mean)))) : place);
    if (!hovering) {
      const words = this.lines.map((line) => {
        const known = series[line.name].mean.filter(V.is);
        const least = Math.min(...(series[line.name].low || known).filter(V.is)), most = Math.max(...(series[line.name].high || known).filter(V.is));
        return `${line.label}: last ${format(known[known.length - 1])}, least ${format(least)}, most ${format(most)}`;
      });
      this.plot.setAttribute("aria-label", `${this.spec.title}${this.spec.unit ? ` in ${this.spec.unit}` : ""}. ${words.join("; ")}`);
    }
  }

  destroy() { this.watch.disconnect(); if (this.u) this.u.destroy(); }
};

/* Each rank's own time of a step: time to the right, ranks downwards, the slower the stronger. */
V.Heat = class extends V.Chart {
  feed(data) {
    this.data = data;
    this.element.hidden = !data.heat;
    if (!data.heat) return;
    this.spec.height = Math.min(Math.max(90, 40 + 14 * data.heat.ranks.length), 420);
    this.lines = [];
    const known = data.heat.ranks.flat().filter(V.is).sort((a, b) => a - b);
    this.least = known[Math.floor(0.02 * known.length)];
    this.most = Math.max(known[Math.floor(0.995 * (known.length - 1))], this.least * 1.2);
    const columns = [data.heat.x, data.heat.x.map(() => null)], shape = `${data.heat.ranks.length}-${this.spec.time}`;
    if (!this.u || this.shape !== shape) {
      this.shape = shape;
      if (this.u) this.u.destroy();
      this.u = new uPlot(this.heatOptions(), columns, this.plot);
    } else this.u.setData(columns);
    this.say(null);
  }

  heatOptions() {
    const made = super.options();
    const ranks = this.data.heat.ranks.length, together = this.data.heat.together;
    made.series = [{}, {points: {show: false}}];
    made.bands = [];
    made.scales.y = {range: [-0.5, ranks - 0.5], dir: -1};
    made.axes[1].values = (u, ticks) => ticks.map((tick) => Number.isInteger(tick) && tick >= 0 && tick < ranks ? `rank ${tick * together}` : "");
    made.axes[1].space = 14;
    made.axes[1].incrs = [1, 2, 4, 8, 16, 32, 64];
    made.axes[1].grid = made.axes[0].grid = {show: false};
    made.hooks.draw = [(u) => this.paint(u)];
    return made;
  }

  paint(u) {
    const {ctx, bbox} = u, {x, ranks} = this.data.heat, dark = V.colour("--paper") < "#8";
    const [pale, strong] = dark ? [[31, 47, 66], [255, 166, 87]] : [[226, 234, 245], [201, 79, 10]];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const tall = bbox.height / ranks.length;
    const edges = x.map((value, at) => u.valToPos(at ? (x[at - 1] + value) / 2 : value, "x", true));
    edges.push(bbox.left + bbox.width);
    ranks.forEach((values, rank) => values.forEach((value, at) => {
      if (!V.is(value)) return;
      const share = Math.min(Math.max((value - this.least) / (this.most - this.least), 0), 1);
      ctx.fillStyle = `rgb(${pale.map((from, part) => Math.round(from + share * (strong[part] - from))).join()})`;
      ctx.fillRect(edges[at], bbox.top + rank * tall, Math.max(edges[at + 1] - edges[at] + 0.6, 1), tall - (tall > 8 ? 1 : 0));
    }));
    ctx.restore();
  }

  say(index) {
    const {x, ranks, together} = this.data.heat;
    const rank = this.u && index !== null && index !== undefined ? Math.round(this.u.posToVal(this.u.cursor.top, "y")) : -1;
    const held = ranks[rank];
    V.text(this.now, held ? `rank ${rank * together}${together > 1 ? ` to ${(rank + 1) * together - 1}` : ""}: ${V.span(held[index])}` : "");
    V.text(this.legend, held ? (this.spec.time ? V.clock(x[index]) : `step ${V.whole(x[index])}`) : `from ${V.span(this.least)} (pale) to ${V.span(this.most)} (strong); of each piece of the axis the row with the slowest rank`);
    const last = ranks.map((values) => values[values.length - 1]), slow = last.indexOf(Math.max(...last));
    this.plot.setAttribute("aria-label", `${this.spec.title}: ${ranks.length} ranks; at last rank ${slow * together} was the slowest with ${V.span(last[slow])}`);
  }
};
