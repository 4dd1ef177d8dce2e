"use strict";
/* The views: all runs, one run, runs side by side, a sweep.  Each is made once and then fed with what came newly. */

V.badge = (state) => {
  const kind = {"stopped early": "stopped", "wrong input": "wrong", lost: "lost-run"}[state] || state;
  return V.h("span", {class: `badge ${/^[a-z-]+$/.test(kind) ? kind : ""}`}, state);
};
V.bar = (ratio, state, label) => {
  const share = V.is(ratio) ? Math.min(Math.max(ratio, 0), 1) : 0;
  return V.h("div", {class: `bar ${state === "done" ? "done" : state === "failed" || state === "lost" ? "failed" : ""}`, role: "progressbar", "aria-valuemin": 0,
    "aria-valuemax": 100, "aria-valuenow": V.is(ratio) ? Math.round(100 * share) : null, "aria-label": label}, V.h("div", {width: `${100 * share}%`}));
};
V.BUCKET_COLOURS = {train: "--c2", data_wait: "--c1", checkpoint: "--c4", evaluate: "--c5", startup: "--c0", restore: "--c3", repeated: "--c6",
  waiting: "--idle", lost: "--bad"};
V.best = (values, judge) => { const known = (values || []).filter(V.is); return V.formats[judge.unit](known.length ? Math[judge.better === "lower" ? "min" : "max"](...known) : null); };
V.stuck = (run, now) => run.state === "running" && V.is(run.step_time) && now - run.step_time > 120 ? `no step for ${V.span(now - run.step_time)}` : "";

/* ---------------------------------------------------------------------------------------------------------------- all runs */

