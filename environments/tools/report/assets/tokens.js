"use strict";
// A rollout's tokens: what the sampler gave each, which weights made it, and what the trainer made of it.

const TOKENS_AT_ONCE = 4000;
let tokenColor = "logprob";

const FLAGS = ["", "below the range", "above the range", "dual clip", "sequence masked"];
const DISTANCES = [0.01, 0.03, 0.1, 0.3, 1];
const grade = (value, bounds) => { const at = bounds.findIndex((bound) => value < bound); return at < 0 ? bounds.length : at; };

// By what tokens are coloured: {name, a token's class, [class, words] of the legend, whether the trainer's record is needed}.
const COLORS = {
  logprob: { name: "log-probability", of: (all, i) => "p" + Math.max(0, Math.min(5, Math.floor(-all.logprobs[i]) || 0)),
    legend: () => [["p0", "0 to -1 nats"], ["p1", "to -2"], ["p2", "to -3"], ["p3", "to -4"], ["p4", "below"]] },
  version: { name: "weights", of: (all, i) => "v" + Math.max(0, all.versions.indexOf(all.version(i))) % 6,
    legend: (all) => all.versions.map((version, at) => ["v" + at % 6, `weights ${version}`]) },
  clip: { name: "clipped", of: (all, i) => "f" + all.flags[i], needs: true,
    legend: () => [["f1", FLAGS[1]], ["f2", FLAGS[2]], ["f3", FLAGS[3]], ["f4", FLAGS[4]]] },
  change: { name: "change of the policy", of: (all, i) => "p" + grade(Math.abs(all.change[i]), DISTANCES), needs: true,
    legend: () => distances("nats between old and new weights") },
  mismatch: { name: "trainer against sampler", of: (all, i) => "p" + grade(Math.abs(all.old[i] - all.logprobs[i]), DISTANCES), needs: true,
    legend: () => distances("nats between trainer and sampler") },
};
const distances = (what) => [["p0", `below ${DISTANCES[0]} ${what}`], ...DISTANCES.map((bound, at) => ["p" + (at + 1), `from ${bound}`])];

// Numbers of a token each, as environments/common/packed.py writes them.
async function unpacked(text, ArrayOf) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new ArrayOf(await new Response(stream).arrayBuffer());
}

// A half-precision number from its bits.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);
}

const halves = async (text) => Float32Array.from(await unpacked(text, Uint16Array), half);

// All that is known of a rollout's tokens; a token that ends within a character is shown with the one that ends it.
async function tokensOf(one) {
  const packed = data.tokens[`${one.group}/${one.index}`], trained = packed.trained || {};
  const spans = Array.isArray(one.spans) ? one.spans.filter(Array.isArray) : [];
  const all = { ids: await unpacked(packed.ids, Int32Array), logprobs: await halves(packed.logprobs), trained,
    versions: [...new Set(spans.map((span) => span[0]))], version: (i) => (spans.find(([, from, to]) => from <= i && i < to) || [])[0] };
  if (trained.flags) Object.assign(all, { old: await halves(trained.old), change: await halves(trained.change), flags: await unpacked(trained.flags, Uint8Array) });
  const decoder = new TextDecoder();
  all.texts = Array.from(all.ids, (id) => {
    const known = data.vocabulary[id];
    if (known == null) return `\u27e8${id}\u27e9`;
    return decoder.decode(Uint8Array.from(known, (letter) => letter.charCodeAt(0)), { stream: true }) || "\u25cc";
  });
  return all;
}

function told(all, i, advantage) {
  const parts = [`token ${i}: ${JSON.stringify(all.texts[i])}`, `id ${all.ids[i]}`, `log-probability ${all.logprobs[i].toFixed(3)}`, `advantage ${signed(advantage)}`];
  if (all.version(i) != null) parts.push(`weights ${all.version(i)}`);
  if (all.flags) parts.push(`old log-probability ${all.old[i].toFixed(3)}`, `ratio ${short(all.trained.ratio ?? Math.exp(all.change[i]))}`, all.flags[i] ? `clipped: ${FLAGS[all.flags[i]]}` : "not clipped");
  return parts.join(", ");
}

