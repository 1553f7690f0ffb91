// Recorded responses, token by token. Whatever a model wrote stays text.

import { byId, el, number, signed } from "./dom.js";

const TAGS = ["A", "B"];

/** A token's text, with line ends that can be seen. */
function text(token) {
  const parts = token.split("\n");
  return parts.flatMap((part, i) => (i ? [el("i", { class: "end", text: "↵" }), "\n", part] : [part]));
}

const special = (token) => /^(<[|｜][^<>|｜]{1,40}[|｜]>|<\/?s>|<(bos|eos|pad|unk|(start|end)_of_turn)>)$/.test(token);

class Tip {
  constructor() {
    this.root = byId("tip");
    this.token = null;
    document.addEventListener("scroll", () => this.hide(), true);
    document.addEventListener("pointerdown", (event) => event.target.closest?.(".tokens") || this.hide());
  }

  show(span, token) {
    const [written, ratio, student, teacher, loss, others] = token;
    const line = (name, value) => el("div", { class: "line" }, el("span", { text: name }), el("b", { text: value }));
    const chance = (logprob) => (logprob === null ? "–" : `${logprob.toFixed(2)}   ${number(100 * Math.exp(logprob))} %`);
    this.token?.classList.remove("at");
    this.token = span;
    span.classList.add("at");
    this.root.replaceChildren(
      el("div", { class: "quoted", text: JSON.stringify(written) }),
      line("log-ratio", signed(ratio)), line("student log q", chance(student)), line("teacher log p", chance(teacher)),
      ...(loss ? [] : [el("div", { class: "muted", text: "carries no loss" })]),
      ...(others.length ? [el("div", { class: "muted", text: "the teacher's likeliest" }), ...others.map(([other, logprob]) =>
        el("div", { class: "line other", vars: { "--p": Math.exp(logprob) } }, el("span", { text: JSON.stringify(other) }), el("b", { text: `${number(100 * Math.exp(logprob))} %` })))] : []));
    this.root.hidden = false;
    this.place(span);
  }

  place(span) {
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), mine = this.root.getBoundingClientRect();
    const above = box.top - mine.height - 8;
    this.root.style.left = `${Math.max(6, Math.min(box.left, innerWidth - mine.width - 6))}px`;
    this.root.style.top = `${above > 56 ? above : box.bottom + 8}px`;
  }

  hide() {
    this.token?.classList.remove("at");
    this.token = null;
    this.root.hidden = true;
  }
}

export class Samples {
  constructor(root, about, ask) {
    Object.assign(this, { root, about, ask, steps: [], step: null, follow: true, known: "", columns: [], tip: new Tip() });
    this.scale();
    byId("first").addEventListener("click", () => this.go(0));
    byId("previous").addEventListener("click", () => this.go(this.steps.indexOf(this.step) - 1));
    byId("next").addEventListener("click", () => this.go(this.steps.indexOf(this.step) + 1));
    byId("step").addEventListener("input", (event) => this.go(Number(event.target.value)));
    byId("follow").addEventListener("change", (event) => {
      this.follow = event.target.checked;
      if (this.follow) this.go(this.steps.length - 1, true);
    });
  }

  scale() {
    const steps = [-1, -0.5, 0, 0.5, 1];
    byId("scale").replaceChildren(...steps.map((share) => el("span", { class: share < 0 ? "neg" : share ? "pos" : "", text: share ? signed(share * this.about.clip, 1) : "0", vars: { "--a": Math.abs(share) } })));
  }

  /** New steps, if there are any. */
  async update(stores) {
    const known = JSON.stringify(stores.map((store) => store.overview.recorded));
    if (known === this.known) return;
    const lists = await Promise.all(stores.map((store) => (store.overview.recorded ? this.ask(`/api/runs/${store.index}/samples`) : [])));
    Object.assign(this, { known, lists });
    this.stores = stores;
    this.steps = [...new Set(lists.flat())].sort((a, b) => a - b);
    byId("picker").hidden = !this.steps.length;
    if (!this.steps.length) {
      this.root.replaceChildren(el("p", { class: "panel empty", text: "No samples are recorded yet. The recipe's record.every says after which steps they are." }));
      return;
    }
    if (this.follow || !this.steps.includes(this.step)) await this.go(this.steps.length - 1, true);
    else this.mark();
  }

  async go(index, follow = false) {
    index = Math.max(0, Math.min(this.steps.length - 1, index));
    if (!follow) byId("follow").checked = this.follow = false;
    this.step = this.steps[index];
    this.mark();
    const step = this.step;
    const pages = await Promise.all(this.stores.map((store) => this.page(store.index, this.nearest(store.index), 0)));
    if (step !== this.step) return; // a later choice was made meanwhile
    this.tip.hide();
    this.root.classList.toggle("two", this.stores.length > 1);
    this.replace(pages.map((page, i) => this.column(page, i)));
  }