V.Overview = class {
  constructor(page) {
    this.page = page;
    this.rows = new Map();
    this.picked = new Set();
    this.sort = {by: "step_time", down: true};
    this.state = "";
    this.find = V.h("input", {type: "search", placeholder: "Filter runs", "aria-label": "Filter runs by name", on: {input: () => this.show()}});
    this.states = V.h("div", {class: "row", role: "group", "aria-label": "Filter by state"});
    this.sum = V.h("p", {class: "soft", role: "status"});
    this.groups = V.h("div", {class: "row"});
    this.body = V.h("tbody");
    this.head = V.h("tr");
    this.heads = [];
    this.others = V.h("div");
    this.tray = V.h("div", {class: "tray"});
    this.element = V.h("div", {}, V.h("h1", {}, "Runs"), this.sum, V.h("div", {class: "row controls"}, this.find, this.states), this.groups,
      V.h("div", {class: "card scroll"}, V.h("table", {class: "runs"}, V.h("thead", {}, this.head), this.body)), this.tray, this.others);
  }

  async update() {
    const data = await this.page.source.get("api/runs");
    if (!data) return;
    this.data = data;
    if (!this.heads.length) this.makeHeads(data.judges);
    this.page.where(data.folder);
    this.page.title("Runs");
    const changed = [];
    for (const run of data.runs) {
      const row = this.rows.get(run.id) || this.make(run);
      if (row.run.state !== run.state) changed.push(`${run.name} is now ${run.state}`);
      row.run = run;
      this.feed(row);
    }
    const there = new Set(data.runs.map((run) => run.id));
    for (const [id, row] of this.rows) if (!there.has(id)) { row.element.remove(); this.rows.delete(id); this.picked.delete(id); }
    if (changed.length) this.page.announce(changed.join("; "));
    V.swap(this.groups, data.groups.length ? [V.h("span", {class: "soft"}, "Sweeps and folders:"), data.groups.map((group) =>
      V.h("a", {class: "chip", href: `#/sweep/${group.id}`}, `${group.name} (${data.runs.filter((run) => run.group === group.id).length})`))] : []);
    V.swap(this.others, data.num_others ? V.h("details", {class: "soft"}, V.h("summary", {}, `${data.num_others} other ${data.num_others === 1 ? "folder holds" : "folders hold"} no run that could be read`),
      V.h("ul", {}, data.others.map((other) => V.h("li", {}, other)))) : []);
    this.show();
  }

  makeHeads(judges) {
    this.heads = [["", null], ["Run", "name"], ["State", "state"], ["Progress", "done_ratio"], ["ETA", "eta_s"], ["Images/s", "images_per_second"], ["MFU", "mfu"],
      ["Data wait", "data_wait"], ["Loss", "loss"], ...judges.map((judge) => [judge.title, judge.column]), ["Restarts", "restarts"], ["Last step", "step_time"]].map(([label, by], at) => ({by, element:
      V.h("th", {class: at > 3 ? "num" : "", scope: "col"}, by ? V.h("button", {type: "button", on: {click: () => {
        this.sort = {by, down: this.sort.by === by ? !this.sort.down : by !== "name"};
        this.show();
      }}}, label) : V.h("span", {class: "hidden"}, "Compare"))}));
    this.head.replaceChildren(...this.heads.map((head) => head.element));
  }

  make(run) {
    const cells = {};
    const cell = (name, kind, label) => { cells[name] = V.h("td", {class: kind, "data-label": label}); return cells[name]; };
    const pick = V.h("input", {type: "checkbox", "aria-label": `Compare ${run.name}`, on: {change: () => {
      if (pick.checked) this.picked.add(run.id); else this.picked.delete(run.id);
      this.showTray();
    }}});
    const link = V.h("a", {href: `#/run/${run.id}`}, run.name);
    const row = {run, cells, detail: V.h("span", {class: "detail"}), group: V.h("span", {class: "group"})};
    row.element = V.h("tr", {}, V.h("td", {class: "pick"}, pick), V.h("td", {class: "name"}, row.group, link, row.detail), cell("state", "state"), cell("progress", "progress"),
      cell("eta", "num labelled", "ETA"), cell("speed", "num labelled", "Images/s"), cell("mfu", "num extra"), cell("wait", "num extra"), cell("loss", "num labelled", "Loss"),
      this.data.judges.map((judge) => cell(judge.column, "num labelled", judge.title)), cell("restarts", "num extra"), cell("last", "num extra"));
    this.rows.set(run.id, row);
    return row;
  }

  feed(row) {
    const {run, cells} = row, text = JSON.stringify(run) + (run.state === "running" ? Math.floor(this.data.now) : Math.floor(this.data.now / 60));
    if (row.shown === text) return;
    row.shown = text;
    const stuck = V.stuck(run, this.data.now);
    V.text(row.detail, stuck || (run.state === "done" ? "" : run.detail));
    const group = this.data.groups.find((one) => one.id === run.group);
    V.text(row.group, group ? `${group.name} / ` : "");
    V.swap(cells.state, V.badge(run.state));
    V.swap(cells.progress, V.bar(run.done_ratio, run.state, `Progress of ${run.name}`), V.h("div", {class: "text"}, V.h("span", {}, V.is(run.done_ratio) ? V.percent(run.done_ratio) : ""),
      V.h("span", {}, V.is(run.step) ? `step ${V.whole(run.step)}` : "")));
    V.swap(cells.eta, V.is(run.eta_s) ? V.span(run.eta_s) : "–");
    V.swap(cells.speed, V.h("div", {class: "speed"}, V.spark(run.spark), V.h("span", {}, V.number(run.images_per_second))));
    V.swap(cells.mfu, V.percent(run.mfu));
    V.swap(cells.wait, V.percent(run.data_wait));
    V.swap(cells.loss, V.number(run.loss));
    for (const judge of this.data.judges) V.swap(cells[judge.column], V.formats[judge.unit](run[judge.column]));
    V.swap(cells.restarts, String(run.restarts));
    for (const cell of Object.values(cells)) cell.classList.toggle("none", cell.textContent === "–");
    V.swap(cells.last, V.is(run.step_time) ? `${V.span(Math.max(this.data.now - run.step_time, 0)).split(" ").slice(0, 2).join(" ")} ago` : "–");
  }

  show() {
    if (!this.data) return;
    const runs = this.data.runs, wanted = this.find.value.trim().toLowerCase();
    const counts = new Map();
    for (const run of runs) counts.set(run.state, (counts.get(run.state) || 0) + 1);
    const states = [["", `all ${runs.length}`], ...[...counts].sort().map(([state, count]) => [state, `${state} ${count}`])];
    const key = JSON.stringify([states, this.state]);
    if (this.statesShown !== key) {
      this.statesShown = key;
      V.swap(this.states, states.map(([state, label]) => V.h("button", {type: "button", "aria-pressed": String(this.state === state), on: {click: () => { this.state = state; this.show(); }}}, label)));
    }
    const running = runs.filter((run) => run.state === "running"), speed = running.reduce((sum, run) => sum + (run.images_per_second || 0), 0);
    V.text(this.sum, runs.length === 0 ? "" : running.length ? `${running.length} running, together ${V.number(speed)} images/s` : "nothing is running now");
    for (const {by, element} of this.heads) if (by === this.sort.by) element.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending"); else element.removeAttribute("aria-sort");
    const kept = [...this.rows.values()].filter(({run}) => (!this.state || run.state === this.state) && (!wanted || run.name.toLowerCase().includes(wanted)));
    const value = ({run}) => run[this.sort.by];
    kept.sort((a, b) => {
      const one = value(a), two = value(b), side = this.sort.down ? -1 : 1;
      if (one === null || one === undefined) return two === null || two === undefined ? 0 : 1;
      if (two === null || two === undefined) return -1;
      return side * (typeof one === "string" ? one.localeCompare(two, "en", {numeric: true}) : one - two) || a.run.name.localeCompare(b.run.name, "en", {numeric: true});
    });
    const order = kept.map((row) => row.element);
    if (order.length !== this.body.children.length || order.some((element, at) => this.body.children[at] !== element)) this.body.replaceChildren(...order);
    if (!order.length) this.body.replaceChildren(V.h("tr", {}, V.h("td", {colspan: 12, class: "empty"}, runs.length ? "No run fits the filter." :
      "No run here yet. `vitscale train recipes/quickstart.yaml` makes one.")));
    this.showTray();
  }

  showTray() {
    const count = this.picked.size;
    V.swap(this.tray, count ? V.h("div", {class: "card"}, `${count} chosen`, V.h("button", {type: "button", class: "main", disabled: count < 2, on: {click: () => {
      location.hash = `#/compare/${[...this.picked].join(",")}`;
    }}}, count < 2 ? "Choose one more to compare" : `Compare ${count} runs`)) : []);
  }

  destroy() {}
};

/* ---------------------------------------------------------------------------------------------------------------- one run */

