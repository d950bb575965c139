"""pass@1 of the served model on a set of problems, with intervals that resample problems, not samples."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from environments.common.errors import LivecodeError
from environments.livecode.evaluation.contamination import around_cutoff
from environments.livecode.evaluation.drawing import Draws, draw_samples
from environments.livecode.evaluation.profiles import GradingProfile
from environments.livecode.evaluation.samples import Sample, SampleStore, estimates
from environments.livecode.pipeline import Pipeline
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.prompts import PromptBuilder
from environments.livecode.problems.window import KNOWN_BAD, KNOWN_BAD_BEFORE

RESAMPLES = 4000
_BOOTSTRAP_SEED = 20240801


class EvaluationError(LivecodeError, RuntimeError):
    """An evaluation that gives no number, or two that cannot be compared."""


async def evaluate(
    problems: Sequence[Problem],
    draws: Draws,
    *,
    pipeline: Pipeline,
    name: str,
    weight_version: int | None = None,
    samples: SampleStore | None = None,
    grading: Sequence[GradingProfile] = (),
    cutoff: str | None = None,
    prompts: PromptBuilder | None = None,
    pinned: bool = False,
) -> dict[str, Any]:
    """Samples of every problem from the running server, judged.

    Args:
        name: what the set is called in the record.
        samples: where judged samples are kept; those that are there already are not generated again.
        grading: every program is judged by each of these; the record's own numbers are the first one's. Without
            any, by the pipeline's limits.
        prompts: in place of the pipeline's own.
        pinned: every token has to come from `weight_version`.
        cutoff: ISO date; scores are given up to it and after it as well.

    Returns:
        A record, as `_record` has it, with {seed, weight_version, seconds}: wall time, other evaluations that run
        beside it included.

    Raises:
        EvaluationError: not one verdict.
        WeightsMoved: pinned, and the servers went on to other weights.
        RolloutError: the servers refuse or do not answer in time.
    """
    started = time.monotonic()
    if samples is not None:
        samples.begin(problems, prompts or pipeline.prompts)
    results = await draw_samples(
        problems, draws.each, draws.sampling, pipeline=pipeline, name=name, seed=draws.seed, samples=samples,
        grading=grading, prompts=prompts, pinned=weight_version if pinned else None,
    )  # fmt: skip
    record = {"set": name, "temperature": draws.sampling.temperature, "n": draws.each, "greedy": draws.greedy}
    record |= _record(name, problems, results, grading, cutoff)
    if samples is not None and not record["no_verdict"]:
        samples.finish(problems)
    seconds = round(time.monotonic() - started, 3)
    return record | {"seed": draws.seed, "weight_version": weight_version, "seconds": seconds}


def _record(
    name: str,
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    grading: Sequence[GradingProfile],
    cutoff: str | None,
) -> dict[str, Any]:
    """What judged samples give: {problems, profile, cutoff, the numbers of `scores`, profiles ({name: its `scores`},
    per_template and per_problem left out), overlong, no_verdict, mean_length, length_percentiles}.

    `no_verdict` rollouts are in neither correct nor total: a fault of ours is never a wrong answer.

    Raises:
        EvaluationError: not one verdict.
    """
    judged = [sample for sample in samples if sample.status is not None]
    if not judged:
        raise EvaluationError(f"{name}: not one verdict out of {len(samples)} rollouts")
    lengths = [sample.length for sample in judged]
    return {
        "problems": len(problems),
        "profile": str(grading[0]) if grading else None,
        "cutoff": cutoff,
        **scores(problems, samples, cutoff),
        "profiles": {profile.name: _graded_scores(problems, samples, profile.name, cutoff) for profile in grading},
        "overlong": sum(sample.overlong for sample in judged),
        "no_verdict": len(samples) - len(judged),
        "mean_length": sum(lengths) / len(lengths),
        "length_percentiles": {str(p): float(np.percentile(lengths, p)) for p in (50, 90, 99, 100)},
    }


def _graded_scores(
    problems: Sequence[Problem], samples: Sequence[Sample], profile: str, cutoff: str | None
) -> dict[str, Any]:
    """`scores` by this profile's verdicts, without the tables of templates and problems."""
    found = scores(problems, [_graded(sample, profile) for sample in samples], cutoff)
    return {name: value for name, value in found.items() if name not in ("per_template", "per_problem")}


def _graded(sample: Sample, profile: str) -> Sample:
    """The sample with this profile's verdict as its status."""
    if sample.status is None:
        return sample
    return msgspec.structs.replace(sample, status=sample.verdicts[profile].status)


