"""A run of many steps as its files would tell of it, made from a seed: restarts, drops, evaluations, rollouts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from math import exp
from pathlib import Path
from typing import Any

import yaml

from environments.common.packed import FLAGS, IDS, REALS, packed
from verifier_app.judge.compare import output_difference

BEGUN = 1_790_000_000.0
STEP_S = 90.0
PIECES = ("print", "(", "\u00c3", "\u00a9", ")\u010a", "<|end|>")
"""Of a byte-level vocabulary: the third ends within the letter \u00e9."""
TOKENS = (0, 1, 2, 3, 4, 5, 9)
"""Ids of a recorded rollout's tokens; no tokenizer knows the last one."""
LOGPROBS = (-0.125, -0.0625, -2.5, -0.25, -6.0, -0.5, -1.5)
CHANGES = (0.0, 0.25, -0.5, 0.0, 0.0, 0.0, 0.0)
FLAGS_OF = (0, 2, 1, 0, 0, 0, 0)


def make_run(folder: Path, steps: int = 60, planned: int = 80, seed: int = 0, groups: int = 6) -> Path:
    """Writes the records into `folder`: the trainer has died after `steps` of `planned` steps, and once before."""
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text('{"format": 1}')
    _settings(folder / "config", planned)
    metrics = [_step(dice, step) for step in range(1, steps + 1)]
    again = [_step(dice, step) for step in range(max(steps // 2 - 3, 1), steps + 1)]
    _write(folder / "metrics.jsonl", [*metrics[: steps // 2], *again])
    rows = [_group(dice, step, number) for step in range(steps) for number in range(groups)]
    _write(folder / "environment.jsonl", rows)
    _write(folder / "environment_metrics.jsonl", [_generation(dice, step) for step in range(steps)])
    _write(folder / "evaluations.jsonl", [_evaluation(step) for step in range(0, steps + 1, 10)])
    for step in range(steps):
        records = [_rollout(dice, row, index) for row in rows if row["weight_version"] == step for index in (0, 1)]
        _write(folder / "rollouts" / f"step-{step:05d}.jsonl", records)
        rows_trained = [_trained(row) for row in records if row["index"] and row["dropped"] is None]
        _write(folder / "trained_tokens" / f"step-{step + 1:08d}-0.jsonl", rows_trained)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "trainer.log").write_text(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    )
    for path in folder.rglob("*"):
        os.utime(path, (BEGUN + STEP_S * steps,) * 2)
    return folder


def _settings(config: Path, planned: int) -> None:
    config.mkdir(exist_ok=True)
    trainer = {
        "model": "Qwen/Qwen3-14B", "steps": planned, "objective": {"name": "gspo+", "overlong_baseline": "include"},
        "optimizer": {"lr": 1e-6}, "batch": {"rollouts": 48, "group_size": 8},
    }  # fmt: skip
    (config / "trainer.yaml").write_text(yaml.safe_dump(trainer))
    tokenizer = config.parent / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    vocabulary = {
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(PIECES[:-1])}},
        "added_tokens": [{"id": 5, "content": PIECES[-1]}],
    }
    (tokenizer / "tokenizer.json").write_text(json.dumps(vocabulary))
    environment = {"tokenizer": str(tokenizer), "env": {"problems": "data/train.jsonl"}}
    (config / "environment.yaml").write_text(yaml.safe_dump(environment))
    (config / "train.yaml").write_text("{}\n")


def _skill(step: float) -> float:
    return 0.25 + 0.4 * (1 - exp(-step / 25))


def _step(dice: random.Random, step: int) -> dict[str, Any]:
    passed, wait = _skill(step) + dice.gauss(0, 0.03), 45 + dice.random() * 15
    return {
        "step": step, "time": BEGUN + STEP_S * step, "tokens_trained": 180_000 + dice.randrange(40_000),
        "loss": dice.gauss(0, 0.02), "reward": 2 * passed - 1, "pass_at_1": passed,
        "pass_at_group": min(passed + 0.3, 1),
        "length_passed": 3000 + 20 * step, "length_failed": 5200 + 30 * step, "length_max": 9000, "overlong": 0.08,
        "entropy": 0.6 * exp(-step / 60) + 0.05, "grad_norm": 0.4 * exp(dice.gauss(0, 0.5)), "learning_rate": 1e-6,
        "clip_low_tokens": 0.002 * dice.random(), "clip_high_tokens": 0.004 * dice.random(), "ratio_mean": 1.0,
        "ratio_max": 1 + dice.random(), "mismatch_abs": 0.004 * exp(dice.gauss(0, 0.3)), "staleness": dice.random(),
        "groups": 6, "rollouts": 48,
        "staleness_max": 2, "effective_sample_size": 0.98, "seconds_wait": wait, "seconds_old_logprobs": 6.0,
        "seconds_train": 22.0, "seconds_sync": 4.0, "seconds_checkpoint": 3.0 * (step % 10 == 1), "seconds_pause": 2.5,
        "seconds_step": wait + 36, "peak_memory_gib": 61.5, "packed_tokens": 260_000,
        "servers_missing": int(step == 31),
    }  # fmt: skip


def _group(dice: random.Random, step: int, number: int) -> dict[str, Any]:
    problem, rate = (7 * step + 3 * number) % 20, _skill(step)
    passes = [dice.random() < rate for _ in range(8)]
    bad = ("wrong_answer", "time_limit_exceeded", "runtime_error")
    dropped = "all_pass" if all(passes) else None if any(passes) else "all_fail"
    if dice.random() < 0.02:
        dropped = "infrastructure"
    seconds = 30 + 20 * dice.random()
    return {
        "time": BEGUN + STEP_S * step + 40 + 8 * number, "group_id": f"g{step}-{number}",
        "problem_id": f"lcb_{problem:03d}",
        "difficulty": ("easy", "medium", "hard")[problem % 3], "source": "livecodebench", "kind": "stdin",
        "date": f"2024-{1 + problem % 9:02d}-11T00:00:00", "weight_version": step, "begun_at_version": step,
        "scores": [1.0 if one else -1.0 for one in passes], "overlong": [False] * 8,
        "verdicts": ["accepted" if one else dice.choice(bad) for one in passes],
        "lengths": [dice.randrange(800, 9000) for _ in passes], "dropped": dropped, "sent": dropped is None,
        "seconds_generate": seconds - 4, "seconds_verify": 12.0, "seconds": seconds,
    }  # fmt: skip


def _generation(dice: random.Random, step: int) -> dict[str, Any]:
    return {
        "step": step, "seconds": STEP_S, "pass_rate": _skill(step), "slots_busy": 0.7 + 0.2 * dice.random(),
        "in_flight": 9,
        "verify_seconds": {"mean": 0.9, "p95": 2.1, "max": 6 + dice.random()}, "resubmitted_failure": step // 20,
    }  # fmt: skip


def _evaluation(step: int) -> dict[str, Any]:
    per_problem: dict[str, tuple[str, int, int]] = {
        f"q{i:03d}": (f"t{i}", max(0, min(4, round(4 * _skill(step) + (i % 5 - 2) / 2))), 4) for i in range(75)
    }
    right = sum(row[1] for row in per_problem.values())
    rate = right / 300
    return {
        "set": "livecodebench-v6", "temperature": 0.6, "n": 4, "greedy": False, "problems": 75,
        "correct": right, "total": 300,
        "pass_at_1": rate, "ci95": [max(rate - 0.06, 0), rate + 0.06], "weight_version": step, "overlong": 9,
        "no_verdict": 0, "mean_length": 4200.0, "per_problem": per_problem, "cutoff": "2024-07-31",
        "by": {"difficulty": {"easy": [90, 100], "medium": [60, 100], "hard": [right // 3, 100]},
               "month": {f"2024-{month:02d}": [right // 9, 33] for month in range(1, 10)}},
    }  # fmt: skip


def _rollout(dice: random.Random, group: dict[str, Any], index: int) -> dict[str, Any]:
    status = group["verdicts"][index]
    right, number = status == "accepted", int(group["problem_id"][-3:])
    failed = None if right else dice.choice((0, 3, 3, 3, 7))
    ran = 12 if failed is None else failed + 1
    verdict = {
        "status": status, "passed": 12 if right else failed, "ran": ran, "total": 12,
        "failed_test": failed, "message": "" if right else output_difference("3\n4 5", "3\n4 6"),
    }  # fmt: skip
    return {
        "group_id": group["group_id"], "problem_id": group["problem_id"], "difficulty": group["difficulty"],
        "index": index,
        "score": group["scores"][index], "status": status, "verdict": verdict,
        "failing_test": None if right else {"input": "3\n1 2 3\n", "output": "3\n4 6\n"}, "finish_reason": "stop",
        "length": group["lengths"][index], "versions": [[group["weight_version"], 0, group["lengths"][index]]],
        **({"token_ids": packed(TOKENS, IDS), "logprobs": packed(LOGPROBS, REALS)} if index else {}),
        "dropped": group["dropped"], "prompt": f"Problem {number}: print the sum of n numbers.",
        "completion": f"<think>n first, then {number} numbers</think>So:",
        "code": f"def solve(n):  # {group['problem_id']}\n    return {number} + n\n\n\nprint(solve(int(input())))",
    }  # fmt: skip


def _trained(row: dict[str, Any]) -> dict[str, Any]:
    old = [one + 0.25 for one in LOGPROBS]
    return {
        "group_id": row["group_id"], "index": row["index"], "step": row["versions"][0][0] + 1, "advantage": 0.75,
        "ratio": None, "old": packed(old, REALS), "change": packed(CHANGES, REALS), "flags": packed(FLAGS_OF, FLAGS),
    }  # fmt: skip


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