V.Run = class {
  constructor(page, id) {
    this.page = page;
    this.id = id;
    this.axis = "time";
    this.range = null;
    this.charts = [];
    this.name = V.h("h1");
    this.state = V.h("span");
    this.detail = V.h("div", {class: "soft"});
    this.notices = V.h("div");
    this.tiles = V.h("div", {class: "tiles"});
    this.back = V.h("button", {type: "button", hidden: true, on: {click: () => this.zoom(null)}}, "Show all");
    this.axes = ["time", "step"].map((axis) => V.h("button", {type: "button", "aria-pressed": String(axis === this.axis), on: {click: () => this.turn(axis)}}, axis === "time" ? "Wall clock" : "Steps"));
    this.grid = V.h("div", {class: "charts"});
    this.events = V.h("div");
    this.split = V.h("div");
    this.evaluated = V.h("div");
    this.samples = V.h("div");
    this.facts = V.h("div");
    this.controls = V.h("div", {class: "row controls"}, V.h("div", {role: "group", "aria-label": "What runs to the right", class: "row"}, this.axes), this.back, V.h("span", {class: "fill"}),
      page.source.frozen ? null : V.h("a", {href: `report/${id}`, download: true}, "Save as report.html"));
    this.element = V.h("div", {}, V.h("div", {class: "row"}, this.name, this.state), this.detail, this.notices, this.tiles, this.controls, this.grid, this.events, this.split,
      this.evaluated, this.samples, this.facts);
    this.escape = (event) => { if (event.key === "Escape" && this.range) this.zoom(null); };
    document.addEventListener("keydown", this.escape);
  }

  turn(axis) {
    if (axis === this.axis) return;
    this.axis = axis;
    this.range = null;
    this.axes.forEach((button, at) => button.setAttribute("aria-pressed", String(["time", "step"][at] === axis)));
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.grid.replaceChildren();
    this.tag = null;
    this.page.refresh();
  }

  zoom(range) {
    this.range = range;
    this.back.hidden = !range;
    this.tag = null;
    this.page.refresh();
  }

  async update() {
    const asked = new URLSearchParams({axis: this.axis, points: String(Math.min(Math.max(Math.round(window.innerWidth / 2), 240), 900))});
    if (this.range) { asked.set("start", this.range[0]); asked.set("end", this.range[1]); }
    const {axis, range: wanted} = this, data = await this.page.source.get(`api/run/${this.id}?${asked}`, this);
    if (!data || axis !== this.axis || wanted !== this.range) return;       /* another was asked for meanwhile */
    this.data = data;
    const {run} = data;
    V.text(this.name, run.name);
    V.swap(this.state, V.badge(run.state));
    this.page.title(`${V.is(run.done_ratio) && run.state === "running" ? `${Math.floor(100 * run.done_ratio)} % ` : ""}${run.name}`);
    if (this.known && this.known !== run.state) this.page.announce(`${run.name} is now ${run.state}`);
    this.known = run.state;
    V.text(this.detail, [V.stuck(run, data.now), run.detail].filter(Boolean).join(" · "));
    const notices = [...data.notices];
    if (data.read_ratio < 1) notices.unshift(`${V.percent(data.read_ratio)} of a long record has been read; until the rest is, single rows stand for it`);
    if (!data.recorded && data.read_ratio >= 1 && !notices.length) notices.unshift("no step has been recorded yet");
    V.swap(this.notices, notices.map((notice) => V.h("div", {class: "notice"}, notice)));
    this.showTiles(data);
    if (!this.charts.length) this.makeCharts(data);
    const last = Math.max(data.x[data.x.length - 1], data.evaluations.x[data.evaluations.x.length - 1] ?? -Infinity);     /* an evaluation ends after its step */
    const range = this.range || (data.x.length > 1 ? [data.x[0], last] : null);
    for (const chart of this.charts) chart.feed({...this.seriesOf(chart, data), marks: data.marks, heat: data.heat, range});
    this.showEvents(data);
    this.showGoodput(data);
    this.showEvaluated(data);
    this.showSamples(data);
    this.showFacts(data);
    return data.read_ratio < 1 ? 700 : null;
  }

  showTiles(data) {
    const {run, latest} = data, seconds = data.phases.map((name) => latest[`seconds_${name}`] || 0), inner = data.phases.map((name, at) => ["checkpoint", "evaluate"].includes(name) ? 0 : seconds[at]);
    const wait = inner.reduce((sum, value) => sum + value, 0);
    const tile = (label, value, more, kind) => V.h("div", {class: `tile ${kind || ""}`}, V.h("div", {class: "label"}, label), V.h("div", {class: "value"}, value), V.h("div", {class: "more"}, more || ""));
    const judged = data.judges.filter((judge) => (data.evaluations[judge.column] || []).length);
    const attempts = data.attempts.length;
    V.swap(this.tiles,
      V.h("div", {class: "tile wide"}, V.h("div", {class: "label"}, "Progress"), V.h("div", {class: "value"}, V.is(run.done_ratio) ? V.percent(run.done_ratio) : V.is(run.step) ? `step ${V.whole(run.step)}` : "–"),
        V.bar(run.done_ratio, run.state, "Progress"), V.h("div", {class: "more"}, [V.is(run.step) ? `step ${V.whole(run.step)}` : "", V.is(latest.images) ? `${V.whole(latest.images)} images` : ""].filter(Boolean).join(", "))),
      run.state === "running" ? tile("Time left", V.span(run.eta_s), V.is(run.eta_s) ? `at ${V.clock(data.now + run.eta_s).slice(5, 16)}` : "") : null,
      tile("Images/s", V.number(latest.images_per_second), V.is(data.environment.world) && data.environment.world > 1 && V.is(latest.images_per_second) ? `${V.number(latest.images_per_second / data.environment.world)} a rank` : ""),
      tile("MFU", V.percent(latest.mfu), V.is(data.environment.peak_flops) && data.environment.peak_flops > 0 ? `of ${V.number(data.environment.peak_flops / 1e12)} TFLOP/s` : ""),
      tile("Data wait", wait > 0 ? V.percent((latest.seconds_data_wait || 0) / wait) : "–", "of the last step", wait > 0 && latest.seconds_data_wait / wait > 0.1 ? "warn" : ""),
      tile("Loss", V.number(latest.loss), data.nonfinite ? `${V.whole(data.nonfinite)} not finite` : "", data.nonfinite ? "warn" : ""),
      judged.map((judge) => { const values = data.evaluations[judge.column]; return tile(judge.title, V.formats[judge.unit](values[values.length - 1]), values.some(V.is) ? `best ${V.best(values, judge)}` : ""); }),
      V.is(latest.device_bytes) ? tile("GPU memory", V.bytes(latest.device_bytes)) : V.is(latest.resident_bytes) ? tile("Host memory", V.bytes(latest.resident_bytes)) : null,
      V.is(latest.skew) ? tile("Slowest rank", `${latest.skew.toFixed(2)} ×`, "the median of the others", latest.skew > 1.2 ? "warn" : "") : null,
      tile("Goodput", V.percent(data.goodput_ratio), `${Math.max(attempts - 1, 0)} restart${attempts === 2 ? "" : "s"}`),
      data.quarantine.count ? tile("Bad samples", V.whole(data.quarantine.count), "see below", "warn") : null);
  }

  makeCharts(data) {
    const common = {time: this.axis === "time", sync: "run", zoomed: this.page.source.frozen ? null : (from, to) => this.zoom([from, to])};
    const add = (spec) => {
      const chart = spec.heat ? new V.Heat({...common, ...spec}) : new V.Chart({...common, ...spec});
      this.charts.push(chart);
      this.grid.append(chart.element);
    };
    for (const panel of data.panels) {
      const lines = panel.lines.map((line) => ({...line, dots: line.sparse, joined: line.sparse}));
      add({...panel, lines, unit: panel.aside, format: V.formats[panel.unit], kind: V.kinds[panel.unit]});
    }
    add({title: "Each rank's own time of a step", unit: "before it waits for others", heat: true, whole: true, lines: []});
  }

  /* Evaluations have places of their own on the axis; a chart with both gets the union. */
  seriesOf(chart, data) {
    const names = chart.spec.lines.map((line) => line.name), sparse = names.filter((name) => data.evaluations[name]), dense = names.filter((name) => data.series[name]);
    if (!sparse.length) return {x: data.x, series: data.series};
    const range = this.range || [-Infinity, Infinity];
    const told = V.evaluations(data, sparse), kept = told.x.map((at, index) => index).filter((index) => told.x[index] >= range[0] && told.x[index] <= range[1]);
    const x = kept.map((index) => told.x[index]), series = {};
    for (const name of sparse) series[name] = {mean: kept.map((index) => told[name][index])};
    if (!dense.length) return {x, series};
    const all = [...new Set([...data.x, ...x])].sort((a, b) => a - b), place = new Map(all.map((at, index) => [at, index]));
    const spread = (from, values) => { const made = all.map(() => undefined); values.forEach((value, index) => { made[place.get(from[index])] = value; }); return made; };
    const united = {};
    for (const name of dense) united[name] = Object.fromEntries(Object.entries(data.series[name]).map(([kind, values]) => [kind, spread(data.x, values)]));
    for (const name of sparse) united[name] = {mean: spread(x, series[name].mean)};
    return {x: all, series: united};
  }

  showEvents(data) {
    const shown = data.marks.filter((mark) => mark.kind !== "checkpoint"), checkpoints = data.marks.length - shown.length;
    V.swap(this.events, data.marks.length ? V.h("p", {class: "soft"}, "On the charts: ", checkpoints ? `▲ ${checkpoints} checkpoint${checkpoints === 1 ? "" : "s"}` : "", checkpoints && shown.length ? ", " : "",
      shown.length ? `dashed: ${shown.length} restart${shown.length === 1 ? "" : "s or rollbacks"}` : "") : []);
  }

  showGoodput(data) {
    const buckets = Object.entries(data.goodput), all = buckets.reduce((sum, [, value]) => sum + value, 0);
    if (!buckets.length) { this.split.replaceChildren(); return; }
    const colour = (name) => `var(${V.BUCKET_COLOURS[name] || "--c7"})`;
    const key = (name, value) => { const made = V.key(0, name.replaceAll("_", " "), `${V.span(value)}, ${V.percent(value / all)}`); made.firstChild.style.background = colour(name); return made; };
    V.swap(this.split, V.h("h2", {}, `Where the wall time went: ${V.span(all)} over ${data.attempts.length || 1} attempt${data.attempts.length > 1 ? "s" : ""}, goodput ${V.percent(data.goodput_ratio)}`),
      V.h("div", {class: "split", role: "img", "aria-label": buckets.map(([name, value]) => `${name} ${V.percent(value / all)}`).join(", ")}, buckets.map(([name, value]) => {
        const part = V.h("div", {width: `${100 * value / all}%`, title: `${name}: ${V.span(value)}`});
        part.style.background = colour(name);
        return part;
      })), V.h("div", {class: "legend"}, buckets.map(([name, value]) => key(name, value))));
  }

  /* What `vitscale eval` found. */
  showEvaluated(data) {
    const found = data.evaluated, shown = JSON.stringify(found);
    if (this.evaluatedShown === shown) return;
    this.evaluatedShown = shown;
    if (!found) { this.evaluated.replaceChildren(); return; }
    const told = (row, value) => row.share ? V.percent(value) : V.number(value);
    const about = [V.is(found.step) ? `weights of step ${V.whole(found.step)}` : found.weights, V.is(found.images) ? `${V.whole(found.images)} images` : "", found.unreadable ? `${V.whole(found.unreadable)} could not be read` : "",
      V.is(found.time) ? V.clock(found.time) : ""].filter(Boolean);
    V.swap(this.evaluated, V.h("h2", {}, "What vitscale eval found"), V.h("p", {class: "soft"}, about.join(" · ")), V.table("evaluated", ["", "Value", "95 % interval", "Of images", ""], found.rows.map((row) =>
      [row.name, told(row, row.value), V.is(row.low) && V.is(row.high) ? `${told(row, row.low)} to ${told(row, row.high)}` : "", V.is(row.count) ? V.whole(row.count) : "", row.note]), [1, 2, 3]));
  }

  showSamples(data) {
    const {count, reasons, rows} = data.quarantine, shown = JSON.stringify([count, reasons]);
    if (this.samplesShown === shown) return;
    this.samplesShown = shown;
    if (!count) { this.samples.replaceChildren(); return; }
    const most = 24;
    V.swap(this.samples, V.h("h2", {}, `Samples that could not be used: ${V.whole(count)}`), V.h("div", {class: "row"}, reasons.map(([reason, times]) => V.h("span", {class: "chip"}, `${reason} ${V.whole(times)}`))),
      V.h("div", {class: "samples"}, rows.slice(0, most).map((row, at) => {
        const frame = V.h("div", {class: "frame"});
        this.picture(frame, at, row);
        return V.h("div", {class: "card sample"}, frame, V.h("b", {}, row.reason || "?"), ` at step ${V.whole(row.step)}${row.split ? ` (${row.split})` : ""}`, V.h("div", {class: "soft"}, `${row.key || "?"} in ${String(row.shard || "?").split("/").pop()}`),
          V.h("div", {}, row.detail || ""));
      })), count > most ? V.h("p", {class: "soft"}, `and ${V.whole(count - most)} more in quarantine.jsonl`) : null);
  }

  picture(frame, at, row) {
    const given = this.page.source.picture(this.id, at);
    if (!given) { V.text(frame, "no picture"); return; }
    const drawn = V.h("img", {alt: `Sample ${row.key || ""}, as far as it can be decoded`, loading: "lazy", src: given, on: {
      load: () => { if (drawn.naturalWidth < 72) drawn.classList.add("small"); },
      error: async () => {
        let why = "no picture";
        try { const answer = await fetch(given); if (!answer.ok) why = (await answer.text()).slice(0, 120); } catch { /* the words above say enough */ }
        V.swap(frame, why);
      }}});
    frame.append(drawn);
  }

  showFacts(data) {
    const shown = JSON.stringify([data.attempts, data.environment, data.recipe, data.outcome]);
    if (this.factsShown === shown) return;
    this.factsShown = shown;
    const facts = (values) => V.h("dl", {class: "card facts"}, Object.entries(values).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
      V.h("div", {}, V.h("dt", {}, name.replaceAll("_", " ")), V.h("dd", {}, typeof value === "number" ? (name.endsWith("time") || name === "started" ? V.clock(value) : name.includes("flops") ? V.number(value) : Number.isInteger(value) ? V.whole(value) : V.number(value)) : String(value)))));
    const attempts = data.attempts.length ? [V.h("h2", {}, "Attempts"), V.table("", ["Attempt", "Began", "From step", "Ranks", "Where", "The one before ended by"], data.attempts.map((one) => [String(one.attempt ?? ""), V.clock(one.started),
      V.whole(one.step), V.whole(one.ranks), [one.node || one.host, one.job ? `job ${one.job}` : ""].filter(Boolean).join(", "), one.cause ? `${one.cause}: ${one.reason || ""}` : "–"]), [1, 2, 3])] : [];
    V.swap(this.facts, attempts,
      Object.keys(data.outcome).length ? [V.h("h2", {}, "Outcome"), facts(data.outcome)] : [],
      Object.keys(data.environment).length ? [V.h("h2", {}, "Environment"), facts(data.environment)] : [],
      data.recipe ? [V.h("h2", {}, "Recipe and how to repeat it"), V.h("div", {class: "card"}, V.h("details", {open: Boolean(this.page.source.frozen)}, V.h("summary", {}, "recipe.yaml: save it, then `vitscale train recipe.yaml name=again`"),
        V.h("pre", {tabindex: 0}, data.recipe)))] : []);
  }

  repaint() { for (const chart of this.charts) chart.rebuild(); }
  destroy() { document.removeEventListener("keydown", this.escape); for (const chart of this.charts) chart.destroy(); }
};