def scores(problems: Sequence[Problem], samples: Sequence[Sample], cutoff: str | None = None) -> dict[str, Any]:
    """What the samples' status gives: {correct, total, pass_at_1 (mean over problems), ci95, pass_at_k (unbiased),
    pass_at_1_first (of each problem's first sample), per_template, per_problem, by, without_known_bad (None where
    nothing is known to be bad), verdicts}; samples without a verdict are in none of them, and one at least must have
    one."""
    templates = {problem.id: template_of(problem) for problem in problems}
    cells = {name: [0, 0] for name in templates}
    for sample in samples:
        if sample.status is not None:
            cells[sample.problem][0] += sample.status == "accepted"
            cells[sample.problem][1] += 1
    per_template: dict[str, list[int]] = {}
    for name, (correct, total) in cells.items():
        row = per_template.setdefault(templates[name], [0, 0])
        row[0], row[1] = row[0] + correct, row[1] + total
    correct, total = (sum(row[part] for row in per_template.values()) for part in (0, 1))
    per_problem = {name: [templates[name], *cell] for name, cell in cells.items()}
    return {
        "correct": correct,
        "total": total,
        "pass_at_1": pass_rate(per_problem),
        "ci95": list(pass_interval(per_problem)),
        "wilson95": list(wilson(correct / total, len(per_template))),
        **estimates(samples),
        "per_template": per_template,
        "per_problem": per_problem,
        "by": breakdown(problems, per_problem, cutoff),
        "around_cutoff": around_cutoff(problems, per_problem, cutoff, pass_rate, pass_interval),
        "without_known_bad": without(per_problem, KNOWN_BAD | KNOWN_BAD_BEFORE),
        "verdicts": dict(Counter(sample.status for sample in samples if sample.status is not None)),
    }


def breakdown(
    problems: Sequence[Problem], per_problem: Mapping[str, Sequence[Any]], cutoff: str | None = None
) -> dict[str, dict[str, list[int]]]:
    """{difficulty, kind, platform, month, training: {value: [correct, total]}} of the problems where it is known.

    training: up to the cut-off, when a problem may have been trained on, and after it. A model that is much better
    before than after has seen problems, or the later ones are harder: months show which.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for problem in problems:
        known = {
            "difficulty": problem.difficulty,
            "kind": problem.kind,
            "platform": problem.platform,
            "month": (problem.date or "")[:7],
            "training": _side(problem.date, cutoff),
        }
        for name, value in known.items():
            if value:
                cell = found.setdefault(name, {}).setdefault(value, [0, 0])
                cell[0], cell[1] = cell[0] + per_problem[problem.id][1], cell[1] + per_problem[problem.id][2]
    return {name: dict(sorted(cells.items())) for name, cells in found.items()}


def _side(date: str | None, cutoff: str | None) -> str | None:
    if not date or cutoff is None:
        return None
    return f"up to {cutoff}" if date[:10] <= cutoff else f"after {cutoff}"


def without(per_problem: Mapping[str, Sequence[Any]], names: Collection[str]) -> dict[str, Any] | None:
    """pass@1 and interval without these problems; None where none of them was evaluated.

    Args:
        per_problem: {problem id: [template, correct, total]}.
    """
    left = {name: row for name, row in per_problem.items() if name not in names}
    total = sum(row[2] for row in left.values())
    if len(left) == len(per_problem) or not total:
        return None
    low, high = pass_interval(left)
    return {"pass_at_1": pass_rate(left), "ci95": [low, high], "problems": len(left)}


def pass_rate(per_problem: Mapping[str, Sequence[Any]]) -> float:
    """pass@1 as LiveCodeBench has it: the mean over problems of the share of their samples that passed.

    It is that of all samples where each problem has as many; where some lack a verdict their problem counts no less.

    Args:
        per_problem: {problem id: [template, correct, total]}; one at least must have samples.
    """
    rates = [correct / total for _, correct, total in per_problem.values() if total]
    return float(sum(rates) / len(rates))


def pass_interval(per_problem: Mapping[str, Sequence[Any]]) -> tuple[float, float]:
    """The 95 % interval of pass@1 by a bootstrap over templates, then over the problems within each.

    Args:
        per_problem: {problem id: [template, correct, total]}.
    """
    table = _table(per_problem)
    return _percentiles([_rates(draw)[0] for draw in _draws(table)])


def wilson(share: float, units: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `units` independent units (Wilson 1927).

    It has a width at 0 and 100 % too, where a bootstrap has none. The units are what the bootstrap resamples first,
    templates, however many samples each has: samples of one problem are not independent.
    """
    z2 = 1.959964**2
    middle = (share + z2 / (2 * units)) / (1 + z2 / units)
    half = math.sqrt(z2 * (share * (1 - share) / units + z2 / (4 * units**2))) / (1 + z2 / units)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(record: Mapping[str, Any]) -> list[str]:
    """What a reader wants to know of a record of `evaluate`, in lines for a terminal."""
    heat = "greedy" if record["greedy"] else f"T {record['temperature']:g}, {record['n']} samples"
    (low, high), (below, above) = record["ci95"], record["wilson95"]
    verdicts = ", ".join(f"{name} {count}" for name, count in sorted(record["verdicts"].items()))
    lengths = record["length_percentiles"]
    lines = [
        f"{record['set']}, {heat}: {record['correct']} of {record['total']} right, {record['problems']} problems",
        f"  pass@1 {record['pass_at_1']:.3f}, 95 % bootstrap [{low:.3f}, {high:.3f}], "
        f"Wilson [{below:.3f}, {above:.3f}]",
        f"  verdicts: {verdicts}",
        f"  tokens: mean {record['mean_length']:.0f}, median {lengths['50']:.0f}, longest {lengths['100']:.0f}; "
        f"{record['overlong']} cut off",
    ]
    if len(record["pass_at_k"]) > 1:
        lines.insert(2, "  " + ", ".join(f"pass@{k} {value:.3f}" for k, value in record["pass_at_k"].items()))
    if (sides := record.get("around_cutoff")) is not None:
        lines.append(
            f"  up to {record['cutoff']}: pass@1 {sides['before']['pass_at_1']:.3f}, after it "
            f"{sides['after']['pass_at_1']:.3f}; p {sides['p_value']:.3g}, among problems of equal difficulty and "
            f"platform {sides['p_value_like_problems']:.3g}"
        )
    if record["no_verdict"] or record.get("left_out"):
        left = f"{record.get('left_out', 0)} problems left out, their prompts are too long"
        lines.append(f"  not counted: {record['no_verdict']} samples without a verdict, {left}")
    return lines


