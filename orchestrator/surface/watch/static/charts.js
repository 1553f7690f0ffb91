// Curves: a small chart for each family of metrics, with one cursor over all of them.

import { byId, colour, el, number, words } from "./dom.js";

// Each has a contrast of more than 3 with the panels of both themes.
const COLOURS = ["#3b82f6", "#d9701f", "#119a83", "#b66ad6", "#a98200", "#7c879a", "#e11d48"];
const HEIGHT = 190, FEW = 60;

/** Columns of a chart's metrics. One that has parts, as a reward has components, is a column `metric.part` for each. */
function columnsOf(metrics, stores) {
  return metrics.flatMap((metric) => {
    const parts = new Set(stores.flatMap((store) => Object.keys(store.columns).filter((name) => name.startsWith(`${metric}.`))));
    return parts.size > 1 ? [...parts] : [metric];
  });
}

const wholeOf = (column) => column.split(".", 1)[0];
const labelOf = (column) => (column.includes(".") ? column.slice(wholeOf(column).length + 1) : words(column).replace(/^(seconds|tokens) /, ""));

/** Series of one chart: a line a column and run, and rings for its held-out values. */
function seriesOf(spec, stores, tags) {
  const found = [], columns = columnsOf(spec.metrics, stores), alone = columns.length === 1;
  stores.forEach((store, run) => columns.forEach((metric, i) => {
    const stroke = COLOURS[(alone ? run : i) % COLOURS.length], label = labelOf(metric) + (tags[run] ? ` ${tags[run]}` : "");
    const values = store.columns[metric];
    if (values && values.some((value) => value !== null)) {
      found.push({ metric, run, stroke, label, steps: store.columns.step, values, rings: false });
    }
    const rings = store.overview.held_out.filter((point) => typeof point[metric] === "number");
    if (rings.length) {
      found.push({ metric, run, stroke, label: `${label}, held out`, steps: rings.map((p) => p.step), values: rings.map((p) => p[metric]), rings: true });
    }
  }));
  return found;
}

/** Means of the last `span` known values at each step; null stays null. */
function smoothed(values, span) {
  const window = [];
  let sum = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    window.push(value);
    sum += value;
    if (window.length > span) sum -= window.shift();
    return sum / window.length;
  });
}

/** Where there are many steps, lines of means are drawn over the faint lines of the values. */
function withMeans(series, choice) {
  return series.flatMap((one) => {
    const span = choice || Math.max(1, Math.round(one.steps.length / 150));
    if (one.rings || span === 1) return [one];
    return [{ ...one, faint: true }, { ...one, values: smoothed(one.values, span), span }];
  });
}

/** Series on one axis: the union of their steps, null where a series has no value. */
function aligned(series) {
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, i) => [step, i]));
  return [steps, ...series.map((one) => {
    const column = new Array(steps.length).fill(null);
    one.steps.forEach((step, i) => { column[place.get(step)] = one.values[i]; });
    return column;
  })];
}

class Chart {
  constructor(spec, meanings) {
    Object.assign(this, { spec, meanings, plot: null, key: "", data: [], series: [] });
    this.legend = el("div", { class: "legend" });
    this.holder = el("div", { class: "plot", tabindex: 0, role: "img", on: { keydown: (event) => this.press(event) } });
    this.root = el("article", { class: "chart panel", data: { chart: spec.metrics[0] } },
      el("h3", { text: spec.title }, " ", el("small", { text: spec.unit })), this.legend, this.holder);
    new ResizeObserver(() => this.plot?.setSize({ width: this.width, height: HEIGHT })).observe(this.holder);
  }

  get width() { return Math.max(200, this.holder.clientWidth); }

  update(stores, tags, span) {
    this.series = withMeans(seriesOf(this.spec, stores, tags), span);
    this.root.hidden = !this.series.length;
    if (!this.series.length) return;
    this.data = aligned(this.series);
    const key = JSON.stringify(this.series.map((one) => [one.label, Boolean(one.faint)])) + (this.data[0].length > FEW);
    if (this.plot && key === this.key) this.follow();
    else this.build(key);
    this.describe();
  }

  /** New data; a reader's zoom stays. */
  follow() {
    const { min, max } = this.plot.scales.x, old = this.plot.data[0];
    const whole = min <= old[0] && max >= old[old.length - 1];
    this.plot.setData(this.data, whole);
    if (!whole) this.plot.setScale("x", { min, max });
    this.read();
  }