/* The evaluations in the order of the axis, with a null wherever nothing ran in between, at which a line breaks off. */
V.evaluations = (data, names) => {
  const gaps = (data.gaps || []).map(([from, to]) => (from + to) / 2), places = [...data.evaluations.x.map((x, at) => ({x, at})), ...gaps.map((x) => ({x}))].sort((one, two) => one.x - two.x);
  const found = {x: places.map((place) => place.x)};
  for (const name of names) found[name] = places.map((place) => place.at === undefined ? null : data.evaluations[name][place.at] ?? undefined);
  return found;
};

/* ---------------------------------------------------------------------------------------------------------------- runs side by side */

V.Compare = class {
  constructor(page, ids) {
    this.page = page;
    this.ids = ids.split(",").filter((id) => /^[0-9a-f]{16}$/.test(id)).slice(0, 8);
    this.axis = "step";
    this.axes = ["step", "time"].map((axis) => V.h("button", {type: "button", "aria-pressed": String(axis === this.axis), on: {click: () => this.turn(axis)}}, axis === "time" ? "Hours since the start" : "Steps"));
    this.key = V.h("div", {class: "legend"});
    this.grid = V.h("div", {class: "charts"});
    this.table = V.h("div");
    this.charts = [];
    this.element = V.h("div", {}, V.h("h1", {}, "Side by side"), V.h("div", {class: "row controls", role: "group", "aria-label": "What runs to the right"}, this.axes), this.key, this.grid, this.table);
  }

  turn(axis) {
    this.axis = axis;
    this.axes.forEach((button, at) => button.setAttribute("aria-pressed", String(["step", "time"][at] === axis)));
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    this.grid.replaceChildren();
    this.page.refresh();
  }

  async update() {
    const found = (await Promise.all(this.ids.map((id) => this.page.source.get(`api/run/${id}?axis=${this.axis}&points=400`)))).filter(Boolean);
    if (!found.length) return;
    this.page.title("Side by side");
    const shift = (data) => this.axis === "time" && data.x.length ? (at) => (at - data.x[0]) / 3600 : (at) => at;
    const names = found.map((data) => data.run.name);
    V.swap(this.key, found.map((data, at) => V.h("a", {href: `#/run/${data.run.id}`}, V.key(at, data.run.name))));
    const wanted = found[0].panels.flatMap((panel) => panel.lines.filter((line) => line.compared).map((line) => ({...line, loggable: panel.loggable})));
    if (!this.charts.length) for (const {name, compared, unit, loggable, sparse} of wanted) {
      const chart = new V.Chart({title: compared, format: V.formats[unit], kind: V.kinds[unit], loggable, sync: "compare", xkind: this.axis === "time" ? "number" : "count", xformat: this.axis === "time" ? (value) => `${V.number(value)} h` : V.whole,
        xlabel: this.axis === "time" ? "after" : "step", lines: names.map((label, at) => ({name: String(at), label, colour: at, dots: sparse, joined: true})), metric: name, sparse});
      this.charts.push(chart);
      this.grid.append(chart.element);
    }
    for (const chart of this.charts) {
      const {metric, sparse} = chart.spec, tables = [];
      found.forEach((data, at) => {
        const told = sparse && data.evaluations[metric] ? V.evaluations(data, [metric]) : null;
        const x = told ? told.x : data.x, values = told ? told[metric] : (data.series[metric] || {}).mean, moved = shift(data);
        tables.push([String(at), values ? x.map(moved) : [], values || []]);
      });
      const all = [...new Set(tables.flatMap(([, x]) => x))].sort((a, b) => a - b), place = new Map(all.map((at, index) => [at, index])), series = {};
      for (const [name, x, values] of tables) {
        const mean = all.map(() => undefined);
        values.forEach((value, index) => { mean[place.get(x[index])] = value; });
        series[name] = {mean};
      }
      chart.feed({x: all, series, marks: []});
    }
    this.showTable(found);
  }

  showTable(found) {
    const rows = [["State", (data) => data.run.state], ["Step", (data) => V.whole(data.run.step)], ["Images", (data) => V.whole(data.latest.images)], ["Loss", (data) => V.number(data.latest.loss)],
      ...found[0].judges.map((judge) => [`${judge.title}, best`, (data) => V.best(data.evaluations[judge.column], judge)]), ["Images/s", (data) => V.number(data.latest.images_per_second)], ["MFU", (data) => V.percent(data.latest.mfu)],
      ["Goodput", (data) => V.percent(data.goodput_ratio)], ["Parameters", (data) => V.whole(data.environment.parameters)], ["Ranks", (data) => V.whole(data.environment.world)]];
    const recipes = found.map((data) => V.recipeKeys(data.recipe)), keys = [...new Set(recipes.flatMap((recipe) => [...recipe.keys()]))];
    const differing = keys.filter((key) => key !== "name" && new Set(recipes.map((recipe) => recipe.get(key))).size > 1);
    const heads = ["", ...found.map((data) => data.run.name)];
    V.swap(this.table, V.h("h2", {}, "Numbers"), V.table("", heads, rows.map(([label, value]) => [label, ...found.map(value)]), []),
      V.h("h2", {}, differing.length ? "Where the recipes differ" : "The recipes do not differ"),
      differing.length ? V.table("differs", heads, differing.map((key) => [key, ...recipes.map((recipe) => recipe.get(key) ?? "–")]), []) : null);
  }

  repaint() { for (const chart of this.charts) chart.rebuild(); }
  destroy() { for (const chart of this.charts) chart.destroy(); }
};

