"""An environment that asks in one short message; rollouts, verification, rewards and recovery are livecode's."""

from __future__ import annotations

from environments.livecode.environment import LivecodeEnv
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder


class TersePrompts(PromptBuilder):
    """The statement, and what to answer with."""

    def chat(self, problem: Problem) -> list[dict[str, str]]:
        """The messages of one problem; the model's chat template turns them into tokens."""
        if problem.fn_name is None:
            task = "Write a Python program that reads stdin and prints the answer."
        else:
            task = f"Write the Python function {problem.fn_name}.\n```python\n{problem.starter_code}\n```"
        return [{"role": "user", "content": f"{problem.statement}\n\n{task} Answer with one code block."}]


class TerseEnv(LivecodeEnv):
    """`atropos run-env terse`."""

    name = "terse"
    prompt_builder_cls = TersePrompts
