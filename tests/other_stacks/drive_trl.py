"""In TRL's environment: the reward function on the answers, then two steps of GRPOTrainer on warm-up problems."""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from environments.livecode.problems.problem import Problem
from integrations import grading
from integrations.trl_reward import livecode_reward, rows


class Faulty(grading.Grader):
    """A judge that fails at each third answer of the first step."""

    calls = 0

    async def grade(self, problem: Problem, answer: str, reasoning_open: bool = False) -> grading.Grade:
        Faulty.calls += 1
        if Faulty.calls % 3 == 0 and Faulty.calls <= 8:
            raise grading.NoVerdict(f"problem {problem.id}: no verdict: the judge is away")
        return await super().grade(problem, answer, reasoning_open)


def main(problems: str, answers: str, model: str) -> dict[str, object]:
    texts = json.loads(Path(answers).read_text())
    columns = rows(problems)
    names = [grading.problem_of(row["problem"]).id for row in columns]
    rewards = livecode_reward(completions=[texts[name] for name in names], problem=[row["problem"] for row in columns])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    vars(grading)["Grader"] = Faulty
    grading._shared.clear()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=LlamaForCausalLM(config),
            processing_class=tokenizer,
            reward_funcs=livecode_reward,
            train_dataset=Dataset.from_list(rows("warmup:train")[:8]),
            args=GRPOConfig(
                folder, max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
                logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
            ),
        )  # fmt: skip
        trainer.train()
    history = [row for row in trainer.state.log_history if "reward" in row]
    return {
        "by_problem": dict(zip(names, rewards, strict=True)),
        "steps": trainer.state.global_step,
        "rewards": [row["reward"] for row in history],
        "no_verdict": [row.get("livecode/no_verdict") for row in history],
        "finite": all(math.isfinite(row["loss"]) for row in history),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