/* Dotted key -> text of a recipe as vitscale writes it: two spaces deeper is inside. */
V.recipeKeys = (text) => {
  const found = new Map(), path = [];
  for (const line of text.split("\n")) {
    const match = /^( *)([A-Za-z_][A-Za-z0-9_]*):(?: (.*))?$/.exec(line);
    if (match) {
      path.length = match[1].length / 2 | 0;
      path.push(match[2]);
      if (match[3] !== undefined) found.set(path.join("."), match[3]);
    } else if (line.trim()) {
      const key = path.join(".");
      found.set(key, `${found.get(key) || ""} ${line.trim()}`.trim());
    }
  }
  return found;
};

/* ---------------------------------------------------------------------------------------------------------------- a sweep */

V.Sweep = class {
  constructor(page, id) {
    this.page = page;
    this.id = id;
    this.name = V.h("h1");
    this.grid = V.h("div", {class: "charts"});
    this.below = V.h("div");
    this.element = V.h("div", {}, this.name, this.words = V.h("p", {class: "soft"}), this.grid, this.below);
    this.charts = [];
  }

  async update() {
    const data = await this.page.source.get(`api/sweep/${this.id}`);
    if (!data) return;
    V.text(this.name, data.name);
    this.page.title(data.name);
    this.showCharts(data);
    const text = JSON.stringify(data);
    if (this.shown === text) return;
    this.shown = text;
    const counts = new Map();
    for (const point of data.points) counts.set(point.state, (counts.get(point.state) || 0) + 1);
    V.text(this.words, `Each run is a point; they move while the sweep trains.${data.seeds.length ? " Lines go through the means over seeds, bands reach from the least to the most." : ""}`);
    V.swap(this.below, this.verdict(data.verdict), this.laws(data.fit), this.plan(data.plan), this.seeds(data.seeds, data.judges),
      V.h("h2", {}, `${data.points.length} ${data.points.length === 1 ? "run" : "runs"}: ${[...counts].sort((one, two) => two[1] - one[1]).map(([state, count]) => `${count} ${state}`).join(", ")}`), V.table("sweep-runs", ["Run", "State", "Parameters", "Images", "FLOP", "Loss", ...data.judges.map((judge) => judge.title), ""], data.points.map((point) =>
        [point.id ? V.h("a", {href: `#/run/${point.id}`}, point.name) : point.name, V.badge(point.state), V.whole(point.parameters), V.whole(point.images), V.number(point.compute), V.number(point.loss), ...data.judges.map((judge) => V.formats[judge.unit](point[judge.column])),
          [point.held_out ? "held out of the fit" : "", point.state === "done" ? "" : point.detail].filter(Boolean).join("; ")]), [2, 3, 4, 5, ...data.judges.map((_, at) => 6 + at)]));
  }

  showCharts(data) {
    const law = data.curves, error = law && law.rises;         /* what an accuracy lacks to 1 is what was fitted */
    const height = (point) => error ? (V.is(point[law.of]) ? 1 - point[law.of] : null) : point[law ? law.of : "loss"];
    const points = data.points.filter((point) => V.is(height(point)) && V.is(point.parameters) && V.is(point.compute) && point.compute > 0);
    const by = (key, most) => [...new Set(points.map((point) => point[key]).filter(V.is))].sort((a, b) => a - b).slice(-most).map((value) => ({value, points: points.filter((point) => point[key] === value)}));
    const levels = by("level", 8), sizes = by("parameters", 8);
    const lines = law ? law.lines.filter((line) => levels.some((one) => one.value === line.level)) : [];
    const shape = JSON.stringify([levels.map((one) => one.value), sizes.map((one) => one.value), error, law && law.law, lines.map((line) => line.level)]);
    const what = law ? `${law.title}${error ? " error" : ""}` : "Loss", format = error ? V.percent : V.number;
    if (this.shape !== shape) {
      this.shape = shape;
      for (const chart of this.charts) chart.destroy();
      const common = {xlog: true, xkind: "short", scatter: true, loggable: true, height: 300, xformat: V.short, format, kind: error ? "percent" : "number"};
      const bySize = sizes.map((one, at) => ({name: String(at), label: `${V.short(one.value)} parameters`, colour: at, dots: true}));
      const lawOf = (level) => lines.find((line) => line.level === level);
      const byLevel = levels.map((one, at) => ({name: String(at), label: `${V.short(one.value)} FLOP${one.points.every((point) => point.held_out) ? ", held out" : ""}`, colour: at, dots: true}));
      const through = (groups) => groups.map((one, at) => ({name: `mean ${at}`, label: `mean, ${V.short(one.value)}`, colour: at, curve: true}));
      const drawn = levels.map((one, at) => lawOf(one.value) && {name: `law ${at}`, label: `by ${law.law} at ${V.short(one.value)} FLOP`, colour: at, curve: true, dashed: lawOf(one.value).held_out}).filter(Boolean);
      this.charts = [new V.Chart({...common, title: `${what} over size, at equal compute`, unit: drawn.length ? `parameters; lines: ${law.law}` : "parameters", whole: true, lines: [...byLevel, ...drawn, ...through(levels)], xlabel: "parameters", of: "parameters"}),
        new V.Chart({...common, title: `${what} over compute, by size`, unit: "FLOP so far", lines: [...bySize, ...through(sizes)], xlabel: "FLOP", of: "compute"}),
        new V.Chart({...common, title: `${what} over images, by size`, unit: "images so far", lines: [...bySize, ...through(sizes)], xlabel: "images", of: "images"})];
      this.grid.replaceChildren(...this.charts.map((chart) => chart.element));
    }
    this.charts.forEach((chart, index) => {
      const {of} = chart.spec, curves = index ? [] : lines, series = {};
      /* one column for each run, though several may stand at one place, and one for each place of a curve */
      const columns = [...points.filter((point) => V.is(point[of])).map((point) => ({x: point[of], point})), ...curves.flatMap((line) => line.x.map((x, at) => ({x, line, at})))].sort((one, two) => one.x - two.x);
      (index ? sizes : levels).forEach((one, at) => {
        series[String(at)] = {mean: columns.map((column) => column.point && one.points.includes(column.point) ? height(column.point) : undefined)};
        const line = curves.find((other) => other.level === one.value), means = this.means(columns, one.points, height);
        if (line) series[`law ${at}`] = {mean: columns.map((column) => column.line === line ? line.y[column.at] ?? undefined : undefined)};
        else if (means) series[`mean ${at}`] = means;
      });
      chart.feed({x: columns.map((column) => column.x), series, marks: []});
    });
  }

  /* The mean over seeds at each place, with the least and the most; null where runs of one place differ in more than the seed. */
  means(columns, members, height) {
    const places = new Map();
    columns.forEach((column, at) => {
      if (!column.point || !members.includes(column.point)) return;
      const place = places.get(column.x) || {at, values: [], settings: new Set()};
      place.values.push(height(column.point));
      place.settings.add(column.point.setting ?? column.point.name);
      places.set(column.x, place);
    });
    if (places.size < 2 || [...places.values()].some((place) => place.settings.size > 1)) return null;
    const made = {mean: columns.map(() => undefined), low: columns.map(() => undefined), high: columns.map(() => undefined)};
    for (const {at, values} of places.values()) {
      made.mean[at] = values.reduce((sum, value) => sum + value, 0) / values.length;
      made.low[at] = Math.min(...values);
      made.high[at] = Math.max(...values);
    }
    return made;
  }

  seeds(found, judges) {
    if (!found.length) return [];
    return [V.h("h2", {}, "Over seeds: mean ± standard deviation, from the least to the most"), V.table("seeds", ["Parameters", "Images", "Learning rate", "Batch", "Loss", ...judges.map((judge) => judge.title)], found.map((one) =>
      [V.whole(one.parameters), V.whole(one.images), V.number(one.lr), V.whole(one.batch), one.loss, ...judges.map((judge) => one[judge.column])]), [1, 2, 3])];
  }

  span(value, low, high) { return V.is(low) || V.is(high) ? `${V.is(low) ? V.number(low) : "open"} to ${V.is(high) ? V.number(high) : "open"}` : ""; }

  laws(fit) {
    if (!fit) return V.h("p", {class: "soft"}, "No law has been fitted yet: `vitscale fit` writes one into this folder.");
    if (!fit.laws.length) return V.h("p", {class: "soft"}, "fit.json holds no law of the form that vitscale fit writes.");
    const known = (law) => law.parameters.some((one) => V.is(one.low) || one.given), share = (value) => V.is(value) ? V.percent(value) : "–";
    return [V.h("h2", {}, `What vitscale fit found in ${V.whole(fit.points)} points of ${fit.metric || "?"}`), fit.laws.length > 1 ? V.table("laws", ["Law", "", "Error in sample", "Error in the backtest", ""], fit.laws.map((law) =>
      [law.name, law.formula, share(law.error), share(law.tested), law.chosen ? "chosen" : ""]), [2, 3]) : [], fit.laws.map((law) => known(law) || fit.laws.length === 1 ? [
      V.h("h3", {}, `${law.name}: ${law.formula}`), law.source ? V.h("p", {class: "soft"}, law.source) : null, V.table("fit", ["Parameter", "Value", "95 % bootstrap", "95 % profile", ""], law.parameters.map((one) =>
        [one.name, V.number(one.value), this.span(one.value, one.low, one.high), one.profile ? this.span(one.value, ...one.profile) || "open" : "", one.given ? "given" : one.identified ? "" : "not identified"]), [1, 2, 3]),
      law.warnings.map((said) => V.h("div", {class: "notice"}, said))] : [])];
  }

  verdict(found) {
    if (!found) return [];
    const told = found.judged ? `${V.whole(found.inside)} of ${V.whole(found.of)} held-out runs ended inside their intervals` : `${found.runs.length} held-out runs are predicted; the verdict comes when all are done`;
    const about = [`predicted by ${found.law}, ${found.time}`, V.is(found.rms_log_error) ? `root mean square log error ${V.percent(found.rms_log_error)}` : "", found.before ? "" : "some of the runs had begun by then", found.unchanged ? "" : "the fitted points have changed since"];
    return [V.h("h2", {}, `Verdict: ${told}`), V.h("p", {class: "soft"}, about.filter(Boolean).join(" · ")), V.table("verdict", ["Run", "Predicted", "95 % interval", "Observed", "Off by", ""], found.runs.map((one) =>
      [one.run, V.number(one.predicted), this.span(one.predicted, one.low, one.high), V.number(one.observed), V.is(one.log_error) ? V.percent(Math.exp(one.log_error) - 1) : "–", found.judged ? (one.inside ? "inside" : "outside") : ""]), [1, 2, 3, 4])];
  }

  plan(found) {
    if (!found) return [];
    const names = {n: "Parameters", d: "Images", predicted: "Predicted"}, one = found.recommended, facts = ["width", "depth", "heads", "mlp", "n", "d", "lr", "batch"].filter((name) => V.is(one[name]));
    return [V.h("h2", {}, `Next budget: ${V.number(found.budget)} FLOP`), V.h("p", {class: "soft"}, [found.note, found.law && `by ${found.law}`, found.reason].filter(Boolean).join(" · ")), Object.keys(found.optimum).length ? V.table("plan", ["Optimum", "Value", "95 % interval"],
      Object.entries(found.optimum).map(([name, three]) => [names[name], V.number(three[0]), this.span(...three)]), [1, 2]) : null, facts.length ? V.h("p", {}, `recommended.yaml: ${facts.map((name) =>
      `${{n: "parameters", d: "images"}[name] || name} ${V.number(one[name])}`).join(", ")}`) : null];
  }

  repaint() { for (const chart of this.charts) chart.rebuild(); }
  destroy() { for (const chart of this.charts) chart.destroy(); }
};
