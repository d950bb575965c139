"use strict";
// The page: views behind tabs, each filled when it is first seen, and the address's fragment that names the open one.

const VIEWS = {
  overview: ["Overview", overviewView, () => true],
  curves: ["Curves", curvesView, () => data.curves.length],
  time: ["Time", timeView, () => data.timeline.lanes.length],
  evaluations: ["Evaluations", evaluationsView, () => data.evaluations.length],
  groups: ["Breakdown", groupsView, () => data.tables.length],
  rollouts: ["Rollouts", rolloutsView, () => data.recorded],
};
const filled = new Set();
let current = "overview";

// Redraws a view; what had the focus keeps it.
function fill(name) {
  const section = $("#" + name), key = document.activeElement?.dataset.key, scroll = [scrollX, scrollY];
  if (name !== "rollouts") {
    destroy(section);
    section.replaceChildren();
  }
  VIEWS[name][1](section);
  filled.add(name);
  if (key && section.isConnected) [...section.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
  scrollTo(...scroll);
}

function open_view(name) {
  current = VIEWS[name] && VIEWS[name][2]() ? name : name === "time" ? "curves" : "overview";
  for (const other of Object.keys(VIEWS)) $("#" + other).hidden = other !== current;
  for (const tab of $("#tabs").children) {
    const on = tab.dataset.name === current;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
  }
  if (!filled.has(current)) fill(current);
}

function tabs() {
  const names = Object.keys(VIEWS).filter((name) => VIEWS[name][2]());
  if ([...$("#tabs").children].map((tab) => tab.dataset.name).join() === names.join()) return;
  $("#tabs").replaceChildren(...names.map((name) => el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": name,
    text: VIEWS[name][0], "data-name": name, onclick: () => go(name) })));
}

$("#tabs").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const all = [...$("#tabs").children], next = all[(all.findIndex((tab) => tab.dataset.name === current) + by + all.length) % all.length];
  next.focus();
  next.click();
});

function head() {
  const { state } = data.overview;
  $("#state").textContent = state.text;
  $("#state").className = state.kind;
  const damaged = Object.entries(data.damaged).map(([name, count]) => `${count} damaged lines of ${name} are left out.`);
  $("#notes").replaceChildren(...[...data.notes.map((text) => el("span", { text: text + " " })), ...damaged.map((text) => el("span", { class: "damaged", text: text + " " }))]);
}

// A change of the fragment alone would take the keyboard away from what has it.
function go(name) {
  history.pushState(null, "", `#${name}`);
  open_view(name);
}

const named = () => location.hash.slice(1).split("?")[0] || "overview";
addEventListener("hashchange", () => open_view(named()));

// Takes newer data of the same run: the open view is redrawn at once, the others when shown.
function refresh(newer) {
  Object.assign(data, newer);
  head();
  tabs();
  filled.clear();
  open_view(current);
}

head();
tabs();
open_view(named());
document.documentElement.dataset.ready = "true";