  /** New columns. Who reads by keyboard stays where they were: a live run replaces samples at every step. */
  replace(columns) {
    const places = () => [...this.root.querySelectorAll("summary, .tokens, button")], at = places().indexOf(document.activeElement);
    this.root.replaceChildren(...columns);
    if (at >= 0) places().slice(0, at + 1).at(-1)?.focus({ preventScroll: true });
  }

  mark() {
    const index = this.steps.indexOf(this.step), slider = byId("step");
    slider.max = this.steps.length - 1;
    slider.value = index;
    slider.setAttribute("aria-valuetext", `step ${this.step}`);
    byId("step-name").textContent = `step ${this.step}`;
    byId("first").disabled = byId("previous").disabled = index <= 0;
    byId("next").disabled = index >= this.steps.length - 1;
    if (document.activeElement.disabled) slider.focus(); // a button that is at its end would drop the focus
  }

  /** The chosen step of a run, or its last recorded one before: two runs need not have recorded the same ones. */
  nearest(run) {
    return this.lists[run].findLast((step) => step <= this.step) ?? null;
  }

  /** A page of samples; null where there is none, or where it has gone meanwhile. */
  async page(run, step, start) {
    if (step === null) return null;
    try {
      return await this.ask(`/api/runs/${run}/samples/${step}?start=${start}`);
    } catch {
      return null;
    }
  }

  column(page, run) {
    const tag = this.stores.length > 1 ? el("p", { class: "of" }, el("span", { class: `tag tag-${run}`, text: TAGS[run] }), el("b", { text: this.stores[run].overview.name }), page ? el("span", { class: "muted", text: `step ${page.step}` }) : null) : null;
    const list = el("div", { class: "list" });
    const column = el("div", { class: "column" }, tag, list);
    if (page) this.add(list, page, run);
    else list.append(el("p", { class: "panel empty", text: `No samples up to step ${this.step}.` }));
    return column;
  }

  add(list, page, run) {
    if (!page.readable) list.append(el("p", { class: "note", text: "The student's tokenizer is not on this machine: ids are shown." }));
    list.append(...page.samples.map((sample) => this.card(sample)));
    const shown = page.start + page.samples.length;
    if (shown < page.total) {
      const more = el("button", { type: "button", class: "button more", text: `more (${page.total - shown})` });
      more.addEventListener("click", async () => {
        const next = await this.page(run, page.step, shown);
        const focused = document.activeElement === more;
        more.remove();
        if (next) this.add(list, next, run);
        if (focused) list.querySelectorAll("summary")[shown]?.focus({ preventScroll: true });
      });
      list.append(more);
    }
  }

  card(sample) {
    const [low, high] = sample.versions ?? [null, null];
    const facts = [
      `${sample.length} tokens, ended by ${sample.finish}`,
      sample.mean !== null ? `mean log-ratio ${signed(sample.mean, 3)}` : "not scored by a teacher",
      sample.reward !== null ? `reward ${number(sample.reward)}` : null,
      low !== null ? `policy version ${low === high ? low : `${low} to ${high}`}` : null,
    ].filter(Boolean);
    return el("article", { class: "sample panel", data: { uid: sample.uid } },
      el("details", { class: "question" }, el("summary", { text: short(sample.question) || "(an empty prompt)" }), el("pre", { text: sample.prompt })),
      this.tokens(sample),
      sample.more ? el("p", { class: "muted small", text: `… and ${sample.more} more tokens` }) : null,
      el("p", { class: "meta" }, ...facts.map((fact) => el("span", { text: fact }))));
  }

  tokens(sample) {
    const { clip, neutral } = this.about;
    const spans = sample.tokens.map((token) => {
      const [written, ratio, , , loss] = token, size = Math.abs(ratio ?? 0);
      const classes = [size < neutral ? "" : ratio < 0 ? "neg" : "pos", special(written) ? "special" : "", loss ? "" : "off"];
      return el("span", { class: classes.filter(Boolean).join(" "), vars: { "--a": Math.min(size, clip) / clip } }, ...text(written));
    });
    const at = (event) => spans.indexOf(event.target.closest(".tokens > span"));
    const show = (index) => (index >= 0 ? this.tip.show(spans[index], sample.tokens[index]) : this.tip.hide());
    let here = -1;
    const press = (event) => {
      const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity, Enter: 0, " ": 0 };
      if (event.key === "Escape") { this.tip.hide(); return; }
      if (!(event.key in moves) || !spans.length) return;
      event.preventDefault();
      here = Math.max(0, Math.min(spans.length - 1, here + moves[event.key]));
      spans[here].scrollIntoView({ block: "nearest" });
      requestAnimationFrame(() => show(here));
    };
    return el("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens of the response; arrow keys move from one to the next, Enter tells of one",
      on: { pointerover: (event) => show(at(event)), pointerdown: (event) => show((here = at(event))), pointerleave: (event) => event.pointerType === "touch" || this.tip.hide(), keydown: press, blur: () => this.tip.hide() } }, ...spans);
  }
}

const short = (question) => (question.length > 160 ? `${question.slice(0, 159)}…` : question);
