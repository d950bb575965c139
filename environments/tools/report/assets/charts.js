"use strict";
// Charts: uPlot draws, this says what. Charts over the same axis share cursor and zoom.

const view = { axis: "steps", smooth: 0, scale: "own", from: null, to: null };
const AXES = { steps: "weight version", hours: "hours", tokens: "million tokens trained" };
const drawn = new Map();  // host element -> uPlot
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const FONT = "12px system-ui, sans-serif";

// The position of a step on the chosen axis; null where the run's records do not tell.
function place(step, axis, axes = data.axes) {
  if (axis === "steps") return step;
  const { steps } = axes, values = axes[axis];
  if (!values.length || step > steps[steps.length - 1]) return null;
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return values[low];
}

// uPlot's columns of series of [step, value, ...]: one row of x, then `columns` for each series. A series may have axes of its own.
function aligned(series, axis, columns = 1) {
  const rows = new Map();
  series.forEach(({ points, axes }, index) => {
    for (const [step, ...values] of points) {
      const x = place(step, axis, axes);
      if (x == null) continue;
      if (!rows.has(x)) rows.set(x, []);
      for (let i = 0; i < columns; i++) rows.get(x)[index * columns + i] = values[i] ?? null;
    }
  });
  const xs = [...rows.keys()].sort((a, b) => a - b), width = series.length * columns;
  return [xs, ...Array.from({ length: width }, (_, i) => xs.map((x) => rows.get(x)[i] ?? null))];
}

// Exponential moving average without the pull to zero at its beginning.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function destroy(root) {
  for (const [host, chart] of drawn) if (root.contains(host)) {
    chart.destroy();
    drawn.delete(host);
  }
}

// Distances of ticks on an axis of whole numbers.
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 604800];

let zooming = false;
function zoomed(chart, key) {
  if (key !== "x" || zooming || !chart.ours) return;
  chart.ours.zoomed?.();
  if (chart.ours.alone) return;
  const { min, max } = chart.scales.x, xs = chart.data[0];
  const whole = min <= xs[0] && max >= xs[xs.length - 1];
  setZoom(whole ? null : min, whole ? null : max, chart);
}

function setZoom(from, to, but = null) {
  [view.from, view.to] = [from, to];
  zooming = true;
  for (const chart of drawn.values()) if (chart !== but && !chart.ours.alone) range(chart);
  zooming = false;
  for (const input of document.querySelectorAll("[name=zoom-from], [name=zoom-to]"))
    if (input !== document.activeElement) input.value = view[input.name.slice(5)] == null ? "" : Number(view[input.name.slice(5)].toPrecision(4));
}

function range(chart) {
  const xs = chart.data[0];
  chart.setScale("x", { min: view.from ?? xs[0], max: view.to ?? xs[xs.length - 1] });
}

// The ends of an axis; about a lone point there is room on both sides.
const apart = (chart, low, high) => low === high ? [low - 1, high + 1] : [low, high];

// A few points are shown as points; a lone one is seen only so.
const few = (values) => values.filter((value) => value != null).length <= 40;

