"use strict";
// Every text goes into the page by textContent: nothing that a model wrote is ever read as markup.
const data = JSON.parse(document.getElementById("data").textContent);
// Most of the page are the rollouts, their groups and tokens: they are read when they are first asked for.
const LATE = { "late-data": ["rollouts", "groups", "problems"], "token-data": ["tokens", "vocabulary"] };
for (const [element, names] of Object.entries(LATE)) for (const name of names) Object.defineProperty(data, name, { configurable: true, enumerable: true, get() {
  const late = JSON.parse(document.getElementById(element).textContent);
  for (const each of names) Object.defineProperty(data, each, { value: late[each], writable: true, enumerable: true });
  return data[name];
} });
const $ = (selector, root = document) => root.querySelector(selector);

function el(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value == null) continue;
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const percent = (value, digits = 1) => value == null ? "-" : (100 * value).toFixed(digits) + " %";
const ends = (pair) => pair ? `[${percent(pair[0])}, ${percent(pair[1])}]` : "";
const kind = (status) => status === "accepted" ? "accepted" : status === "overlong" ? "neutral" : "failed";
const words = (name) => String(name).replaceAll("_", " ");

// A number with about three digits that matter; large ones with a unit's letter.
function short(value) {
  if (value == null || !isFinite(value)) return "-";
  const size = Math.abs(value);
  if (size >= 1e6) return Number((value / 1e6).toPrecision(3)) + " M";
  if (size >= 1e4) return Number((value / 1e3).toPrecision(3)) + " k";
  if (size >= 1000 || Number.isInteger(value)) return String(Math.round(value));
  return size < 1e-3 && size > 0 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function seconds(value) {
  if (value < 90) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(1)} h` : `${(value / 86400).toFixed(1)} days`;
}

// Writes a text to a file of the reader's, without a server.
function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

const field = (value) => value == null ? "" : /[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
const csv = (rows) => rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";

// A table of rows of texts; `numeric` says from which column on the cells are numbers.
function table(columns, rows, numeric = 1) {
  const cell = (name) => (value, i) => el(name, { class: i >= numeric ? "number" : null, scope: name === "th" ? "col" : null },
    value instanceof Node ? value : String(value ?? "-"));
  return el("table", {}, el("thead", {}, el("tr", {}, ...columns.map(cell("th")))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell("td"))))));
}
