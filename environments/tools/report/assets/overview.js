"use strict";
// The first page: is the run good, what is it, where did its time go, what went wrong, what to run next.

const first = { set: 0, axis: "steps" };
const VERDICTS = {
  better: "Better than at the start", worse: "Worse than at the start",
  unclear: "No difference shown yet", single: "Evaluated once, so there is nothing to compare",
};

function score(title, one, note) {
  return el("div", { class: "score" }, el("div", { class: "quiet", text: title }), el("div", { class: "large", text: percent(one.pass_at_1) }),
    el("div", { class: "quiet", text: [ends(one.ci95), note ?? (one.version == null ? "" : `weights ${one.version}`)].filter(Boolean).join(" · ") }));
}

function headlineCard(told) {
  const card = el("div", { class: `card headline ${told ? told.verdict : ""}` }, el("h2", { text: "Held-out pass@1" }));
  if (!told) {
    card.append(el("p", { text: data.evaluating ? `Being measured now: ${data.evaluating.toLocaleString()} samples are judged so far.`
      : "No held-out evaluation in this folder: the curve shows the rollouts of training alone." }));
    return card;
  }
  const gain = told.gain == null ? "" : `${told.gain >= 0 ? "+" : ""}${(100 * told.gain).toFixed(1)} points`;
  const between = told.gain_ci95 ? ` [${told.gain_ci95.map((end) => (100 * end).toFixed(1)).join(", ")}]` : "";
  card.append(el("p", { class: "verdict" }, el("strong", { text: VERDICTS[told.verdict] }), gain ? `: ${gain}${between}` : "."));
  const scores = el("div", { class: "scores" }, score(told.gain == null ? "Measured" : "Before", told.before));
  if (told.gain != null) scores.append(el("span", { class: "arrow", text: "→", "aria-hidden": "true" }), score("Now", told.now));
  const best = data.overview.best;
  if (best) scores.append(score("Best checkpoint", best, best.checkpoint));
  else if (told.best.pass_at_1 > told.now.pass_at_1) scores.append(score("Best so far", told.best));
  card.append(scores, el("p", { class: "quiet", text: `on ${told.set}, with 95 % intervals over problems` + (between ? "; the gain's is paired" : "") }));
  return card;
}

function factsCard() {
  const list = el("dl", {});
  for (const [name, value] of data.overview.facts) list.append(el("div", {}, el("dt", { text: name }), el("dd", { text: value })));
  const { state } = data.overview;
  if (state.kind === "running" && state.detail) list.append(el("div", { class: "all" }, el("dt", { text: "The trainer's log says" }), el("dd", {}, el("code", { text: state.detail }))));
  return el("div", { class: "card" }, el("h2", { text: "The run" }), list);
}

function learningCard() {
  const { learning, sampled } = data.overview, chosen = learning[first.set] || learning[0];
  const lines = [];
  if (chosen && chosen.points.length) lines.push({ name: `Held out: ${chosen.name}`, points: chosen.points, color: "--s0", width: 3, key: "held-out",
    hint: "pass@1 of the evaluations, with the 95 % interval over problems." });
  if (sampled.length) lines.push({ name: "While sampling", points: sampled, color: "--s1", width: 1.5, key: "sampled",
    hint: "Pass rate of all rollouts by the weights that sampled them, flat groups included, with the 95 % interval over groups." });
  if (!lines.length) return null;
  const host = el("div", { class: "plot", role: "img", "aria-label": sentence("Learning curve", "pass@1", lines, percent) });
  const again = () => fill("overview");
  const tools = el("form", { class: "tools", onsubmit: (event) => event.preventDefault() },
    choices("first-axis", "Across", axesAtHand(), first.axis, (value) => { first.axis = value; again(); }));
  if (learning.length > 1) tools.prepend(choices("first-set", "Set", Object.fromEntries(learning.map((one, i) => [i, one.name])), String(first.set),
    (value) => { first.set = Number(value); again(); }));
  const card = el("div", { class: "card learning" }, el("div", { class: "row" }, el("h2", { text: "Learning curve" }), tools), host);
  card.draw = () => {
    const columns = aligned(lines, first.axis, 3);
    const order = [columns[0], ...lines.flatMap((_, i) => [1, 0, 2].map((k) => columns[1 + 3 * i + k]))];  // low, mean, high
    const series = lines.flatMap((one) => [{ ...one, hidden: true }, one, { ...one, hidden: true }]);
    const chart = plot(host, order, series, { height: Math.min(Math.max(innerHeight * 0.42, 260), 460), percent: true, alone: true, label: AXES[first.axis], whole: first.axis === "steps",
      bands: lines.map((one, i) => [3 * i + 3, 3 * i + 1, one.color]) });
    card.append(legend(chart, lines, percent, 3), numbersOf("Learning curve", ["step", ...lines.flatMap((one) => [one.name, "low", "high"])],
      () => { const [steps, ...values] = aligned(lines, "steps", 3); return steps.map((step, i) => [step, ...values.map((column) => column[i])]); }));
  };
  return card;
}

