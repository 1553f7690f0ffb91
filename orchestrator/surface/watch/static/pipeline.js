// The run as a pipeline: a card a role, the queues on the way, and the way back of the weights.

import { duration, el, number, percent } from "./dom.js";

const TITLES = { rollout: "rollout", teacher_rollout: "teacher's rollout", dataset: "dataset", reward: "reward", learner: "learner" };
const SIGNS = { rollout: "student samples", teacher_rollout: "teacher samples", dataset: "reads responses", reward: "rewards responses", learner: "moves the student" };
const kind = (role) => (role.startsWith("scorer.") ? "scorer" : role === "reward" ? "reward" : role === "learner" ? "learner" : "writer");

function members(role) {
  const made = role.members.length
    ? role.members.map((member) => el("i", { class: `member ${member.state}`, title: told(member) }))
    : Array.from({ length: Math.min(role.size, 128) }, () => el("i", { class: "member unknown" }));
  const more = role.size - made.length;
  return el("div", { class: "members", "aria-hidden": "true" }, ...made, more > 0 ? el("span", { class: "muted", text: `+${more}` }) : null);
}

function told(member) {
  const parts = [member.name, member.state, member.version !== null ? `version ${member.version}` : null, member.load ? `load ${number(member.load)}` : null, member.restarts ? `${member.restarts} restarts` : null];
  return parts.filter(Boolean).join(", ");
}

function meter(role) {
  const { busy, waiting } = role;
  if (busy === null && waiting === null) return el("p", { class: "muted small", text: "busy share not known" });
  const text = [`${percent(busy)} busy`, waiting !== null ? `${percent(waiting)} waiting` : null].filter(Boolean).join(" · ");
  return el("div", {},
    el("div", { class: "meter", role: "img", "aria-label": text, vars: { "--busy": busy ?? 0, "--waiting": Math.min(waiting ?? 0, 1 - (busy ?? 0)) } }, el("i", { class: "busy" }), el("i", { class: "waiting" })),
    el("p", { class: "small", text }));
}

function gain(role, bottleneck) {
  const more = bottleneck?.one_more?.[role.role];
  if (typeof more !== "number") return null;
  const text = more >= 0.005 ? `one more: +${percent(more)}` : "one more brings nothing";
  return el("p", { class: more >= 0.005 ? "gain" : "gain none", text });
}

function card(role, pipeline) {
  const narrow = pipeline.bottleneck?.role === role.role, name = role.role;
  const title = name.startsWith("scorer.") ? name.slice(7) : (TITLES[name] ?? name);
  const sign = name.startsWith("scorer.") ? "scores every token" : (SIGNS[name] ?? "");
  return el("article", { class: `role ${narrow ? "bottleneck" : ""}`, data: { role: name, stage: kind(name) } },
    el("header", {}, el("b", { text: title }), el("span", { class: "size", text: `× ${role.size}` }),
      narrow ? el("span", { class: "badge", text: pipeline.measured === "live" ? "bottleneck" : "busiest" }) : null),
    el("p", { class: "muted small", text: sign }),
    members(role), meter(role), gain(role, pipeline.bottleneck),
    role.restarts ? el("p", { class: "warn small", text: `${role.restarts} restart${role.restarts === 1 ? "" : "s"}` }) : null);
}

function source(pipeline) {
  const { prompts, samples_per_prompt: each } = pipeline;
  return el("article", { class: "role slim", data: { stage: "prompts" } },
    el("header", {}, el("b", { text: "prompts" })),
    prompts ? el("p", { class: "small", text: `${prompts} a step` }) : null,
    each > 1 ? el("p", { class: "small", text: `${each} samples each` }) : null);
}

function buffer(pipeline, perStep) {
  const queue = pipeline.queues.learn, full = queue && perStep ? Math.min(1, queue.depth / perStep) : null;
  return el("article", { class: "role slim", data: { stage: "buffer" } },
    el("header", {}, el("b", { text: "buffer" })),
    full !== null ? el("div", { class: "meter", vars: { "--busy": full, "--waiting": 0 } }, el("i", { class: "busy" })) : null,
    queue ? el("p", { class: "small", text: perStep ? `${number(queue.depth)} of ${perStep}` : `${number(queue.depth)} samples` }) : el("p", { class: "muted small", text: "scored samples" }),
    queue?.oldest_seconds ? el("p", { class: "muted small", text: `oldest ${duration(queue.oldest_seconds)}` }) : null,
    pipeline.max_staleness !== null ? el("p", { class: "muted small", text: pipeline.max_staleness ? `up to ${pipeline.max_staleness} version${pipeline.max_staleness > 1 ? "s" : ""} old` : "on-policy" }) : null);
}

