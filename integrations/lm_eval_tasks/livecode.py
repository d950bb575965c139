"""lm-eval: a set of problems as a task, LiveCodeBench v6's window by default; livecodebench_v6_window.yaml names these.

    lm_eval run --model ... --tasks livecodebench_v6_window --apply_chat_template \
        --include_path "$(python -m integrations.lm_eval_tasks.livecode)" --metadata '{"problems": "data/test"}'

pass@1 is the mean over problems of the share of their samples that passed, as `atropos evaluate` has it. A sample
without a verdict is in no mean; `no_verdict` counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.livecode.problems.prompts import user_message
from integrations.grading import Judging, NoVerdict, of_profile, problem_of, problem_text, problems_named, shared_grader

if TYPE_CHECKING:
    from datasets import Dataset

_judging: dict[str, Judging] = {}


def dataset(problems: str = "data/test", profile: str = "livecodebench", **_: Any) -> dict[str, Dataset]:
    """{test: the problems}, by lm-eval's --metadata.

    Args:
        problems: a split that `atropos data build` made, a JSONL file, or a warm-up set.
        profile: the limits that programs are judged by: livecodebench (official) or nouscoder.

    Raises:
        ConfigError: no such problems, no such profile.
    """
    from datasets import Dataset

    _judging["test"] = of_profile(profile)
    rows = [{"id": problem.id, "problem": problem_text(problem)} for problem in problems_named(problems)]
    return {"test": Dataset.from_list(rows)}


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """LiveCodeBench's user message; its system message is the task's description."""
    problem = problem_of(doc["problem"])
    return user_message(problem.statement, problem.starter_code, problem.fn_name)


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The problem's id: there is no one right answer."""
    return str(doc["id"])


def every_sample(responses: Sequence[Any], docs: Sequence[Any]) -> Sequence[Any]:
    """The filter that keeps all samples of a problem (`repeats`)."""
    return responses


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """{pass@1 of this problem's samples that have a verdict, no_verdict: the share of those that have none}."""
    samples = results[0] if results and not isinstance(results[0], str) else results
    problem = problem_of(doc["problem"])
    grades = shared_grader(_judging.get("test")).grade_all([(problem, str(sample)) for sample in samples])
    judged = [grade for grade in grades if not isinstance(grade, NoVerdict)]
    found = {"no_verdict": 1 - len(judged) / len(grades)}
    return found | ({"pass@1": sum(grade.accepted for grade in judged) / len(judged)} if judged else {})


if __name__ == "__main__":
    print(Path(__file__).resolve().parent)
