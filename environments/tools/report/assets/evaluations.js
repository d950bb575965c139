"use strict";
// Evaluations with their parts, and the tables of all rollouts and groups.

const beside = (sides) => !sides ? "" : `; ${percent(sides.before.pass_at_1)} before and ${percent(sides.after.pass_at_1)} after, ` +
  `p ${sides.p_value.toPrecision(2)}, among problems alike ${sides.p_value_like_problems.toPrecision(2)}`;

const label = (one, name) => `${one.set}${one.greedy ? " (greedy)" : ""} at weights ${one.weight_version ?? "-"}` +
  `${one.profile && one.profile !== "run" ? `, ${one.profile}` : ""}` + (name ? `: by ${name}` : "");

// What a number is of: two of them are comparable where this is equal.
const how = (s) => !s ? "-" : `${s.prompt_style}, ${s.max_new_tokens ?? "the rest"} of ${s.context} tokens, ` +
  (s.temperature ? `T ${s.temperature}, top_p ${s.top_p}` : "greedy");

// pass@1 by the month of the problems: what lies before the cut-off may have been trained on.
function months(one) {
  const cells = Object.entries(one.by.month), sides = Object.entries(one.by.training || {});
  const seen = (month) => Boolean(one.cutoff) && month <= one.cutoff.slice(0, 7);
  const rates = cells.map(([month, [correct, total]]) => [month, total ? correct / total : 0, total]);
  const told = sides.map(([name, [correct, total]]) => `${name}: ${percent(total ? correct / total : 0)} of ${total} samples`);
  const host = el("div", { class: "plot months", role: "img", "aria-label": `pass@1 by month: ${rates.map(([month, rate]) => `${month} ${percent(rate, 0)}`).join(", ")}. ${told.join("; ")}` });
  const keys = el("div", { class: "legend" });
  told.forEach((text, index) => keys.append(el("span", { class: sides[index][0].startsWith("up to") ? "s1 key" : "s0 key", text })));
  const card = el("div", { class: "card" }, el("h3", { text: label(one, "month") }),
    el("div", { class: "unit", text: "pass@1 by the month of the problem" + (one.cutoff ? `; training cut-off ${one.cutoff}` : "") + beside(one.around_cutoff) }), host, keys,
    numbersOf(label(one, "month"), ["month", "pass@1", "samples"], () => rates));
  card.draw = () => {
    const column = (before) => rates.map(([month, rate]) => seen(month) === before ? rate : null);
    plot(host, [rates.map((_, i) => i), column(true), column(false)],
      [{ name: "before", color: "--s1", fill: true, bars: true }, { name: "after", color: "--s0", fill: true, bars: true }],
      { percent: true, alone: true, xs: rates.map(([month]) => month.slice(2)), yRange: () => [0, 1], range: () => [-0.6, rates.length - 0.4], space: 44 });
  };
  return card;
}

function rateTable(title, columns, rows) {
  const cells = rows.map(([name, count, share]) => [name, count, percent(share), el("meter", { min: 0, max: 1, value: share, "aria-label": `${name}: ${percent(share)}` })]);
  return el("div", { class: "card" }, el("h3", { text: title }), table([...columns, el("span", { class: "unseen", text: "as a bar" })], cells));
}

let parts_of = null;  // the evaluation whose parts are shown; null: the last
function evaluationsView(section) {
  const rows = data.evaluations.map((one) => [one.set + (one.greedy ? " (greedy)" : ""), one.profile || "-", how(one.settings), one.weight_version ?? "-", one.problems, one.n,
    `${percent(one.pass_at_1)} ${ends(one.ci95)}`.trim(), one.without_known_bad ? percent(one.without_known_bad.pass_at_1) : "-", one.overlong ?? "-", one.no_verdict ?? "-",
    one.mean_length == null ? "-" : Math.round(one.mean_length)]);
  const names = ["set", "graded as", "prompt and sampling", "weights", "problems", "n", "pass@1 [95 %]", "without known-bad", "overlong", "no verdict", "tokens"];
  const cards = [], one = data.evaluations[parts_of] || data.evaluations[data.evaluations.length - 1];
  for (const [name, cells] of Object.entries(one.by)) {
    const parts = Object.entries(cells).map(([key, [correct, total]]) => [key, total, total ? correct / total : 0]);
    if (parts.length < 2 || name === "training") continue;
    cards.push(name === "month" ? months(one) : rateTable(label(one, name), [name, "samples", "pass@1"], parts));
  }
  section.append(...[el("h2", { class: "unseen", text: "Evaluations" }),
    el("div", { class: "card scroll", tabindex: 0, role: "group", "aria-label": "Evaluations" }, table(names, rows, 3)),
    el("div", { class: "tools" }, el("button", { type: "button", text: "Download CSV", onclick: () => download(`${data.title}-evaluations.csv`, csv([names, ...rows]), "text/csv") })),
    data.evaluations.length > 1 ? el("form", { class: "tools" }, choices("parts", "Parts of", Object.fromEntries(data.evaluations.map((each, i) => [i, label(each)])),
      String(data.evaluations.indexOf(one)), (value) => { parts_of = Number(value); fill("evaluations"); })) : null,
    el("div", { class: "grid" }, ...cards)].filter(Boolean));
  for (const card of cards) if (card.draw) card.draw();
}

function groupsView(section) {
  section.append(el("h2", { class: "unseen", text: "Breakdown" }), el("div", { class: "grid" }, ...data.tables.map((one) =>
    rateTable(one.title, one.columns, one.rows.map(([name, ...rest]) => [words(name), ...rest])))));
}
