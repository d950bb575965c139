"""verl: a reward function by its documented signature, and the parquet file of a data set.

    python -m integrations.verl_reward warmup:train train.parquet
    python -m verl.trainer.main_ppo data.train_files=train.parquet \
        reward.custom_reward_function.path=pkg://integrations.verl_reward \
        reward.custom_reward_function.name=compute_score ...

verl has no word for "no sample": what the verifier's own retries leave without a verdict raises NoVerdict, which ends
the step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from environments.common.errors import LivecodeError, report
from environments.livecode.problems.prompts import Scaffold, messages
from integrations.grading import problem_of, problem_text, problems_named, shared_grader

DATA_SOURCE = "atropos-livecode"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """{score: +1 or -1, acc: whether accepted, no_code: whether the answer holds no program}.

    Args:
        data_source: DATA_SOURCE; others are refused, so that a mixed data set names its functions itself.
        solution_str: the answer, special tokens removed.
        ground_truth: the problem, as `write` puts it into the file.

    Raises:
        ValueError: another data source. NoVerdict: no judge could give a verdict.
    """
    if data_source != DATA_SOURCE:
        raise ValueError(f"data_source {data_source!r}: this function scores {DATA_SOURCE!r} alone")
    grade = shared_grader().grade(problem_of(ground_truth), solution_str)
    return {"score": grade.reward, "acc": grade.accepted, "no_code": grade.status == "no_code"}


def rows(problems: str, seed: int = 0, scaffold: Scaffold = "livecodebench") -> list[dict[str, Any]]:
    """verl's rows of a split, a JSONL file or a warm-up set."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": messages(problem, scaffold=scaffold),
            "ability": "code",
            "reward_model": {"style": "rule", "ground_truth": problem_text(problem)},
            "extra_info": {"index": index, "id": problem.id},
        }
        for index, problem in enumerate(problems_named(problems, seed))
    ]


def write(problems: str, out: str | Path, seed: int = 0, scaffold: Scaffold = "livecodebench") -> int:
    """Writes the rows as a parquet file; how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = rows(problems, seed, scaffold)
    pq.write_table(pa.Table.from_pylist(found), out)
    return len(found)


def main(argv: Sequence[str]) -> int:
    """PROBLEMS FILE: writes the parquet file; the exit code."""
    if len(argv) != 2:
        print("usage: python -m integrations.verl_reward PROBLEMS FILE.parquet", file=sys.stderr)
        return 2
    try:
        count = write(argv[0], argv[1])
    except LivecodeError as error:
        return report(error)
    print(f"{argv[1]}: {count} problems")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