// options: { height, log, percent, label (of the x axis), alone (no shared zoom), bands, xs: texts for an ordinal axis }
function plot(host, columns, series, options = {}) {
  const paint = (name, alpha) => () => color(name) + (alpha || "");
  const unit = (value) => options.percent ? percent(value, options.fine ? 1 : 0) : short(value);
  const axis = { stroke: paint("--quiet"), grid: { stroke: paint("--line"), width: 1 }, ticks: { show: false }, font: FONT };
  const log = options.log && columns.slice(1).every((values) => values.every((value) => value == null || value > 0));
  const chart = new uPlot({
    width: Math.max(host.clientWidth, 200), height: options.height || 190, pxAlign: 0,
    cursor: { sync: options.alone ? undefined : { key: "x", setSeries: false }, drag: { x: !options.xs, y: false }, focus: { prox: 30 } },
    legend: { show: false },
    scales: {
      x: { time: false, distr: options.xs ? 2 : 1, range: options.range || apart },
      y: { distr: log ? 3 : 1, range: options.yRange || (log ? undefined : { min: { pad: 0.1, soft: 0, mode: 2 }, max: { pad: 0.1, mode: 0 } }) },
    },
    axes: [
      { ...axis, values: options.xs ? (u, ticks) => ticks.map((tick) => options.xs[tick] ?? "") : (u, ticks) => ticks.map(options.lanes ? clock : short),
        label: options.label, labelSize: options.label ? 20 : 0, labelFont: FONT, size: options.xSize || 28, space: options.space || 56,
        ...(options.lanes ? { incrs: CLOCK, space: 72 } : options.whole || options.xs ? { incrs: WHOLE } : {}) },
      options.lanes
        ? { ...axis, grid: { show: false }, size: 78, splits: () => options.lanes.map((_, i) => options.lanes.length - i - 0.5), values: () => options.lanes }
        : { ...axis, values: (u, ticks) => ticks.map((tick) => tick == null ? "" : unit(tick)), size: 54 },
    ],
    series: [{}, ...series.map((one, i) => ({
      label: one.name, stroke: one.hidden ? () => "transparent" : paint(one.color, one.faint ? "55" : ""), width: one.hidden ? 0 : one.width || 2, spanGaps: true, dash: one.dash,
      show: one.show !== false, fill: one.fill ? paint(one.color, "cc") : undefined, paths: one.bars ? uPlot.paths.bars({ size: [0.7, 60] }) : undefined,
      points: { show: !one.hidden && !one.bars && !one.faint && one.dots !== false && few(columns[i + 1]), size: one.width > 2 ? 10 : 6, fill: paint("--card") },
    }))],
    bands: (options.bands || []).map(([upper, lower, name]) => ({ series: [upper, lower], fill: paint(name, name === "--s0" ? "38" : "1e") })),
    hooks: { setScale: [zoomed], setCursor: [(u) => u.ours && u.ours.moved && u.ours.moved(u.cursor.idx)], draw: options.draw ? [options.draw] : [] },
  }, columns, host);
  chart.ours = { alone: options.alone };
  $("canvas", host).setAttribute("aria-hidden", "true");
  drawn.set(host, chart);
  if (columns[0].length === 1) chart.setScale("x", { min: columns[0][0], max: columns[0][0] + 1 });  // uPlot's own guess is 0 to 100
  if (!options.alone && (view.from != null || view.to != null)) {
    zooming = true;
    range(chart);
    zooming = false;
  }
  return chart;
}

// A time since the beginning: 1:02:03.
function clock(value) {
  const whole = Math.round(value), two = (part) => String(part).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

let tips = 0;
// The lines' names, each a switch with its newest value and, on hover or focus, what it means.
function legend(chart, series, unit, spread = 1) {
  const box = el("div", { class: "legend" });
  const values = series.map((one, index) => {
    const value = el("span", { class: "value" }), tip = `tip-${++tips}`;
    const button = el("button", { type: "button", class: one.color.slice(2), "aria-pressed": "true", "aria-describedby": one.hint ? tip : null,
      "data-key": `${one.key || one.name}` }, el("span", { text: one.name }), value);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      for (let i = 0; i < spread; i++) chart.setSeries(1 + index * spread + i, { show: on });
    });
    box.append(el("span", { class: "entry" }, button, one.hint ? el("span", { role: "tooltip", id: tip, text: one.hint }) : null));
    return value;
  });
  chart.ours.moved = (at) => values.forEach((node, index) => {
    const column = chart.data[(index + 1) * spread - (spread > 2 ? 1 : 0)];
    let value = at == null ? null : column[at];
    if (value == null) value = at == null ? column.findLast((one) => one != null) : null;
    node.textContent = " " + unit(value);
  });
  chart.ours.moved(null);
  return box;
}

// What a chart shows, in a sentence, for those who do not see it.
function sentence(title, unit, series, format) {
  return `${title}, ${unit}. ` + series.map(({ name, points }) => {
    const values = points.map((point) => point[1]).filter((value) => value != null);
    return `${name}: ${format(values[values.length - 1])} at last, from ${format(Math.min(...values))} to ${format(Math.max(...values))}`;
  }).join("; ") + ".";
}

// The numbers behind a chart, made when they are asked for.
function numbersOf(title, columns, rows) {
  const box = el("details", { class: "numbers" }, el("summary", { text: "Numbers", "aria-label": `Numbers of ${title}` }));
  box.addEventListener("toggle", () => {
    if (!box.open || box.children.length > 1) return;
    const all = rows();
    box.append(el("button", { type: "button", text: "Download CSV", onclick: () => download(`${title}.csv`, csv([columns, ...all]), "text/csv") }),
      el("div", { class: "scroll tall", tabindex: 0, role: "group", "aria-label": `Numbers of ${title}` },
        table(columns, all.slice(-500).map((row) => row.map((value) => typeof value === "number" ? short(value) : value)), 0)));
  });
  return box;
}

