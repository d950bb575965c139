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

const percent = (value) => (100 * value).toFixed(1) + " %";
const short = (value) => Math.abs(value) >= 1000 || Number.isInteger(value) ? String(Math.round(value))
  : String(Number(value.toPrecision(3)));
const kind = (status) => status === "accepted" ? "accepted" : status === "overlong" ? "neutral" : "failed";

// -- Curves ---------------------------------------------------------------------------------------------------

function chart(curve) {
  const width = 360, height = 170, left = 44, right = 8, top = 8, bottom = 20;
  const points = curve.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 >= 0 && y0 < 0.5 * y1) y0 = 0;
  if (y1 - y0 < 1e-12) y1 = y0 + 1;
  const x = (value) => left + (value - x0) / (x1 - x0) * (width - left - right);
  const y = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.title });
  for (let tick = 0; tick <= 4; tick++) {
    const value = y0 + (y1 - y0) * tick / 4;
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

// -- Tables ---------------------------------------------------------------------------------------------------

function rateTable(title, columns, rows) {
  const body = el("tbody");
  for (const [name, count, share] of rows) {
    const bar = el("meter", { min: 0, max: 1, value: share });
    body.append(el("tr", {}, el("td", { text: name }), el("td", { class: "number", text: count }),
      el("td", { class: "number", text: percent(share) }), el("td", {}, bar)));
  }
  const head = el("tr", {}, ...columns.map((name) => el("th", { text: name })), el("th"));
  return el("div", { class: "card" }, el("h2", { text: title }), el("table", {}, el("thead", {}, head), body));
}

function evaluations(section) {
  const body = el("tbody");
  for (const one of data.evaluations) {
    const rest = one.without_known_bad;
    const cells = [one.set + (one.greedy ? " (greedy)" : ""), one.profile || "-", one.weight_version ?? "-", one.problems, one.n,
      percent(one.pass_at_1) + (one.ci95 ? ` [${percent(one.ci95[0])}, ${percent(one.ci95[1])}]` : ""),
      rest ? percent(rest.pass_at_1) : "-", one.overlong ?? "-", one.no_verdict ?? "-",
      one.mean_length == null ? "-" : Math.round(one.mean_length)];
    body.append(el("tr", {}, ...cells.map((text, i) => el("td", { text, class: i > 1 ? "number" : "" }))));
  }
  const names = ["set", "graded as", "weights", "problems", "n", "pass@1 [95 %]", "without known-bad", "overlong", "no verdict",
    "tokens"];
  const head = el("tr", {}, ...names.map((name) => el("th", { text: name })));
  section.append(el("div", { class: "card scroll" }, el("table", {}, el("thead", {}, head), body)));
  const grid = el("div", { class: "grid" });
  for (const one of data.evaluations) for (const [name, cells] of Object.entries(one.by)) {
    const rows = Object.entries(cells).map(([key, [correct, total]]) => [key, total, total ? correct / total : 0]);
    if (rows.length > 1) grid.append(rateTable(`${one.set}${one.greedy ? " (greedy)" : ""} at weights ${one.weight_version}${one.profile && one.profile !== "run" ? `, ${one.profile}` : ""}: by ${name}`,
      [name, "samples", "pass@1"], rows));
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

function marked(message) {
  const pre = el("pre");
  for (const piece of message.split(/('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")/)) {
    if (/^['"]/.test(piece)) pre.append(el("mark", { text: piece }));
    else pre.append(piece);
  }
  return pre;
}

function show(one, row) {
  for (const other of document.querySelectorAll("#list tr[aria-selected]")) other.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
  const detail = $("#detail");
  detail.replaceChildren(el("h2", {}, one.problem + "  ", el("span", { text: one.status, class: kind(one.status) })),
    el("p", { class: "quiet", text: `reward ${one.score ?? "none"}, ${one.length ?? "?"} tokens, finished by ${one.finish ?? "?"}, ` +
      `weights ${one.version ?? "?"}` }));
  if (one.message) detail.append(el("h2", { text: one.failed == null ? "Message" : `Test ${one.failed} failed` }), marked(one.message));
  if (one.test) detail.append(folded("its input", one.test.input, true), folded("what it expects", one.test.output, true));
  detail.append(folded("prompt", one.prompt, false));
  const closed = one.answer.lastIndexOf("</think>");
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