const stack = (name, cards) => (cards.length ? el("div", { class: `stage ${name}` }, ...cards) : null);

/** What is on its way to a role: responses, or tokens on the way to a scorer. */
function queueText(queue, edge) {
  if (!queue || queue.depth === null) return null;
  const depth = `${number(queue.depth)} ${edge === "score" ? "tokens" : "samples"}`;
  return queue.depth && queue.oldest_seconds ? `${depth}\noldest ${duration(queue.oldest_seconds)}` : depth;
}

function sentence(pipeline) {
  const found = pipeline.bottleneck;
  if (!found) return "The bottleneck is not known yet.";
  if (pipeline.measured !== "live") return `${found.role} was the busiest role over the last steps (${percent(found.busy)}).`;
  const more = Object.entries(found.one_more ?? {}).map(([role, share]) => `one more ${role}: ${share < 0.005 ? "nothing" : `+${percent(share)}`}`);
  const pace = found.samples_per_second ? `, ${number(found.samples_per_second)} samples/s` : "";
  return `${found.role} is the bottleneck (${percent(found.busy)} busy${pace})${more.length ? `; ${more.join(", ")}` : ""}.`;
}

function table(pipeline) {
  const all = pipeline.roles.flatMap((role) => role.members);
  if (!all.length) return null;
  const row = (cells, tag) => el("tr", {}, ...cells.map((cell) => el(tag, { text: cell === null || cell === undefined ? "–" : String(cell) })));
  return el("table", {}, el("thead", {}, row(["member", "state", "version", "load", "restarts"], "th")),
    el("tbody", {}, ...all.map((member) => row([member.name, member.state, member.version, member.load, member.restarts], "td"))));
}

class Drawing {
  constructor(tag, index) {
    this.flow = el("div", { class: "flow" });
    this.lines = el("svg:svg", { class: "lines", "aria-hidden": "true" });
    this.chips = el("div", { class: "chips" });
    this.said = el("p", { class: "said" });
    this.note = el("p", { class: "muted small" });
    this.list = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Members" });
    this.details = el("details", {}, el("summary", { text: "Members" }), this.list);
    this.root = el("div", { class: "pipeline panel" },
      tag ? el("p", { class: "of" }, el("span", { class: `tag tag-${index}`, text: tag }), (this.name = el("b"))) : null,
      el("div", { class: "canvas" }, this.lines, this.flow, this.chips), this.said, this.note, this.details);
    this.shown = "";
    new ResizeObserver(() => this.connect()).observe(this.flow);
  }

  update(overview) {
    const { pipeline, version, state } = overview, shown = JSON.stringify([pipeline, version, state.kind]);
    if (shown === this.shown) return;
    this.shown = shown;
    if (this.name) this.name.textContent = overview.name;
    this.pipeline = pipeline;
    this.version = version;
    this.root.classList.toggle("live", state.kind === "live");
    const of = (name) => pipeline.roles.filter((role) => kind(role.role) === name).map((role) => card(role, pipeline));
    const perStep = (pipeline.prompts ?? 0) * (pipeline.samples_per_prompt ?? 1);
    this.flow.replaceChildren(...[
      stack("first", [source(pipeline)]), stack("writers", of("writer")), stack("judges", [...of("scorer"), ...of("reward")]),
      stack("between", [buffer(pipeline, perStep)]), stack("learners", of("learner")),
    ].filter(Boolean));
    this.said.textContent = sentence(pipeline);
    this.note.textContent = pipeline.measured === "live" ? "Shares are of the last minute, from status.json."
      : "This run wrote no live status: sizes are from its recipe, shares over its last 10 steps.";
    const members = table(pipeline);
    this.details.hidden = !members;
    if (members) this.list.replaceChildren(members);
    this.connect();
  }