def paired_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
    """The gain in pass@1 between two records of `evaluate` on the same problems, with its 95 % interval.

    Both records are resampled together (templates, then problems within), so that what makes a problem hard for
    both does not widen the interval.

    Returns:
        (gain, (low, high)), shares of 1.

    Raises:
        EvaluationError: other problems, another number of samples, another temperature.
    """
    for field in ("set", "n", "temperature"):
        if before[field] != after[field]:
            raise EvaluationError(f"{field}: {before[field]!r} before and {after[field]!r} after: not comparable")
    if before["per_problem"].keys() != after["per_problem"].keys():
        raise EvaluationError(f"set {before['set']}: other problems before than after: not comparable")
    pairs = {name: [*row, *after["per_problem"][name][1:]] for name, row in before["per_problem"].items()}
    table = _table(pairs)
    gains = []
    for draw in _draws(table):
        first, second = _rates(draw)
        gains.append(second - first)
    return after["pass_at_1"] - before["pass_at_1"], _percentiles(gains)


def template_of(problem: Problem) -> str:
    """What is resampled together: the template a problem was made from, or the problem itself."""
    return problem.template or problem.id


Table = list[NDArray[np.float64]]  # one array per template, [problems, (rate, 1 or without samples 0) once or twice]


def _share(correct: float, total: float) -> tuple[float, float]:
    return (correct / total, 1.0) if total else (0.0, 0.0)


def _table(per_problem: Mapping[str, Sequence[Any]]) -> Table:
    by_template: dict[str, list[Sequence[Any]]] = {}
    for template, *counts in per_problem.values():
        row = [
            part for correct, total in zip(counts[::2], counts[1::2], strict=True) for part in _share(correct, total)
        ]
        by_template.setdefault(template, []).append(row)
    return [np.asarray(rows, dtype=np.float64) for rows in by_template.values()]


def _draws(table: Table) -> NDArray[np.float64]:
    """Sums over the resampled problems, one row (rates, problems, ...) per resample."""
    random = np.random.default_rng(_BOOTSTRAP_SEED)
    chosen = random.integers(len(table), size=RESAMPLES * len(table))
    # The resamples that drew a template, once for each time they drew it.
    ends = np.cumsum(np.bincount(chosen, minlength=len(table)))
    drawn_by = np.split(np.argsort(chosen, kind="stable") // len(table), ends[:-1])
    sums = np.zeros((RESAMPLES, table[0].shape[1]))
    for rows, resample in zip(table, drawn_by, strict=True):
        times = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(resample))
        np.add.at(sums, resample, times @ rows)
    return sums


def _rates(draw: NDArray[np.float64]) -> list[float]:
    return [float(draw[part] / max(draw[part + 1], 1.0)) for part in range(0, len(draw), 2)]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(np.asarray(values), [2.5, 97.5])
    return float(low), float(high)
