"use strict";
// One rollout from four sides: itself, its group, its problem over time, its tokens.

const SIDES = { rollout: "Rollout", group: "Group", problem: "Problem", tokens: "Tokens" };
let side = "rollout";

const signed = (value) => value == null ? "-" : (value > 0 ? "+" : "") + short(value);
const same = (one, other) => one.problem === other.problem && one.from === other.from;

const hasSide = {
  rollout: () => true,
  group: (one) => one.group != null && data.groups[one.group],
  problem: (one) => data.rollouts.filter((other) => same(one, other)).length > 1 || (data.problems[one.problem] || []).length > 0,
  tokens: (one) => one.tokens != null || (Array.isArray(one.spans) && one.spans.length > 1),
};

function sides(one) {
  const box = el("div", { class: "sides", role: "group", "aria-label": "Side of the rollout" });
  for (const [name, text] of Object.entries(SIDES)) if (hasSide[name](one))
    box.append(el("button", { type: "button", text, "aria-pressed": String(name === shownSide(one)), "data-key": `side ${name}`,
      onclick: () => { side = name; show(one); $(`[data-key="side ${name}"]`).focus(); } }));
  return box.children.length > 1 ? box : null;
}

const shownSide = (one) => hasSide[side](one) ? side : "rollout";

// A verdict as a square, which its title and its letter name too.
const SHORT = { accepted: "✓", wrong_answer: "w", runtime_error: "r", time_limit_exceeded: "t", memory_limit_exceeded: "m",
  output_limit_exceeded: "o", compile_error: "c", no_code: "n", overlong: "l" };
const square = (status) => el("span", { class: `square ${kind(status)}`, title: words(status), text: SHORT[status] || "?" });

function opener(text, one) {
  return one ? el("button", { type: "button", class: "link there", text, onclick: () => { side = "rollout"; reveal(one); } }) : text;
}

// Opens a rollout, also one that the filters hide: they are taken away then.
function reveal(one) {
  if (!chosen.includes(one)) { $("#filters").reset(); filter(); }
  choose(one);
}

function groupSide(one) {
  const group = data.groups[one.group], mean = group.scores.reduce((sum, score) => sum + (score ?? 0), 0) / (group.scores.length || 1);
  const rows = group.scores.map((score, index) => {
    const kept = data.rollouts.find((other) => other.group === one.group && other.index === index), advantage = group.advantages && group.advantages[index];
    const status = group.verdicts[index] || "";
    return [opener(`${index + 1}${kept === one ? " (this one)" : ""}`, kept), el("span", { class: kind(status), text: words(status) }), signed(score),
      el("span", { class: advantage > 0 ? "accepted" : advantage < 0 ? "failed" : null, text: signed(advantage) }), group.lengths[index] ?? "-"];
  });
  return [el("p", { class: "quiet", text: `Mean reward ${signed(mean)}. ` + (group.dropped ? `Left out: ${words(group.dropped)}.` : "Sent to the trainer.") +
    ` ${rows.length} rollouts, of which those with a link are recorded.` }),
  el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "The group" }, table(["rollout", "verdict", "reward", "advantage", "tokens"], rows, 2))];
}

function problemSide(one) {
  const groups = data.problems[one.problem] || [], kept = data.rollouts.filter((other) => same(one, other));
  const tests = new Map();
  for (const other of kept) if (other.failed != null) tests.set(other.failed, (tests.get(other.failed) || 0) + 1);
  const killers = [...tests].sort((a, b) => b[1] - a[1]), out = [];
  const passed = groups.flatMap((group) => group[1]).filter((status) => status === "accepted").length, total = groups.flatMap((group) => group[1]).length;
  if (total) out.push(el("p", { text: `${passed} of ${total} rollouts passed (${percent(passed / total)}), in ${groups.length} groups.` }));
  if (killers.length) out.push(el("h4", { text: "Tests that fail recorded rollouts" }), el("ul", { class: "parts" }, ...killers.slice(0, 12).map(([test, count]) =>
    el("li", {}, `test ${test}: `, el("strong", { text: count })))));
  if (groups.length) {
    const first_of = (name) => kept.find((other) => other.group === name);
    const rows = groups.slice(-300).map(([version, verdicts, dropped, name]) => [version ?? "-", el("span", { class: "squares" }, ...verdicts.map(square)),
      percent(verdicts.filter((status) => status === "accepted").length / verdicts.length, 0), dropped ? words(dropped) : "sent",
      first_of(name) ? opener("open", first_of(name)) : "-"]);
    out.push(el("h4", { text: "Its groups over time" }), el("div", { class: "scroll tall", tabindex: 0, role: "group", "aria-label": "Groups of the problem" },
      table(["weights", "verdicts", "passed", "became", "recorded"], rows, 9)));
  }
  out.push(el("h4", { text: "Recorded rollouts" }), el("div", { class: "scroll tall", tabindex: 0, role: "group", "aria-label": "Recorded rollouts of the problem" },
    table(["rollout", "weights", "verdict", "failing test", "tokens"], kept.slice(-300).map((other, index) =>
      [opener(`${index + 1}${other === one ? " (this one)" : ""}`, other), other.version ?? "-", el("span", { class: kind(other.status), text: words(other.status) }), other.failed ?? "-", other.length ?? "-"]), 9)));
  return out;
}
