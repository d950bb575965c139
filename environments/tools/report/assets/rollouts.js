"use strict";
// The browser of rollouts: a list that is filtered, and one of them in full, alone, in its group and among its problem's.

const PAGE = 200;
let chosen = [], shown = 0, open = null;

function options(select, values) {
  const kept = select.value;
  select.replaceChildren(el("option", { value: "", text: "all" }));
  for (const value of [...new Set(values)].sort()) select.append(el("option", { value, text: value }));
  select.value = kept;
  if (select.selectedIndex < 0) select.value = "";
}

// All that is searched in a rollout, put together once.
function haystack(one) {
  one.searched ??= [one.prompt, one.answer, one.code ? one.code.map((piece) => piece[1]).join("") : "", one.message, one.refused && `refused calls: ${one.refused}`].join("\n").toLowerCase();
  return one.searched;
}

function filter() {
  const form = $("#filters"), part = form.problem.value.toLowerCase(), text = form.text.value.toLowerCase();
  chosen = data.rollouts.filter((one) => (!form.status.value || one.status === form.status.value)
    && (!form.from.value || one.from === form.from.value)
    && (!form.difficulty.value || one.difficulty === form.difficulty.value)
    && (!part || one.problem.toLowerCase().includes(part))
    && (!text || haystack(one).includes(text)));
  $("#found").textContent = `${chosen.length} of ${data.rollouts.length}`;
  $("#list tbody").replaceChildren();
  shown = 0;
  more();
  if (!chosen.includes(open)) choose(chosen[0] || null);
  else mark();
}

function more() {
  const rows = chosen.slice(shown, shown + PAGE).map((one) => {
    const tests = one.total == null ? "-" : `${one.passed}/${one.total}`;
    const row = el("tr", {}, el("td", {}, el("button", { type: "button", class: "link", text: one.problem || "(no problem)" })),
      el("td", { text: words(one.status), class: kind(one.status) }), el("td", { text: tests, class: "number" }),
      el("td", { text: one.length ?? "-", class: "number" }), el("td", { text: one.version ?? "-", class: "number" }));
    row.addEventListener("click", () => { choose(one); toDetail(); });
    return row;
  });
  $("#list tbody").append(...rows);
  shown += rows.length;
  $("#more").hidden = shown >= chosen.length;
}

function toDetail() {
  if (matchMedia("(max-width: 60rem)").matches) $("#detail").scrollIntoView({ behavior: "smooth" });
}

function mark() {
  for (const row of document.querySelectorAll("#list tr.current")) {
    row.classList.remove("current");
    $("button", row).removeAttribute("aria-current");
  }
  const row = $("#list tbody").children[chosen.indexOf(open)];
  if (!row) return;
  row.classList.add("current");
  $("button", row).setAttribute("aria-current", "true");
  const list = $("#list"), top = row.offsetTop;
  if (top < list.scrollTop + 30 || top + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
}

// Opens a rollout; null: none is left by the filters.
function choose(one) {
  open = one;
  if (one) {
    while (shown <= chosen.indexOf(one)) more();
    show(one);
  } else $("#detail").replaceChildren(el("p", { class: "quiet", text: data.rollouts.length ? "No rollout is like that." : "No rollout is recorded." }));
  mark();
}

function step(by) {
  const next = chosen[chosen.indexOf(open) + by];
  if (next) choose(next);
}

document.addEventListener("keydown", (event) => {
  if ($("#rollouts").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const action = { j: () => step(1), k: () => step(-1), "/": () => $("#filters").text.focus() }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

const folded = (title, text, unfolded) => el("details", { open: unfolded ? "" : null }, el("summary", { text: title }), el("pre", { text, tabindex: 0 }));

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

function program(code) {
  const pre = el("pre", { class: "code", tabindex: 0, role: "group", "aria-label": "Program" });
  for (const [name, text] of code) pre.append(name ? el("span", { class: name, text }) : text);
  return pre;
}

function show(one) {
  const at = chosen.indexOf(one), detail = $("#detail");
  const move = (text, by, key) => el("button", { type: "button", text, disabled: chosen[at + by] ? null : "", "aria-keyshortcuts": key, "data-key": text, onclick: () => { step(by); $(`#detail [data-key="${text}"]`).focus(); } });
  const about = [one.sample == null ? `reward ${one.score ?? "none"}` : `sample ${one.sample}`, `${one.length ?? "?"} tokens, finished by ${one.finish ?? "?"}`,
    one.version == null ? "" : `weights ${one.version}`, one.dropped ? `group left out: ${words(one.dropped)}` : ""];
  detail.replaceChildren(
    el("div", { class: "row" }, el("h3", {}, one.problem + "  ", el("span", { text: words(one.status), class: kind(one.status) })),
      el("div", { class: "moves" }, move("Previous", -1, "k"), el("span", { class: "quiet", text: ` ${at + 1} of ${chosen.length} ` }), move("Next", 1, "j"))),
    el("p", { class: "quiet", text: about.filter(Boolean).join(", ") }), ...[sides(one)].filter(Boolean));
  detail.append(...{ rollout: rolloutSide, group: groupSide, problem: problemSide, tokens: tokensSide }[shownSide(one)](one));
}

function rolloutSide(one) {
  const detail = el("div");
  if (one.graded.length > 1) detail.append(el("p", { class: "quiet" }, ...one.graded.flatMap(([name, status]) =>
    [`${name}: `, el("span", { text: status, class: kind(status) }), " "])));
  if (one.message) detail.append(el("h4", { text: one.failed == null ? "Message" : `Test ${one.failed} failed` }), marked(one.message));
  if (one.refused) detail.append(el("p", { class: "quiet", text: `refused calls: ${one.refused}` }));
  if (one.test) detail.append(folded("its input", one.test.input, true), folded("what it expects", one.test.output, true));
  if (one.code) detail.append(el("h4", { text: "Program" }), program(one.code));
  detail.append(folded("prompt", one.prompt, false));
  const closed = one.answer.indexOf("</think>");
  if (closed >= 0) {
    detail.append(folded("reasoning", one.answer.slice(0, closed), false));
    detail.append(folded("answer", one.answer.slice(closed + 8), false));
  } else detail.append(folded("answer", one.answer, one.code === null));
  return [detail];
}

function rolloutsView() {
  const form = $("#filters");
  options(form.from, data.rollouts.map((one) => one.from));
  $("#sources").hidden = new Set(data.rollouts.map((one) => one.from)).size < 2;
  options(form.status, data.rollouts.map((one) => one.status));
  options(form.difficulty, data.rollouts.map((one) => one.difficulty));
  filter();
}

$("#filters").addEventListener("input", filter);
$("#filters").addEventListener("submit", (event) => event.preventDefault());
$("#more").addEventListener("click", more);
