"use strict";
// Every text goes into the page by textContent: nothing that a model wrote is ever read as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);

function el(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const percent = (value) => value == null ? "-" : (100 * value).toFixed(1) + " %";
const short = (value) => Math.abs(value) >= 1000 || Number.isInteger(value) ? String(Math.round(value))
  : String(Number(value.toPrecision(3)));
const kind = (status) => status === "accepted" ? "accepted" : status === "overlong" ? "neutral" : "failed";

// -- Curves ---------------------------------------------------------------------------------------------------

// 1, 2, 2.5 or 5 times a power of ten, not below the given step.
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9));
}

function chart(curve) {
  const width = 360, height = 170, left = 44, right = 8, top = 8, bottom = 20;
  const points = curve.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 >= 0 && y0 < 0.5 * y1) y0 = 0;
  if (y1 - y0 < 1e-12) y1 = y0 + 1;
  const step = roundStep((y1 - y0) / 4);
  y0 = Math.floor(y0 / step + 1e-9) * step;
  y1 = Math.ceil(y1 / step - 1e-9) * step;
  const x = (value) => left + (value - x0) / (x1 - x0) * (width - left - right);
  const y = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.title });
  for (let tick = 0; tick <= Math.round((y1 - y0) / step); tick++) {
    const value = y0 + tick * step;
    drawing.append(svg("line", { class: "grid-line", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  drawing.append(svg("text", { x: left, y: height - 4 }, "step " + x0));
  drawing.append(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, String(x1)));
  curve.series.forEach((series, index) => {
    const line = series.points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    drawing.append(svg("path", { class: "s" + index % 5, d: line }));
    if (series.points.length <= 60) for (const [a, b] of series.points) {
      const dot = svg("circle", { class: "s" + index % 5, cx: x(a), cy: y(b), r: 2.5 });
      dot.append(svg("title", {}, `${series.name}, step ${a}: ${short(b)}`));
      drawing.append(dot);
    }
  });
  const legend = el("div", { class: "legend" });
  curve.series.forEach((series, index) => legend.append(el("span", { class: "s" + index % 5, text: series.name })));
  return el("div", { class: "card" }, el("h2", { text: curve.title }), el("div", { class: "unit", text: curve.unit }),
    drawing, legend);
}

// pass@1 by the month of the problems: what lies before the cut-off may have been trained on.
function months(one) {
  const cells = Object.entries(one.by.month), sides = Object.entries(one.by.training || {});
  const width = 360, height = 190, left = 36, right = 4, top = 16, bottom = 44, step = (width - left - right) / cells.length;
  const y = (share) => height - bottom - share * (height - top - bottom);
  const seen = (month) => one.cutoff && month <= one.cutoff.slice(0, 7);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "pass@1 by month" });
  for (const share of [0, 0.5, 1]) {
    drawing.append(svg("line", { class: "grid-line", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    drawing.append(svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share).replace(".0", "")));
  }
  cells.forEach(([month, [correct, total]], index) => {
    const share = total ? correct / total : 0, x = left + index * step, middle = x + step / 2;
    const bar = svg("rect", { class: seen(month) ? "bar before" : "bar", x: x + step * 0.15, width: step * 0.7,
      y: y(share), height: y(0) - y(share) });
    bar.append(svg("title", {}, `${month}: ${percent(share)}, ${correct} of ${total} samples`));
    drawing.append(bar);
    if (cells.length <= 14) drawing.append(svg("text", { x: middle, y: y(share) - 3, "text-anchor": "middle" }, Math.round(100 * share)));
    const turn = `translate(${middle + 4} ${height - bottom + 8}) rotate(-60)`;
    drawing.append(svg("text", { transform: turn, "text-anchor": "end" }, month.slice(2)));
  });
  const split = cells.filter(([month]) => seen(month)).length;
  if (split && split < cells.length) {
    const x = left + split * step;
    drawing.append(svg("line", { class: "cutoff", x1: x, x2: x, y1: top, y2: y(0) }));
  }
  const told = sides.map(([name, [correct, total]]) => `${name}: ${percent(total ? correct / total : 0)} of ${total} samples`);
  const legend = el("div", { class: "legend" });
  sides.forEach(([name], index) => legend.append(el("span", { class: name.startsWith("up to") ? "before" : "s0", text: told[index] })));
  return el("div", { class: "card months" }, el("h2", { text: label(one, "month") }),
    el("div", { class: "unit", text: "pass@1 by the month of the problem" + (one.cutoff ? `; training cut-off ${one.cutoff}` : "") + beside(one.around_cutoff) }), drawing, legend);
}

const beside = (sides) => !sides ? "" : `; ${percent(sides.before.pass_at_1)} before and ${percent(sides.after.pass_at_1)} after, ` +
  `p ${sides.p_value.toPrecision(2)}, among problems alike ${sides.p_value_like_problems.toPrecision(2)}`;

const label = (one, name) => `${one.set}${one.greedy ? " (greedy)" : ""} at weights ${one.weight_version ?? "-"}` +
  `${one.profile && one.profile !== "run" ? `, ${one.profile}` : ""}: by ${name}`;

// -- Tables ---------------------------------------------------------------------------------------------------

function rateTable(title, columns, rows) {
  const body = el("tbody");
  for (const [name, count, share] of rows) {
    const bar = el("meter", { min: 0, max: 1, value: share });
    body.append(el("tr", {}, el("td", { text: name }), el("td", { class: "number", text: count }),
      el("td", { class: "number", text: percent(share) }), el("td", {}, bar)));
  }
  const head = el("tr", {}, ...columns.map((text, i) => el("th", { text, class: i ? "number" : "" })), el("th"));
  return el("div", { class: "card" }, el("h2", { text: title }), el("table", {}, el("thead", {}, head), body));
}

// What a number stands for: two of them are comparable where this is equal.
const how = (s) => !s ? "-" : `${s.prompt_style}, ${s.max_new_tokens ?? "the rest"} of ${s.context} tokens, ` +
  (s.temperature ? `T ${s.temperature}, top_p ${s.top_p}` : "greedy");

function evaluations(section) {
  const body = el("tbody");
  for (const one of data.evaluations) {
    const rest = one.without_known_bad;
    const cells = [one.set + (one.greedy ? " (greedy)" : ""), one.profile || "-", how(one.settings), one.weight_version ?? "-", one.problems, one.n,
      percent(one.pass_at_1) + (one.ci95 ? ` [${percent(one.ci95[0])}, ${percent(one.ci95[1])}]` : ""),
      rest ? percent(rest.pass_at_1) : "-", one.overlong ?? "-", one.no_verdict ?? "-",
      one.mean_length == null ? "-" : Math.round(one.mean_length)];
    body.append(el("tr", {}, ...cells.map((text, i) => el("td", { text, class: i > 2 ? "number" : "" }))));
  }
  const names = ["set", "graded as", "prompt and sampling", "weights", "problems", "n", "pass@1 [95 %]", "without known-bad", "overlong", "no verdict",
    "tokens"];
  const head = el("tr", {}, ...names.map((text, i) => el("th", { text, class: i > 2 ? "number" : "" })));
  section.append(el("div", { class: "card scroll" }, el("table", {}, el("thead", {}, head), body)));
  const grid = el("div", { class: "grid" });
  for (const one of data.evaluations) for (const [name, cells] of Object.entries(one.by)) {
    const rows = Object.entries(cells).map(([key, [correct, total]]) => [key, total, total ? correct / total : 0]);
    if (rows.length < 2 || name === "training") continue;
    grid.append(name === "month" ? months(one) : rateTable(label(one, name), [name, "samples", "pass@1"], rows));
  }
  section.append(el("p"), grid);
}

// -- Rollouts -------------------------------------------------------------------------------------------------

const PAGE = 200;
let chosen = [], shown = 0;

function options(select, values) {
  select.append(el("option", { value: "", text: "all" }));
  for (const value of [...new Set(values)].sort()) select.append(el("option", { value, text: value }));
}

function filter() {
  const form = $("#filters"), part = form.problem.value.toLowerCase();
  chosen = data.rollouts.filter((one) => (!form.status.value || one.status === form.status.value)
    && (!form.from.value || one.from === form.from.value)
    && (!form.difficulty.value || one.difficulty === form.difficulty.value)
    && (!part || one.problem.toLowerCase().includes(part)));
  $("#found").textContent = `${chosen.length} of ${data.rollouts.length}`;
  $("#list tbody").replaceChildren();
  shown = 0;
  more();
}

function more() {
  const rows = chosen.slice(shown, shown + PAGE).map((one) => {
    const tests = one.total == null ? "-" : `${one.passed}/${one.total}`;
    const row = el("tr", { tabindex: 0 }, el("td", { text: one.problem }),
      el("td", { text: one.status, class: kind(one.status) }), el("td", { text: tests, class: "number" }),
      el("td", { text: one.length ?? "-", class: "number" }), el("td", { text: one.version ?? "-", class: "number" }));
    row.addEventListener("click", () => show(one, row));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") show(one, row); });
    return row;
  });
  $("#list tbody").append(...rows);
  shown += rows.length;
  $("#more").hidden = shown >= chosen.length;
}

function folded(title, text, open) {
  const node = el("details", open ? { open: "" } : {}, el("summary", { text: title }), el("pre", { text }));
  return node;
}

// The judge's "WHERE: got ONE, expected OTHER" as two lines, in each the part marked that the other has not.
function marked(message) {
  const piece = `(?:\\.\\.\\.)?(?:'(?:[^'\\\\]|\\\\.)*'|"(?:[^"\\\\]|\\\\.)*")(?:\\.\\.\\.)?`;
  const found = message.match(new RegExp(`^([^]*?)got (${piece}), expected (${piece})$`))
    || message.match(/^([^]*?)got ([^]+?), expected ([^]+)$/);
  if (!found) return el("pre", { text: message });
  const [, where, got, expected] = found;
  let start = 0, end = 0;
  while (start < Math.min(got.length, expected.length) && got[start] === expected[start]) start++;
  while (end < Math.min(got.length, expected.length) - start && got[got.length - 1 - end] === expected[expected.length - 1 - end]) end++;
  const line = (name, text) => el("div", {}, el("span", { class: "side", text: name }), text.slice(0, start),
    el("mark", { text: text.slice(start, text.length - end) }), text.slice(text.length - end));
  const box = el("pre", { class: "difference" });
  if (where.trim()) box.append(el("div", { class: "quiet", text: where.trim().replace(/:$/, "") }));
  box.append(line("got", got), line("expected", expected));
  return box;
}

function show(one, row) {
  for (const other of document.querySelectorAll("#list tr[aria-selected]")) other.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
  const detail = $("#detail");
  detail.replaceChildren(el("h2", {}, one.problem + "  ", el("span", { text: one.status, class: kind(one.status) })),
    el("p", { class: "quiet", text: `${one.sample == null ? `reward ${one.score ?? "none"}` : `sample ${one.sample}`}, ` +
      `${one.length ?? "?"} tokens, finished by ${one.finish ?? "?"}${one.version == null ? "" : `, weights ${one.version}`}` }));
  if (one.graded.length > 1) detail.append(el("p", { class: "quiet" }, ...one.graded.flatMap(([name, status]) =>
    [`${name}: `, el("span", { text: status, class: kind(status) }), " "])));
  if (one.message) detail.append(el("h2", { text: one.failed == null ? "Message" : `Test ${one.failed} failed` }), marked(one.message));
  if (one.test) detail.append(folded("its input", one.test.input, true), folded("what it expects", one.test.output, true));
  detail.append(folded("prompt", one.prompt, false));
  const closed = one.answer.indexOf("</think>");
  if (closed >= 0) {
    detail.append(folded("reasoning", one.answer.slice(0, closed), false));
    detail.append(folded("answer", one.answer.slice(closed + 8), false));
  } else detail.append(folded("answer", one.answer, one.code === null));
  if (one.code) {
    const pre = el("pre", { class: "code" });
    for (const [name, text] of one.code) pre.append(name ? el("span", { class: name, text }) : text);
    detail.append(el("h2", { text: "Program" }), pre);
  }
  if (matchMedia("(max-width: 60rem)").matches) detail.scrollIntoView({ behavior: "smooth" });
}

// -- The page -------------------------------------------------------------------------------------------------

const filled = { curves: data.curves.length, evaluations: data.evaluations.length, tables: data.tables.length,
  rollouts: data.rollouts.length };
const grid = el("div", { class: "grid" });
grid.append(...data.curves.map(chart));
$("#curves").append(grid);
if (filled.evaluations) evaluations($("#evaluations"));
const breakdowns = el("div", { class: "grid" });
breakdowns.append(...data.tables.map((one) => rateTable(one.title, one.columns, one.rows)));
$("#tables").append(breakdowns);
options($("#filters").from, data.rollouts.map((one) => one.from));
$("#sources").hidden = new Set(data.rollouts.map((one) => one.from)).size < 2;
options($("#filters").status, data.rollouts.map((one) => one.status));
options($("#filters").difficulty, data.rollouts.map((one) => one.difficulty));
$("#filters").addEventListener("input", filter);
$("#filters").addEventListener("submit", (event) => event.preventDefault());
$("#more").addEventListener("click", more);
filter();

const names = { curves: "Curves", evaluations: "Evaluations", tables: "Breakdown", rollouts: "Rollouts" };
const tabs = Object.keys(names).filter((name) => filled[name]);
function choose(name) {
  for (const other of Object.keys(names)) $("#" + other).hidden = other !== name;
  for (const button of $("#tabs").children) button.setAttribute("aria-selected", button.dataset.name === name);
}
for (const name of tabs) {
  const button = el("button", { type: "button", text: names[name], "data-name": name });
  button.addEventListener("click", () => choose(name));
  $("#tabs").append(button);
}
const damaged = Object.entries(data.damaged).map(([name, count]) => `${count} damaged lines of ${name} are left out.`);
$("#notes").textContent = [...data.notes, ...damaged].join(" ");
choose(tabs[0]);
document.documentElement.dataset.ready = "true";
