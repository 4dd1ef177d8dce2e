"use strict";
/* Charts, drawn by uPlot. */

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

/* One chart that is fed again and again.
   spec: {title, unit, format, kind and xkind (of V.TICKS), lines: [{name, label, colour, dots, joined, curve, dashed}], stacked, log, bars, time, xlog, sync, xformat, scatter}; fed by
   feed({x, series: {name: {mean, low, high}}, names: of each x, marks, range}). */
V.Chart = class {
  constructor(spec) {
    this.spec = spec;
    this.now = V.h("span", {class: "now"});
    this.plot = V.h("div", {class: "plot", role: "img"});
    this.legend = V.h("div", {class: "legend"});
    this.log = Boolean(spec.log);
    this.labels = [new Map(), new Map()];
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
      const colour = V.colour(line.colour);
      if (spec.stacked) series.push({stroke: colour, fill: colour, width: 0, points: {show: false}});
      else series.push({stroke: colour, width: line.curve ? 1.2 : 1.6, dash: line.dashed ? [5, 4] : undefined, pxAlign: line.curve ? 0 : 1, spanGaps: Boolean(spec.scatter), paths: line.dots && !line.joined ? () => null : undefined,
        points: {show: !line.curve && Boolean(spec.scatter || line.dots || this.data.x.length < 3), size: 6, fill: colour}});
      if (this.banded) {
        const at = series.length;
        series.push({stroke: "transparent", width: 0, points: {show: false}}, {stroke: "transparent", width: 0, points: {show: false}});
        bands.push({series: [at + 1, at], fill: colour + "2e"});
      }
    }
    return {
      ...this.size(), series, bands, legend: {show: false}, padding: [8, 8, 0, 0],
      scales: {
        x: {time: Boolean(spec.time), distr: spec.xlog ? 3 : 1, range: (u, least, most) => this.across(least, most)},
        y: this.log ? {distr: 3, range: (u, least, most) => least === null ? [0.1, 1] : least < most ? [least / 1.1, most * 1.1] : [least / 2, most * 2]} : {range: (u, least, most) => this.upwards(least, most)},
      },
      axes: [
        {stroke: ink, font, grid, ticks: {show: false}, size: 26, ...this.ticks(0, spec.time ? "clock" : spec.xkind || "count", spec.time ? 100 : 80, spec.xlog)},
        {stroke: ink, font, grid, ticks: {show: false}, size: (u, labels) => Math.max(44, ...(labels || []).map((label) => 14 + 6.2 * label.length)), ...this.ticks(1, spec.kind || "number", 30, this.log)},
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

  /* Of both axes: what uPlot asks for, so that marks stand at round places and say exactly where. */
  ticks(axis, kind, space, log) {
    return {space, incrs: () => [Number.MAX_VALUE], filter: (u, found) => found, splits: (u, at, least, most) => {
      const {width, height} = this.size();
      this.labels[axis] = new Map(V.ticks(kind, least, most, Math.max((axis ? height - 40 : width - 70) / space, 2), log));
      return [...this.labels[axis].keys()];
    }, values: (u, found) => found.map((tick) => this.labels[axis].get(tick) ?? "")};
  }

  across(least, most) {
    const [from, to] = this.data.range || [least, most];
    if (from === null || to === null) return [0, 1];
    if (this.spec.xlog) return [from / 1.15, to * 1.15];
    const room = Math.max(Math.abs(to) * 1e-9, 1e-6);
    return to - from > room ? [from, to] : [from - Math.max(0.5, room), to + Math.max(0.5, room)];
  }

  upwards(least, most) {
    const spec = this.spec;
    if (least === null) return [0, 1];
    if (spec.zero) return [Math.min(0, least * 1.08), most > 0 ? most * 1.08 : least < 0 ? 0 : 1];
    const flat = !(most - least > Math.max(Math.abs(least), Math.abs(most)) * 1e-9), room = flat ? Math.abs(most) * 0.1 || 1 : (most - least) * 0.08;
    return [least >= 0 ? Math.max(0, least - room) : least - room, most <= spec.most ? Math.min(spec.most, most + room) : most + room];
  }

  /* For those who do not see the picture, and for tests: the marks of both axes, and where a line is broken off. */
  tell(u) {
    u.axes.forEach((axis, at) => { this.plot.dataset[at ? "y" : "x"] = JSON.stringify(axis._values || []); });
    const {x, series} = this.data, broken = this.lines.map((line) => {
      const found = [];
      let last = null, gap = false;
      series[line.name].mean.forEach((value, at) => {
        if (value === null) gap = true;
        if (!V.is(value)) return;
        if (gap && last !== null) found.push([x[last], x[at]]);
        last = at;
        gap = false;
      });
      return found;
    });
    this.plot.dataset.gaps = JSON.stringify(broken);
  }

  mark(u) {
    this.tell(u);
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
    const name = hovering && this.data.names && this.data.names[index];
    const place = hovering ? (name ? `${name}: ` : "") + (this.spec.time ? V.clock(x[index]) : `${this.spec.xlabel || "step"} ${(this.spec.xformat || V.whole)(x[index])}`) : "";
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
    const every = 2 ** Math.max(Math.ceil(Math.log2(ranks * 14 / (this.size().height - 40))), 0);
    made.axes[1].splits = () => Array.from({length: Math.ceil(ranks / every)}, (_, at) => at * every);
    made.axes[1].values = (u, found) => found.map((tick) => `rank ${tick * together}`);
    made.axes[1].grid = made.axes[0].grid = {show: false};
    made.hooks.draw = [(u) => this.paint(u)];
    return made;
  }

  /* From where to where each column reaches: half way to its neighbours of the same attempt, and nowhere into the time in which none ran. */
  reach() {
    const {x, attempt, ranks} = this.data.heat, joined = (at) => at > 0 && at < x.length && (!attempt || attempt[at] === attempt[at - 1]);
    return x.map((value, at) => {
      const before = joined(at) ? (value - x[at - 1]) / 2 : null, after = joined(at + 1) ? (x[at + 1] - value) / 2 : null;
      const alone = this.spec.time ? Math.max(...ranks.map((one) => one[at] || 0)) / 2 : 0.5;
      const room = (to) => to === undefined ? Infinity : Math.abs(to - value) / 2;
      return [value - (before ?? Math.min(after ?? alone, room(x[at - 1]))), value + (after ?? Math.min(before ?? alone, room(x[at + 1])))];
    });
  }

  tell(u) {
    this.plot.dataset.x = JSON.stringify(u.axes[0]._values || []);
    this.plot.dataset.y = JSON.stringify(u.axes[1]._values || []);
    const painted = [];
    for (const [from, to] of this.reach()) if (painted.length && from - painted[painted.length - 1][1] <= 1e-6) painted[painted.length - 1][1] = to; else painted.push([from, to]);
    this.plot.dataset.painted = JSON.stringify(painted);
  }

  paint(u) {
    this.tell(u);
    const {ctx, bbox} = u, {ranks} = this.data.heat, dark = V.isDark();
    const [pale, strong] = dark ? [[31, 47, 66], [255, 166, 87]] : [[226, 234, 245], [201, 79, 10]];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const tall = bbox.height / ranks.length;
    const edges = this.reach().map(([from, to]) => [u.valToPos(from, "x", true), u.valToPos(to, "x", true)]);
    ranks.forEach((values, rank) => values.forEach((value, at) => {
      if (!V.is(value)) return;
      const share = Math.min(Math.max((value - this.least) / (this.most - this.least), 0), 1);
      ctx.fillStyle = `rgb(${pale.map((from, part) => Math.round(from + share * (strong[part] - from))).join()})`;
      ctx.fillRect(edges[at][0], bbox.top + rank * tall, Math.max(edges[at][1] - edges[at][0] + 0.6, 1), tall - (tall > 8 ? 1 : 0));
    }));
    ctx.restore();
  }

  say(index) {
    const {x, ranks, together} = this.data.heat;
    const rank = this.u && index !== null && index !== undefined ? Math.round(this.u.posToVal(this.u.cursor.top, "y")) : -1;
    const held = ranks[rank];
    V.text(this.now, held ? `rank ${rank * together}${together > 1 ? ` to ${(rank + 1) * together - 1}` : ""}: ${V.fine(held[index])}` : "");
    V.text(this.legend, held ? (this.spec.time ? V.clock(x[index]) : `step ${V.whole(x[index])}`) : `from ${V.fine(this.least)} (pale) to ${V.fine(this.most)} (strong); of each piece of the axis the row with the slowest rank`);
    const last = ranks.map((values) => values[values.length - 1]), slow = last.indexOf(Math.max(...last));
    this.plot.setAttribute("aria-label", `${this.spec.title}: ${ranks.length} ranks; at last rank ${slow * together} was the slowest with ${V.fine(last[slow])}`);
  }
};
