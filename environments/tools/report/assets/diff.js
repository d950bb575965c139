"use strict";
// Two runs beside each other: A is drawn whole, B dashed.

const LETTERS = ["A", "B"];
const SAYS = { better: "B is better", worse: "B is worse", unclear: "no difference shown" };

const points = (value) => `${value >= 0 ? "+" : ""}${(100 * value).toFixed(1)}`;
const scrolled = (label, content) => el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, content);

function scoresCard() {
  const card = el("div", { class: "card all" }, el("h2", { text: "Held-out pass@1" }));
  if (!data.scores.length) {
    card.append(el("p", { text: "The runs have no evaluation on the same set with the same number of samples." }));
    return card;
  }
  const side = (one, i) => `${percent(one.rates[i])} ${ends(one.intervals[i])}` + (one.versions[i] == null ? "" : ` · weights ${one.versions[i]}`);
  const rows = data.scores.map((one) => [one.set, side(one, 0), side(one, 1),
    one.gain == null ? one.why : el("span", {}, el("strong", { text: points(one.gain) }), ` [${one.gain_ci95.map(points).join(", ")}] `,
      el("span", { class: { better: "accepted", worse: "failed", unclear: "neutral" }[one.verdict], text: SAYS[one.verdict] }))]);
  card.append(scrolled("Held-out scores", table(["set", "A", "B", "B minus A, points"], rows, 9)),
    el("p", { class: "quiet", text: "95 % intervals over problems; that of the difference is paired, on the same problems." }));
  return card;
}

function speedCard() {
  if (!data.speed.length) return null;
  const most = Math.max(...data.speed.slice(0, -1).flatMap(([, ...values]) => values.filter((value) => value != null)));
  const bar = (value, i) => {
    const box = el("span", { class: `length s${i}` }), ink = el("span");
    ink.style.width = `${100 * (value ?? 0) / most}%`;
    box.append(ink);
    return box;
  };
  const rows = data.speed.map(([name, one, other], at) => [name, short(one), short(other), one && other != null ? (other / one).toFixed(2) : "-",
    at < data.speed.length - 1 ? el("span", { class: "lengths", "aria-hidden": "true" }, bar(one, 0), bar(other, 1)) : ""]);
  return el("div", { class: "card" }, el("h2", { text: "Speed by phase" }),
    scrolled("Seconds of a step", table(["mean seconds of a step", "A", "B", "B / A", "A over B"], rows)));
}

function settingsCard() {
  const card = el("div", { class: "card" }, el("h2", { text: "Options that differ" }));
  card.append(data.settings.length ? table(["process", "option", "A", "B"], data.settings, 9)
    : el("p", { text: "None but folders and addresses." }));
  return card;
}

function metricsCard() {
  if (!data.metrics.length) return null;
  const rows = data.metrics.map(([name, unit, one, other]) => [el("span", {}, name, el("span", { class: "quiet", text: ` ${unit}` })), short(one), short(other)]);
  return el("details", { class: "card all" }, el("summary", { text: "Means over the steps that both took" }), scrolled("Means", table(["metric", "A", "B"], rows)));
}

// A chart's lines of both runs: one line each by the run's colour, several by the line's own, B's dashed.
function pair(one) {
  const names = [...new Set(one.series.map((line) => line.name))];
  const series = one.series.map((line) => ({ ...line, axes: data.axes[line.run], dash: line.run ? [7, 4] : undefined, dots: line.points.length < 8,
    color: `--s${(names.length > 1 ? names.indexOf(line.name) : line.run) % 6}`, name: `${LETTERS[line.run]}${names.length > 1 ? ": " + line.name : ""}` }));
  return curve({ ...one, series });
}

function draw() {
  const main = $("main");
  destroy(main);
  main.replaceChildren(el("div", { class: "grid wide" }, ...[scoresCard(), speedCard(), settingsCard(), metricsCard()].filter(Boolean)));
  if (!data.curves.length) return;
  main.append(el("h2", { class: "part", text: "Curves" }), toolbar(draw), el("p", { class: "quiet", text: "A is drawn whole, B dashed. Drag across a chart to zoom into all of them; double-click for all." }));
  const cards = data.curves.map(pair);
  main.append(el("div", { class: "grid" }, ...cards));
  cards.forEach((card) => card.draw());
}

$(".names").append(...data.names.map((name, i) => el("li", {}, el("span", { class: `dot s${i}` }), `${LETTERS[i]} `, el("strong", { text: name }))));
draw();
document.documentElement.dataset.ready = "true";