function timeCard() {
  const parts = data.overview.time, total = parts.reduce((sum, part) => sum + part[1], 0);
  if (!total) return null;
  const bar = el("div", { class: "bar", "aria-hidden": "true" }), list = el("ul", { class: "parts" });
  parts.forEach(([name, value, hint], index) => {
    const piece = el("span", { class: `s${index % 6}` });
    piece.style.flexGrow = value;
    bar.append(piece);
    list.append(el("li", { title: hint }, el("span", { class: `dot s${index % 6}` }), `${name} `, el("strong", { text: percent(value / total, 0) }),
      el("span", { class: "quiet", text: ` ${seconds(value)}` })));
  });
  const busy = data.overview.busy == null ? "" : ` Generation slots were busy ${percent(data.overview.busy, 0)} of it.`;
  return el("div", { class: "card" }, el("h2", { text: "Where the time went" }), bar, list,
    el("p", { class: "quiet", text: `${seconds(total)} of steps.${busy}` }));
}

function faultsCard() {
  const { faults, state } = data.overview, list = el("ul", { class: "faults" });
  if (state.kind === "died" && state.detail) list.append(el("li", { class: "bad" }, "The trainer's log ends with ", el("code", { text: state.detail })));
  for (const one of faults) list.append(el("li", { class: one.level }, el("a", { href: one.view, text: one.text })));
  if (!list.children.length) list.append(el("li", { class: "fine", text: "Nothing: no drop by a fault, no restart, no damaged record." }));
  return el("div", { class: "card" }, el("h2", { text: "What went wrong" }), list);
}

function commandsCard() {
  if (!data.overview.commands.length) return null;
  const list = el("dl", { class: "commands" });
  for (const [what, command] of data.overview.commands) {
    const code = el("code", { text: command });
    const copy = el("button", { type: "button", text: "Copy", "aria-label": `Copy: ${what}`, "data-key": `copy ${what}` });
    copy.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(command); copy.textContent = "Copied"; } catch { copy.textContent = "Selected"; }
    });
    list.append(el("div", {}, el("dt", {}, what, copy), el("dd", {}, code)));
  }
  return el("div", { class: "card" }, el("h2", { text: "Continue" }), list);
}

function setsCard() {
  const rows = data.overview.headline;
  if (rows.length < 2) return null;
  const compared = rows.some((one) => one.gain != null);
  const cells = rows.map((one) => [one.set, `${percent(one.before.pass_at_1)} ${ends(one.before.ci95)}`,
    one.gain == null ? "-" : `${percent(one.now.pass_at_1)} ${ends(one.now.ci95)}`,
    one.gain == null ? "-" : `${one.gain >= 0 ? "+" : ""}${(100 * one.gain).toFixed(1)}` + (one.gain_ci95 ? ` [${one.gain_ci95.map((end) => (100 * end).toFixed(1)).join(", ")}]` : "")].slice(0, compared ? 4 : 2));
  return el("div", { class: "card" }, el("h2", { text: "All held-out sets" }), table(compared ? ["set", "before", "now", "gain, points"] : ["set", "pass@1"], cells));
}

function overviewView(section) {
  const learning = learningCard();
  section.append(
    el("div", { class: "top" }, headlineCard(data.overview.headline[first.set] || data.overview.headline[0]), factsCard()),
    ...[learning].filter(Boolean),
    el("div", { class: "grid wide" }, ...[timeCard(), faultsCard(), setsCard(), commandsCard()].filter(Boolean)));
  if (learning) learning.draw();
}