  /** Lines between the cards, wherever the page has put them. */
  connect() {
    if (!this.pipeline) return;
    const frame = this.flow.getBoundingClientRect(), stages = [...this.flow.children];
    this.lines.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    const down = getComputedStyle(this.flow).flexDirection === "column", made = [];
    this.chips.replaceChildren();
    for (let i = 0; i + 1 < stages.length; i++) {
      for (const from of stages[i].children) for (const to of stages[i + 1].children) made.push(this.edge(from, to, frame, down));
    }
    const back = this.wayBack(frame, down);
    const arrow = el("svg:marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, el("svg:path", { d: "M0 0L8 4L0 8z", class: "tip-of-arrow" }));
    this.lines.replaceChildren(el("svg:defs", {}, arrow), ...made, ...back);
  }

  edge(from, to, frame, down) {
    const a = from.getBoundingClientRect(), b = to.getBoundingClientRect(), x = (r) => r - frame.left, y = (r) => r - frame.top;
    const [x1, y1, x2, y2] = down
      ? [x((a.left + a.right) / 2), y(a.bottom), x((b.left + b.right) / 2), y(b.top) - 3]
      : [x(a.right), y((a.top + a.bottom) / 2), x(b.left) - 3, y((b.top + b.bottom) / 2)];
    const half = down ? (y2 - y1) / 2 : (x2 - x1) / 2;
    const path = down ? `M${x1} ${y1}C${x1} ${y1 + half} ${x2} ${y2 - half} ${x2} ${y2}` : `M${x1} ${y1}C${x1 + half} ${y1} ${x2 - half} ${y2} ${x2} ${y2}`;
    const stage = to.dataset.stage, edges = { writer: "rollout", scorer: "score", reward: "reward" };
    const text = queueText(this.pipeline.queues[edges[stage]], edges[stage]);
    if (text) this.chip(down ? text.replace("\n", " · ") : text, down ? x2 : (x1 + x2) / 2, (y1 + y2) / 2 - (down ? 3 : 0), down);
    return el("svg:path", { d: path, class: "way", "marker-end": "url(#arrow)" });
  }

  /** From the learner back to who samples: the published weights. */
  wayBack(frame, down) {
    const learner = this.flow.querySelector('[data-stage="learner"]'), writer = this.flow.querySelector('[data-stage="writer"]');
    if (!learner || !writer) return [];
    const a = learner.getBoundingClientRect(), b = writer.getBoundingClientRect(), x = (r) => r - frame.left, y = (r) => r - frame.top;
    const low = frame.height - 14, r = 10;
    const path = down
      ? `M${x(a.left)} ${y((a.top + a.bottom) / 2)}H${10 + r}Q10 ${y((a.top + a.bottom) / 2)} 10 ${y((a.top + a.bottom) / 2) - r}V${y((b.top + b.bottom) / 2) + r}Q10 ${y((b.top + b.bottom) / 2)} ${10 + r} ${y((b.top + b.bottom) / 2)}H${x(b.left) - 3}`
      : `M${x((a.left + a.right) / 2)} ${y(a.bottom)}V${low - r}Q${x((a.left + a.right) / 2)} ${low} ${x((a.left + a.right) / 2) - r} ${low}H${x((b.left + b.right) / 2) + r}Q${x((b.left + b.right) / 2)} ${low} ${x((b.left + b.right) / 2)} ${low - r}V${y(b.bottom) + 3}`;
    const said = [this.version !== null && this.version !== undefined ? `weights, version ${this.version}` : "weights", this.pipeline.publish ? `${duration(this.pipeline.publish)} to publish and pull` : null];
    this.chip(said.filter(Boolean).join(" · "), down ? x((a.left + a.right) / 2) : (x(a.left) + x(b.right)) / 2, down ? frame.height - 10 : low, false, "wide");
    return [el("svg:path", { d: path, class: "way back", "marker-end": "url(#arrow)" })];
  }

  chip(text, x, y, down, more = "") {
    this.chips.append(el("span", { class: `chip ${more} ${down ? "down" : ""}`, text, vars: { left: `${x}px`, top: `${y}px` } }));
  }
}

export class Pipelines {
  constructor(root) {
    this.root = root;
    this.drawings = [];
  }

  update(overviews, tags) {
    overviews.forEach((overview, i) => {
      if (!this.drawings[i]) this.root.append((this.drawings[i] = new Drawing(tags[i], i)).root);
      this.drawings[i].update(overview);
    });
  }
}
