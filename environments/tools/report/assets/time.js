"use strict";
// What each process did when: lanes of spans over the time, drawn on uPlot's axes.

const PAINT = { wait: "--s5", checkpoint: "--s4", alignment: "--s0", "old log-probabilities": "--s1", train: "--s2", publish: "--s3",
  paused: "--s4", generate: "--s0", judge: "--s1" };
const LANE = 20, MOST_LANES = 24, FIRST_STEPS = 6;
let window_of = null;  // seconds from and to; null: the last steps

const shownLanes = () => data.timeline.lanes.filter((lane, index) => lane.process !== "Environment" || index < MOST_LANES);

// The seconds at which the last steps began and ended.
function lastSteps(count) {
  const all = data.timeline.lanes.flatMap((lane) => lane.spans), end = Math.max(...all.map(([start, length]) => start + length));
  const steps = [...new Map((data.timeline.lanes.find((lane) => lane.process === "Trainer")?.spans || []).map((span) => [span[3], span[0]]).reverse()).values()].sort((a, b) => b - a);
  return [steps.length ? steps[Math.min(count, steps.length) - 1] : 0, end];
}

function drawLanes(chart) {
  const lanes = shownLanes(), { ctx, bbox } = chart, size = bbox.height / lanes.length, gap = 2 * devicePixelRatio;
  const { min, max } = chart.scales.x, colors = Object.fromEntries(Object.entries(PAINT).map(([what, name]) => [what, color(name)]));
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  lanes.forEach((lane, index) => {
    for (const [start, length, what] of lane.spans) {
      if (start > max || start + length < min) continue;
      const left = chart.valToPos(start, "x", true), right = chart.valToPos(start + length, "x", true);
      ctx.fillStyle = colors[what] || color("--quiet");
      ctx.fillRect(left, bbox.top + index * size + gap / 2, Math.max(right - left - (right - left > 3 ? 1 : 0), 1), size - gap);
    }
  });
  ctx.restore();
}

// The span under the cursor, in words.
function under(chart) {
  const lanes = shownLanes(), { left, top } = chart.cursor;
  if (left < 0) return "";
  const lane = lanes[Math.floor(top / (chart.over.clientHeight / lanes.length))], at = chart.posToVal(left, "x");
  const span = lane?.spans.find(([start, length]) => start <= at && at < start + length);
  return span ? `${lane.process}: ${span[2]}, ${seconds(span[1])}, ${span[3]}` : "";
}

// The same trace as the command line's, for ui.perfetto.dev.
function trace() {
  const processes = [...new Set(data.timeline.lanes.map((lane) => lane.process))], us = (value) => Math.round(value * 1e6);
  const events = processes.map((name, i) => ({ name: "process_name", ph: "M", pid: i + 1, tid: 0, args: { name } }));
  data.timeline.lanes.forEach((lane, thread) => {
    const own = { pid: processes.indexOf(lane.process) + 1, tid: thread + 1 };
    events.push({ name: "thread_name", ph: "M", ...own, args: { name: lane.lane } });
    for (const [start, length, what, label] of lane.spans)
      events.push({ name: what, cat: lane.process, ph: "X", ts: us(start), dur: us(length), ...own, args: { of: label } });
  });
  return { displayTimeUnit: "ms", otherData: { begun: data.timeline.begun }, traceEvents: events };
}

function timeView(section) {
  const lanes = shownLanes(), hidden = data.timeline.lanes.length - lanes.length;
  const host = el("div", { class: "plot", role: "img", "aria-label": `Time-line of ${lanes.length} lanes: ${[...new Set(lanes.map((lane) => lane.process))].join(", ")}. Its numbers stand below.` });
  const told = el("p", { class: "quiet told", text: "Point at a span to read it; drag to zoom, double-click for all." });
  const all = lanes.flatMap((lane) => lane.spans), end = Math.max(...all.map(([start, length]) => start + length));
  const whats = [...new Set(all.map((span) => span[2]))], [from, to] = window_of || lastSteps(FIRST_STEPS);
  let chart = null;
  const move = (low, high) => { window_of = [low, high]; chart.setScale("x", { min: low, max: high }); };
  const button = (text, act) => el("button", { type: "button", text, "data-key": `time ${text}`, onclick: () => act(...(window_of || [from, to])) });
  section.append(el("h2", { class: "unseen", text: "Time" }), el("div", { class: "tools" },
    button("Earlier", (low, high) => move(Math.max(low - (high - low) / 2, 0), Math.max(high - (high - low) / 2, (high - low) / 2))),
    button("Later", (low, high) => move(low + (high - low) / 2, high + (high - low) / 2)),
    button("Closer", (low, high) => move(low + (high - low) / 4, high - (high - low) / 4)),
    button("Wider", (low, high) => move(Math.max(low - (high - low) / 2, 0), Math.min(high + (high - low) / 2, end))),
    button("Last steps", () => move(...lastSteps(FIRST_STEPS))), button("All", () => move(0, end)),
    button("Download trace", () => download(`${data.title}-trace.json`, JSON.stringify(trace()), "application/json")),
    el("span", { class: "quiet", text: "The trace opens in Perfetto (ui.perfetto.dev)." })),
  el("div", { class: "card" }, host, el("div", { class: "legend" }, ...whats.map((what) => el("span", { class: `${PAINT[what].slice(2)} key`, text: what }))), told,
    hidden > 0 ? el("p", { class: "quiet", text: `${hidden} more lanes of groups are in the trace.` }) : null,
    numbersOf("Time-line", ["process", "lane", "start, s", "seconds", "what", "of"], () => lanes.flatMap((lane) => lane.spans.map((span) => [lane.process, lane.lane, ...span])))));
  const names = lanes.map((lane, index) => lane.process === lanes[index - 1]?.process ? "" : lane.process === "Generation servers" ? "Servers" : lane.process === "Environment" ? "Groups" : lane.process);
  chart = plot(host, [[0, end], [null, null]], [{ name: "spans", color: "--s0", hidden: true }], { height: lanes.length * LANE + 60, alone: true, draw: drawLanes,
    yRange: () => [0, lanes.length], lanes: names, label: "time since the first record" });
  chart.ours.moved = () => { told.textContent = under(chart) || "Point at a span to read it; drag to zoom, double-click for all."; };
  chart.setScale("x", { min: from, max: to });
  chart.ours.zoomed = () => { window_of = [chart.scales.x.min, chart.scales.x.max]; };
}
