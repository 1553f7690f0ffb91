// The page: asks for news every two seconds, and hands them to its parts.

import { byId, duration, el, number, percent } from "./dom.js";
import { Curves } from "./charts.js";
import { Pipelines } from "./pipeline.js";
import { Samples } from "./samples.js";

const TAGS = ["A", "B"];
const POLL = 2000, POLL_ENDED = 10000;
const TILES = {
  reverse_kl: "reverse KL", entropy: "entropy", reward_mean: "reward", response_length: "response length",
  truncated_fraction: "truncated", staleness_mean: "staleness", logprob_gap_mean: "log-prob gap", seconds_step: "a step takes",
};

async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("the token is of an earlier start: open the address that logratio watch printed");
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** The curves of one run, kept up to date by asking for new rows only. */
class Store {
  constructor(index) {
    Object.assign(this, { index, generation: 0, columns: { step: [] }, overview: null, changed: false });
  }

  get rows() { return this.columns.step.length; }

  async refresh(overview) {
    this.overview = overview;
    this.changed = false;
    while (this.generation !== overview.generation || this.rows < overview.rows) {
      const part = await ask(`/api/runs/${this.index}/curves?generation=${this.generation}&start=${this.rows}`);
      this.add(part);
      this.changed = true;
      if (part.end >= part.total) break;
    }
  }

  add(part) {
    if (part.start === 0) this.columns = { step: [] };
    this.generation = part.generation;
    const names = new Set([...Object.keys(this.columns), ...Object.keys(part.columns)]), count = part.end - part.start;
    for (const name of names) {
      const kept = this.columns[name] ?? new Array(part.start).fill(null);
      this.columns[name] = kept.concat(part.columns[name] ?? new Array(count).fill(null));
    }
  }

  ends(name) {
    const values = (this.columns[name] ?? []).filter((value) => value !== null);
    return values.length ? [values[0], values[values.length - 1]] : null;
  }

  /** Seconds that the steps to come will take, at the pace of the last ten. */
  left() {
    const { step, steps } = this.overview, last = (this.columns.seconds_step ?? []).slice(-10).filter((s) => s !== null);
    return steps > step && last.length ? ((steps - step) * last.reduce((a, b) => a + b)) / last.length : null;
  }
}

function head(store, count) {
  const { name, stage, state, step, steps, version, phase, notes, saved } = store.overview, live = state.kind === "live";
  const left = live ? store.left() : null;
  const facts = [
    version !== null && version !== undefined ? `policy version ${version}` : null,
    phase, left ? `about ${duration(left)} left` : null,
    live && saved !== null ? `checkpoint ${duration(saved)} old` : null,
    state.age !== null && state.text === "no sign of life" ? `status written ${duration(state.age)} ago` : null,
  ].filter(Boolean);
  const bar = el("progress", { max: steps || 1, value: step, "aria-label": "Steps done" });
  return el("article", { class: "head panel" },
    el("div", { class: "title" },
      count > 1 ? el("span", { class: `tag tag-${store.index}`, text: TAGS[store.index] }) : null,
      el("h1", { text: name }),
      stage ? el("span", { class: "muted", text: `stage ${stage}` }) : null,
      el("span", { class: `pill ${state.kind}`, text: state.text })),
    el("div", { class: "progress" }, bar, el("span", { class: "count", text: steps ? `step ${step} of ${steps}` : `step ${step}` })),
    facts.length ? el("p", { class: "muted facts", text: facts.join(" · ") }) : null,
    ...notes.map((note) => el("p", { class: "note", text: note })));
}

function tile(name, label, stores, meanings) {
  const rows = stores.map((store) => {
    const ends = store.ends(name);
    if (!ends) return null;
    const [first, last] = ends, change = first && last !== first ? (last - first) / Math.abs(first) : null;
    const value = name.startsWith("seconds") ? duration(last) : name.endsWith("fraction") ? percent(last) : number(last);
    return el("div", { class: "value" },
      stores.length > 1 ? el("span", { class: `tag tag-${store.index}`, text: TAGS[store.index] }) : null,
      el("b", { text: value }),
      change !== null && Math.abs(change) < 10 ? el("span", { class: "muted", text: `${change > 0 ? "+" : "−"}${percent(Math.abs(change))}` }) : null);
  }).filter(Boolean);
  if (!rows.length) return null;
  return el("div", { class: "tile panel", title: `${meanings[name]}. Beside it: the change since the first step.` }, el("span", { class: "muted", text: label }), ...rows);
}

class Page {
  constructor(about) {
    this.about = about;
    this.stores = [];
    this.curves = new Curves(byId("charts"), about);
    this.pipelines = new Pipelines(byId("pipelines"));
    this.samples = new Samples(byId("columns"), about, ask);
  }

  async refresh() {
    const overviews = await ask("/api/runs");
    overviews.forEach((_, i) => (this.stores[i] ??= new Store(i)));
    await Promise.all(this.stores.map((store, i) => store.refresh(overviews[i])));
    this.draw();
    await this.samples.update(this.stores);
    return this.stores.some((store) => ["live", "quiet"].includes(store.overview.state.kind) && !store.overview.state.ended);
  }

  draw() {
    const { stores } = this, many = stores.length > 1;
    document.title = stores.map(({ overview }) => `${overview.name} ${overview.step}/${overview.steps}`).join(" · ");
    byId("heads").replaceChildren(...stores.map((store) => head(store, stores.length)));
    byId("tiles").classList.toggle("two", many);
    byId("tiles").replaceChildren(...Object.entries(TILES).map(([name, label]) => tile(name, label, stores, this.about.meanings)).filter(Boolean));
    this.pipelines.update(stores.map((store) => store.overview), many ? TAGS : [""]);
    if (stores.some((store) => store.changed) || !this.drawn) this.curves.update(stores, many ? TAGS : [""]);
    byId("no-curves").hidden = stores.some((store) => store.rows);
    this.drawn = true;
  }
}

function pulse(kind, text) {
  const shown = byId("pulse");
  shown.className = `pulse ${kind}`;
  if (shown.textContent !== text) shown.textContent = text;
}

function themes(page) {
  const names = ["auto", "light", "dark"], root = document.documentElement, button = byId("theme");
  const show = () => {
    button.replaceChildren("◐", el("span", { text: ` ${root.dataset.theme}` }));
    button.setAttribute("aria-label", `Theme: ${root.dataset.theme}. Press for the next one.`);
    page.curves.retheme();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private windows forget it */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

async function main() {
  let page = null, timer = 0, busy = false;
  const round = async () => {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    let wait = POLL;
    try {
      if (!page) themes((page = new Page(await ask("/api/page"))));
      const live = await page.refresh();
      wait = live ? POLL : POLL_ENDED;
      const running = page.stores.some((store) => store.overview.state.kind === "live");
      pulse(running ? "live" : "still", running ? "live" : "ended");
    } catch (error) {
      pulse("lost", error instanceof TypeError ? "logratio watch has ended" : error.message);
      if (!(error instanceof TypeError)) console.warn(error);
    }
    busy = false;
    if (!document.hidden) timer = setTimeout(round, wait);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) round(); });
  await round();
  document.documentElement.dataset.ready = "yes";
}

main();
