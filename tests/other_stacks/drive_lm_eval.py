"""In lm-eval's environment: its evaluator on the task, with a model that says the answers."""

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from integrations.grading import problem_of
from integrations.lm_eval_tasks import livecode


class Says(LM):  # type: ignore[misc]  # lm-eval is not installed where types are checked
    """Answers each prompt with its problem's text."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__()
        self.texts = texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.texts[problem_of(request.doc["problem"]).id] for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def main(problems: str, answers: str) -> dict[str, object]:
    folder = str(Path(livecode.__file__).parent)
    manager = TaskManager(include_path=folder, include_defaults=False, metadata={"problems": problems})
    done = evaluator.simple_evaluate(
        model=Says(json.loads(Path(answers).read_text())),
        tasks=["livecodebench_v6_window"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    found = done["results"]["livecodebench_v6_window"]
    samples = done["samples"]["livecodebench_v6_window"]
    by_problem = {one["doc"]["id"]: one.get("pass@1") for one in samples}
    return {"pass@1": found["pass@1,all"], "by_problem": by_problem, "prompt": samples[0]["arguments"][0][0]}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
