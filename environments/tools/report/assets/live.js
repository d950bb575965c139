"use strict";
// The page of a live run: changes come as server-sent events, and nothing is ever sent.

const MOST_KEPT = 5000;

function listen(address) {
  const source = new EventSource(address), told = $("#live");
  const say = (text) => { told.hidden = false; told.textContent = text; };
  source.addEventListener("open", () => say("live"));
  source.addEventListener("error", () => say("connection lost, trying again"));
  source.addEventListener("reload", () => { source.close(); location.reload(); });
  source.addEventListener("message", (event) => {
    take(JSON.parse(event.data));
    say(`live, ${new Date().toLocaleTimeString()}`);
  });
}

// Adds what is new to what the page has.
function take({ rollouts, groups, problems, tokens, vocabulary, ...rest }) {
  data.rollouts.push(...rollouts);
  data.rollouts.splice(0, data.rollouts.length - MOST_KEPT);
  data.recorded = data.rollouts.length;
  Object.assign(data.groups, groups);
  if (Object.keys(tokens).length) {
    Object.assign(data.tokens, tokens);
    Object.assign(data.vocabulary, vocabulary);
  }
  for (const [problem, rows] of Object.entries(problems)) data.problems[problem] = [...(data.problems[problem] || []), ...rows];
  refresh(rest);
}

if (data.live) listen(data.live);
