"use strict";
/* A sheet: texts, tables and charts one below the other, as vitscale/pages/sheet.py tells them. */

V.Sheet = class {
  constructor({title, parts}) {
    this.charts = [];
    const main = V.h("main", {}, V.h("h1", {}, title), parts.map((part) => this.drawn(part)));
    V.swap(document.getElementById("page"), V.header(() => this.charts.forEach((chart) => chart.rebuild()), V.h("span", {class: "where"}, title)), main);
    main.dataset.ready = "yes";
  }

  drawn(part) {
    if (part.heading) return V.h("h2", {}, part.heading);
    if (part.rows) return V.table("", part.heads, part.rows, part.right);
    if (!part.chart) return V.h("p", {class: part.kind}, part.words);
    const chart = new V.Chart({...part.chart, xlog: true, xkind: "short", xformat: V.short, scatter: true, height: 360, whole: true, loggable: part.chart.log});
    this.charts.push(chart);
    chart.feed(part);
    return chart.element;
  }
};

V.sheet = new V.Sheet(V.held);