// The sentence over the tokens.
function aboutTokens(one, advantage) {
  const spans = Array.isArray(one.spans) ? one.spans.filter(Array.isArray) : [];
  const by = spans.length > 1 ? "Sampled by " + spans.map(([version, from, to]) => `weights ${version} (tokens ${from} to ${to})`).join(", ")
    : `Sampled by weights ${spans.length ? spans[0][0] : "unknown"}`;
  return `Advantage of every token: ${signed(advantage)}. ${by}.`;
}

const ofGroup = (one) => one.group == null ? null : data.groups[one.group]?.advantages?.[one.index] ?? null;

function tokensSide(one) {
  const host = el("div", { "aria-busy": "true" }), about = el("p", { class: "quiet", text: aboutTokens(one, ofGroup(one)) });
  if (one.tokens !== "here") {
    host.removeAttribute("aria-busy");
    host.append(el("p", { class: "quiet", text: one.tokens ? "Its tokens are left out of this page, which keeps those of the newest rollouts: --rollouts with a smaller number keeps more of each."
      : "This record holds no tokens: env.record_tokens keeps them." }));
    return [about, host];
  }
  tokensOf(one).then((all) => { if (host.isConnected) drawTokens(one, all, host, about); })
    .catch((error) => host.append(el("p", { text: `The record of its tokens is damaged: ${error.message}` }))).finally(() => host.removeAttribute("aria-busy"));
  return [about, host];
}

function drawTokens(one, all, host, about) {
  const known = Object.fromEntries(Object.entries(COLORS).filter(([, color]) => all.flags || !color.needs));
  const color = known[tokenColor] || COLORS.logprob, advantage = all.trained.advantage ?? ofGroup(one);
  const clips = all.flags ? all.flags.reduce((sum, flag) => sum + (flag > 0), 0) : 0;
  about.textContent = aboutTokens(one, advantage) + (all.flags ? ` ${clips} of ${all.ids.length} clipped in step ${all.trained.step}` + (all.trained.ratio == null ? "." : `; the sequence's ratio was ${short(all.trained.ratio)}.`)
    : one.dropped ? " Not trained on: its group was left out." : " Not trained on yet, or the trainer kept no record of it.");
  const pre = el("pre", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens; the arrows move from one to the next" });
  const line = el("output", { class: "quiet told", text: "Point at a token, or move with the arrows." });
  let drawn = 0, at = -1;
  const draw = () => {
    const part = document.createDocumentFragment(), to = Math.min(drawn + TOKENS_AT_ONCE, all.ids.length);
    for (; drawn < to; drawn++) part.append(el("span", { class: color.of(all, drawn) + (all.texts[drawn].includes("\n") ? " nl" : ""), text: all.texts[drawn] }));
    pre.append(part);
    rest.hidden = drawn >= all.ids.length;
    rest.textContent = `${all.ids.length - drawn} more`;
  };
  const rest = el("button", { type: "button", class: "rest", onclick: draw });
  const point = (next) => {
    pre.children[at]?.classList.remove("at");
    at = Math.max(0, Math.min(next, drawn - 1));
    pre.children[at].classList.add("at");
    line.textContent = told(all, at, advantage);
  };
  pre.addEventListener("mouseover", (event) => { if (event.target !== pre) point([...pre.children].indexOf(event.target)); });
  pre.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    point(at + by);
  });
  draw();
  const pick = choices("token-color", "Colour by", Object.fromEntries(Object.entries(known).map(([key, { name }]) => [key, name])), known[tokenColor] ? tokenColor : "logprob",
    (value) => { tokenColor = value; host.replaceChildren(); drawTokens(one, all, host, about); $("[data-key=token-color]").focus(); });
  host.append(el("form", { class: "tools", onsubmit: (event) => event.preventDefault() }, pick,
    el("ul", { class: "parts tokens" }, ...color.legend(all).map(([name, text]) => el("li", {}, el("span", { class: name, text: "\u2007\u2007" }), ` ${text}`)))), line, pre, rest);
}
