"""Is a model better on problems that it may have been trained on? Scores around a date, by month, and a p-value.

Later problems may simply be harder, so the difference is tested twice: over all problems, and among problems of equal
difficulty and platform only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments.livecode.problems.problem import Problem

PERMUTATIONS = 10_000
_AT_ONCE = 1 << 21  # entries of the permuted labels in memory
_SEED = 20240731
Rates = Mapping[str, Sequence[Any]]
"""{problem id: [template, correct, total]}."""


def around_cutoff(
    problems: Sequence[Problem],
    per_problem: Rates,
    cutoff: str | None,
    pass_rate: Callable[[Rates], float],
    interval: Callable[[Rates], tuple[float, float]],
) -> dict[str, Any] | None:
    """Scores up to the cut-off and after it, by month, and whether they differ; None where one side is empty.

    Returns:
        {before, after, by_month: {month: cell}, difference, p_value, p_value_like_problems}, a cell being {problems,
        pass_at_1, ci95}. difference: before less after. Both p-values are two-sided permutation tests of the mean
        over problems, dates dealt out at random: among all, and within each difficulty and platform.
    """
    dated = [problem for problem in problems if problem.date and per_problem[problem.id][2]]
    before = [cutoff is not None and (problem.date or "")[:10] <= cutoff for problem in dated]
    if all(before) or not any(before):
        return None

    def cell(chosen: Sequence[Problem]) -> dict[str, Any]:
        rates = {problem.id: per_problem[problem.id] for problem in chosen}
        return {"problems": len(rates), "pass_at_1": pass_rate(rates), "ci95": list(interval(rates))}

    months = sorted({(problem.date or "")[:7] for problem in dated})
    sides = [
        cell([problem for problem, early in zip(dated, before, strict=True) if early is side]) for side in (True, False)
    ]
    shares = np.array([per_problem[problem.id][1] / per_problem[problem.id][2] for problem in dated])
    labels = np.array(before)
    alike = [f"{problem.difficulty}/{problem.platform}" for problem in dated]
    return {
        "before": sides[0],
        "after": sides[1],
        "by_month": {month: cell([one for one in dated if (one.date or "").startswith(month)]) for month in months},
        "difference": sides[0]["pass_at_1"] - sides[1]["pass_at_1"],
        "p_value": permutation_p(shares, labels, ["all"] * len(dated)),
        "p_value_like_problems": permutation_p(shares, labels, alike),
    }


def permutation_p(shares: NDArray[np.float64], labels: NDArray[np.bool_], strata: Sequence[str]) -> float:
    """Two-sided p-value of a difference in means, labels permuted within strata; 1 where no stratum has both labels.

    shares, labels: [n]. The statistic is the sum over strata of the labelled shares, about its mean over permutations.
    """
    random = np.random.default_rng(_SEED)
    drawn = np.zeros(PERMUTATIONS)
    observed = expected = 0.0
    for stratum in sorted(set(strata)):
        inside = np.array([one == stratum for one in strata])
        values, marked = shares[inside], labels[inside]
        count = int(marked.sum())
        if count in (0, len(values)):
            continue
        observed += float(values[marked].sum())
        expected += float(values.mean()) * count
        step = max(1, _AT_ONCE // len(values))
        for start in range(0, PERMUTATIONS, step):
            rows = min(step, PERMUTATIONS - start)
            dealt = random.permuted(np.tile(marked, (rows, 1)), axis=1)
            drawn[start : start + rows] += dealt @ values
    if observed == expected == 0.0 and not drawn.any():
        return 1.0
    away = np.abs(drawn - expected) >= abs(observed - expected) - 1e-9
    return float((1 + away.sum()) / (1 + PERMUTATIONS))
