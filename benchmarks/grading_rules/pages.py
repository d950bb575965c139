"""The tables of docs/graders.md, from the measured result."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.grading_rules.examples import EXAMPLES
from benchmarks.grading_rules.table import NAMES, RULES

TITLES = {
    "ours": "ours",
    "livecodebench": "LiveCodeBench",
    "publisher": "publisher",
    "verl": "verl prime_code",
    "sandbox_fusion": "SandboxFusion",
    "verl_sandbox_fusion": "verl with SandboxFusion",
    "rllm": "rllm TACO",
}
_BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def replaced(page: str, result: dict[str, Any]) -> str:
    """The page with each block between `begin` and `end` marks made from the result; blocks it lacks stay."""
    made = tables(result)

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{made[match[2]]}{match[3]}" if match[2] in made else match[0]

    return _BLOCK.sub(block, page)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """By name: Markdown tables."""
    groups = result["groups"]
    found = {"limits": _limits(), "examples": _examples(groups["examples"]), "programs": _programs(groups)}
    found["attacks"] = _named(groups["attacks"], wanted=False)
    found["honest"] = _named(groups["honest"], wanted=True)
    if "strategies" in result:
        found |= {kind: _strategies(result["strategies"], kind) for kind in ("wrong", "right")}
    return found


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _limits() -> str:
    rows = []
    for rule in RULES:
        total = f"; {rule.all_seconds:g} s for all tests" if rule.all_seconds else ""
        part = f"; else the share of the first {rule.first_tests} tests" if rule.first_tests else ""
        most = f"; the {rule.most_tests} longest inputs only" if rule.most_tests else ""
        status = "must be 0" if rule.exit_status_counts else "not looked at" if rule.after_a_crash else "no exception"
        time = f"{rule.seconds:g} s{total}{most}{part}"
        rows.append([TITLES[rule.name], time, status, "yes" if rule.returned else "no", f"`{rule.source}`"])
    return _table(["grader", "a test", "how it ends", "calls", "read in"], rows)


def _code(text: str) -> str:
    return "`" + text.rstrip("\n").replace("\n", "⏎").replace("|", "\\|") + "`"


def _examples(group: dict[str, Any]) -> str:
    rows = []
    for one in EXAMPLES:
        verdicts = group["by_program"][one.kind]
        marks = ["" if verdicts[name] is None else "yes" if verdicts[name] else "-" for name in NAMES]
        expected = _code(json.dumps(one.expected) if not one.call else one.expected)
        rows.append([one.kind, expected, _code(one.shown), *marks])
    return _table(["kind", "expected", "answer or program", *(TITLES[name] for name in NAMES)], rows)


def _programs(groups: dict[str, Any]) -> str:
    rows = []
    for name, group in groups.items():
        if name != "examples":
            shares = [f"{group['rewarded'][one]} of {group['applies'][one]}" for one in NAMES]
            rows.append([name, *shares])
            if "reward" in group:
                means = [group["reward"][one] / group["applies"][one] for one in NAMES]
                rows.append([f"{name}: mean reward", *(f"{mean:.2f}" for mean in means)])
    return _table(["programs", *(TITLES[name] for name in NAMES)], rows)


def _named(group: dict[str, Any], wanted: bool) -> str:
    """Which programs each grader takes for what they are not."""
    rows = []
    for name in NAMES:
        wrong = [one for one, verdicts in group["by_program"].items() if verdicts[name] is (not wanted)]
        rows.append([TITLES[name], str(len(wrong)), ", ".join(wrong).replace("_", " ")])
    return _table(["grader", "programs", "which"], rows)


def _strategies(result: dict[str, Any], kind: str) -> str:
    names = [name for name in NAMES if name != "livecodebench"]
    head = ["answer", "problems", *(TITLES[name] for name in names)]
    rows = [[answer, str(row["problems"]), *(str(row[name]) for name in names)] for answer, row in result[kind].items()]
    return _table(head, rows)