function curve(one) {
  const host = el("div", { class: "plot" });
  const card = el("div", { class: "card" }, el("h3", { text: one.title }), el("div", { class: "unit", text: one.unit }), host);
  const isShare = one.unit.startsWith("share"), format = isShare ? (value) => percent(value, 2).replace(/\.?0+ %/, " %") : short;
  const log = view.scale === "own" ? one.log : view.scale === "log";
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", sentence(one.title, one.unit, one.series, format));
  card.draw = () => {
    const [xs, ...raw] = aligned(one.series, view.axis);
    const smooth = view.smooth > 0;
    const columns = [xs, ...raw.flatMap((values) => smooth ? [values, smoothed(values, view.smooth)] : [values])];
    const series = one.series.flatMap((line, i) => {
      const base = { name: line.name, color: line.color || `--s${i % 6}`, dash: line.dash, dots: line.dots };
      return smooth ? [{ ...base, faint: true, width: 1 }, base] : [base];
    });
    if (!xs.length) return host.replaceChildren(el("p", { class: "quiet", text: "The records do not tell where on this axis." }));
    const chart = plot(host, columns, series, { log, whole: view.axis === "steps", percent: isShare, fine: isShare && Math.max(...columns.slice(1).flat()) < 0.1 });
    const lines = one.series.map((line, i) => ({ ...line, color: line.color || `--s${i % 6}`, key: `${one.title}/${line.name}` }));
    card.append(legend(chart, lines, format, smooth ? 2 : 1), numbersOf(one.title, ["step", ...one.series.map((line) => line.name)],
      () => { const [steps, ...values] = aligned(one.series, "steps"); return steps.map((step, i) => [step, ...values.map((column) => column[i])]); }));
  };
  return card;
}

function choices(name, label, options, value, changed) {
  const select = el("select", { name, "data-key": name }, ...Object.entries(options).map(([key, text]) =>
    el("option", { value: key, text, selected: key === value ? "" : null })));
  select.addEventListener("change", () => changed(select.value));
  return el("label", {}, label + " ", select);
}

const axesAtHand = () => Object.fromEntries(Object.entries(AXES).filter(([name]) => name === "steps" || [data.axes].flat().every((axes) => axes[name].length > 1)));

function toolbar(again) {
  const zoom = (name, text) => el("label", {}, text + " ", el("input", { name: `zoom-${name}`, type: "number", step: "any", "data-key": `zoom-${name}`,
    value: view[name] ?? "", oninput: (event) => setZoom(...(name === "from" ? [number(event), view.to] : [view.from, number(event)])) }));
  const number = (event) => event.target.value === "" ? null : Number(event.target.value);
  const smooth = el("input", { type: "range", name: "smooth", min: 0, max: 0.98, step: 0.02, value: view.smooth, "data-key": "smooth" });
  smooth.addEventListener("input", () => { view.smooth = Number(smooth.value); again(); });
  return el("form", { class: "tools", onsubmit: (event) => event.preventDefault() },
    choices("axis", "Across", axesAtHand(), view.axis, (value) => { view.axis = value; setZoom(null, null); again(); }),
    el("label", {}, "Smoothing ", smooth),
    choices("scale", "Scale", { own: "as fits", linear: "linear", log: "logarithmic" }, view.scale, (value) => { view.scale = value; again(); }),
    zoom("from", "From"), zoom("to", "to"),
    el("button", { type: "button", text: "Whole run", "data-key": "whole", onclick: () => setZoom(null, null) }),
    el("button", { type: "button", text: "Download all", "data-key": "all", onclick: () => download(`${data.title}-curves.csv`, allNumbers(), "text/csv") }));
}

function allNumbers() {
  const series = data.curves.flatMap((one) => one.series.map((line) => ({ ...line, name: `${one.title}: ${line.name} (${one.unit})` })));
  const [steps, ...values] = aligned(series, "steps");
  return csv([["step", ...series.map((line) => line.name)], ...steps.map((step, i) => [step, ...values.map((column) => column[i])])]);
}

function curvesView(section) {
  const again = () => fill("curves");
  section.append(el("h2", { class: "unseen", text: "Curves" }), toolbar(again),
    el("p", { class: "quiet", text: "Drag across a chart to zoom into all of them; double-click for the whole run." }));
  for (const part of [...new Set(data.curves.map((one) => one.part))]) {
    const cards = data.curves.filter((one) => one.part === part).map(curve);
    section.append(el("h2", { class: "part", text: part }), el("div", { class: "grid" }, ...cards));
    cards.forEach((card) => card.draw());
  }
}

new ResizeObserver(() => {
  for (const [host, chart] of drawn) if (host.clientWidth) chart.setSize({ width: host.clientWidth, height: chart.height });
}).observe(document.documentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((chart) => chart.redraw(false)));
