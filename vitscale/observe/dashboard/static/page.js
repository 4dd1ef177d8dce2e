"use strict";
/* Where the numbers come from (the server, or the report's own), which view is shown, and when it is fed again. */

V.Live = class {
  constructor(page) { this.page = page; this.frozen = false; }

  /* JSON; null when nothing is new (304), when it is gone, or when the server does not answer. */
  async get(path, holder) {
    const answer = await fetch(path, {headers: holder && holder.tag ? {"If-None-Match": holder.tag} : {}, cache: "no-store", signal: this.page.leaving.signal});
    if (answer.status === 304) return null;
    if (!answer.ok) { this.page.gone(await answer.text()); return null; }
    if (holder) holder.tag = answer.headers.get("ETag");
    return answer.json();
  }

  picture(id, at) { return `api/run/${id}/picture/${at}`; }
};

V.Frozen = class {
  constructor(held) { this.held = held; this.frozen = true; }
  async get(path) { return path.includes("axis=step") ? this.held.step : this.held.time; }
  picture(id, at) { return this.held.pictures[String(at)] || null; }
};

V.Page = class {
  constructor() {
    this.leaving = new AbortController();
    this.source = V.held ? new V.Frozen(V.held) : new V.Live(this);
    this.place = V.h("span", {class: "where"});
    this.pulse = V.h("span", {class: "pulse"});
    this.said = V.h("div", {class: "hidden", role: "status", "aria-live": "polite"});
    this.trouble = V.h("div", {class: "lost", role: "alert", hidden: true});
    this.main = V.h("main", {id: "main", tabindex: -1});
    V.swap(document.getElementById("page"), V.h("a", {class: "skip", href: "#main", on: {click: (event) => { event.preventDefault(); this.main.focus(); }}}, "To the numbers"),
      V.header(() => this.repaint(), this.place, this.pulse), this.trouble, this.main, this.said);
    addEventListener("hashchange", () => this.route());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && this.view.find && document.activeElement !== this.view.find) { event.preventDefault(); this.view.find.focus(); }
    });
    this.route();
  }

  route() {
    if (this.view) this.view.destroy();
    this.leaving.abort();           /* what the view before asked for is not shown in this one */
    this.leaving = new AbortController();
    const [, kind, rest] = location.hash.split("/");
    this.view = this.source.frozen ? new V.Run(this, this.source.held.time.run.id) : kind === "run" && rest ? new V.Run(this, encodeURIComponent(rest)) : kind === "compare" && rest ? new V.Compare(this, rest)
      : kind === "sweep" && rest ? new V.Sweep(this, encodeURIComponent(rest)) : new V.Overview(this);
    this.place.replaceChildren();
    if (this.source.frozen) this.place.append(`report of ${V.clock(this.source.held.time.now)}`);
    else if (!(this.view instanceof V.Overview)) this.place.append(V.h("a", {href: "#/"}, "← all runs"));
    V.swap(this.main, this.view.element);
    scrollTo(0, 0);
    this.refresh();
  }

  refresh() {
    clearTimeout(this.timer);
    this.asked = (this.asked || 0) + 1;
    this.turn(this.asked);
  }

  async turn(asked) {
    let soon = null;
    const view = this.view;
    try {
      soon = await view.update();
      if (view !== this.view) return;
      this.trouble.hidden = true;
      if (!this.source.frozen) V.text(this.pulse, `as of ${V.clock(Date.now() / 1000).slice(11)}`);
      this.main.dataset.ready = "yes";
    } catch (error) {
      if (view !== this.view || error.name === "AbortError") return;
      if (!(error instanceof TypeError) || !/fetch/i.test(error.message)) console.error(error);
      V.text(this.trouble, `${/fetch/i.test(error.message) ? "The server does not answer" : `This view could not be drawn (${error.message})`}; what is shown is as it was. Trying again.`);
      this.trouble.hidden = false;
    }
    if (this.source.frozen || asked !== this.asked) return;
    this.timer = setTimeout(() => { if (document.hidden) this.timer = null; else this.refresh(); }, soon || 2000);
  }

  gone(why) { V.text(this.trouble, why.slice(0, 300)); this.trouble.hidden = false; throw new DOMException("gone", "AbortError"); }
  where(folder) { V.text(this.place, folder); }
  title(text) { document.title = `${text} · vitscale`; }
  announce(text) { V.text(this.said, text); }
  repaint() { if (this.view && this.view.repaint) this.view.repaint(); }
};

V.page = new V.Page();