  build(key) {
    this.key = key;
    this.plot?.destroy();
    const ink = colour("--muted"), grid = colour("--grid"), panel = colour("--panel"), few = this.data[0].length <= FEW;
    const axis = { stroke: ink, font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: grid, width: 1 } };
    this.plot = new uPlot({
      width: this.width, height: HEIGHT, legend: { show: false }, padding: [8, 18, 0, 0],
      cursor: { sync: { key: "steps" }, points: { size: 7 }, y: false, focus: { prox: 24 } },
      scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: (u, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 26, gap: 4, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000], values: (u, ticks) => ticks.map((t) => (Number.isInteger(t) ? String(t) : "")) },
        { ...axis, size: 50, gap: 4, values: (u, ticks) => ticks.map(number) },
      ],
      series: [{}, ...this.series.map((one) => (one.rings
        ? { stroke: one.stroke, paths: () => null, points: { show: true, size: 10, width: 2, stroke: one.stroke, fill: panel } }
        : one.faint ? { stroke: `${one.stroke}44`, width: 1, spanGaps: true, points: { show: false } }
        : { stroke: one.stroke, width: 2, dash: one.run ? [6, 4] : undefined, spanGaps: true, points: { show: few, size: 5, fill: one.stroke } }))],
      hooks: { setCursor: [() => this.read()] },
    }, this.data, this.holder);
    this.draw_legend();
  }

  /** The y axis: from zero, but for quantities whose zero means little. */
  range(low, high) {
    if (low === null || high === null) return [0, 1];
    const space = (high - low || Math.abs(high) || 1) * 0.08;
    if (this.spec.free) return [low - space, high + space];
    return [Math.min(0, low - (low < 0 ? space : 0)), Math.max(high + space, low < 0 ? 0 : 1e-9)];
  }

  draw_legend() {
    this.values = this.series.map(() => el("b"));
    const several = this.series.some((one) => one.run);
    this.legend.replaceChildren(...this.series.map((one, i) => (one.faint || (several && one.rings) ? null : el("span", { class: one.rings ? "key ring" : one.run ? "key dash" : "key", title: this.meanings[wholeOf(one.metric)], vars: { "--c": one.stroke } },
      el("i"), one.label + " ", this.values[i]))).filter(Boolean));
    this.read();
  }

  /** The legend's numbers: at the cursor, else the last ones. */
  read() {
    if (!this.values) return;
    const at = this.plot?.cursor.idx ?? null;
    this.series.forEach((one, i) => {
      const column = this.data[i + 1];
      const value = at !== null ? column[at] : column.findLast((v) => v !== null);
      this.values[i].textContent = number(value ?? null);
    });
  }

  describe() {
    const said = this.series.filter((one) => !one.rings && !one.faint).map((one) => {
      const values = one.values.filter((value) => value !== null);
      return `${one.label} from ${number(values[0])} to ${number(values[values.length - 1])}`;
    });
    this.holder.setAttribute("aria-label", `${this.spec.title}, ${this.spec.unit}: ${said.join(", ")}`);
  }

  press(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }, move = moves[event.key];
    if (event.key === "Escape") { this.plot.setCursor({ left: -10, top: -10 }); return; }
    if (move === undefined || !this.plot) return;
    event.preventDefault();
    const steps = this.data[0], now = this.plot.cursor.idx ?? (move < 0 ? steps.length : -1);
    const index = Math.min(steps.length - 1, Math.max(0, now + move));
    this.plot.setCursor({ left: this.plot.valToPos(steps[index], "x"), top: HEIGHT / 3 });
  }
}

export class Curves {
  constructor(root, about) {
    this.charts = about.charts.map((spec) => new Chart(spec, about.meanings));
    root.replaceChildren(...this.charts.map((chart) => chart.root));
    this.last = null;
    byId("smooth").addEventListener("change", () => this.last && this.update(...this.last));
  }

  update(stores, tags) {
    this.last = [stores, tags];
    const span = Number(byId("smooth").value);
    for (const chart of this.charts) chart.update(stores, tags, span);
  }

  /** Canvases know no style sheet: draw them anew. */
  retheme() {
    for (const chart of this.charts) chart.key = "";
    if (this.last) this.update(...this.last);
  }
}
