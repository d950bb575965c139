"""Which test runs first: the one that most likely fails a wrong program, for what it costs.

To reach a first failure at the least expected cost, independent tests run in descending order of P(fail) / cost: the
ratio rule of sequential testing (Mitten 1960, "An analytic solution to the least cost testing sequence problem").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

KEPT = 64  # runs of a test that count in full; older ones fade, since the model that writes the programs changes
PRIOR_RUNS = 2.0
PRIOR_KILLS = 0.5  # of a test of middling size
PRIOR_SLOPE = 0.3  # share by which the largest test counts for more, and the smallest for less
PRIOR_CPU_S = 0.02  # of a test with little input
BYTES_PER_S = 5e6  # input that a program reads and works through in a second


class TestOrder:
    """Per problem and test: runs under programs that were wrong, kills, and mean CPU seconds.

    A test behind the one that failed was not run and learns nothing. An accepted program's run says what a test costs,
    not whether it finds wrong programs. Before anything is known large inputs come first: they fail more programs.
    """

    __test__: ClassVar[bool] = False  # the name is not pytest's

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, list[float]]] = {}  # problem -> test -> [runs, kills, cpu seconds, cpu runs]

    def order(self, problem_id: str, sizes: Sequence[int]) -> list[int] | None:
        """A permutation of the tests, given the sizes of their inputs in bytes; None for one test or none."""
        if len(sizes) < 2:
            return None
        seen = self._seen.get(problem_id, {})
        by_size = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
        rank = {index: place / (len(sizes) - 1) for place, index in enumerate(by_size)}

        def worth(index: int) -> float:
            runs, kills, cpu, cpu_runs = seen.get(index, (0.0, 0.0, 0.0, 0.0))
            prior_kills = PRIOR_KILLS * (1 + PRIOR_SLOPE * (2 * rank[index] - 1))
            prior_cpu = PRIOR_CPU_S + sizes[index] / BYTES_PER_S
            likely = (kills + prior_kills) / (runs + PRIOR_RUNS)
            return likely / ((cpu + prior_cpu) / (cpu_runs + 1))

        return sorted(range(len(sizes)), key=lambda index: (-worth(index), index))

    def record(self, problem_id: str, verdict: Mapping[str, Any]) -> None:
        """Learns from a verdict; one without tests (no code, a compile error) changes nothing."""
        wrong = verdict["status"] != "accepted"
        for test in verdict.get("tests") or ():
            counts = self._seen.setdefault(problem_id, {}).setdefault(int(test["index"]), [0.0] * 4)
            counts[0] += wrong
            counts[1] += test["status"] != "accepted"
            counts[2] += float(test["cpu_s"])
            counts[3] += 1
            for first in (0, 2):
                total = counts[0] if first == 0 else counts[3]
                if total > KEPT:
                    counts[first] /= 2
                    counts[first + 1] /= 2

    def state(self) -> dict[str, Any]:
        """What a restart needs, as plain JSON types."""
        return {
            problem: [[index, *(round(value, 4) for value in counts)] for index, counts in tests.items()]
            for problem, tests in self._seen.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from `state`; ValueError names the problem whose entry is not one."""
        seen = {}
        for problem, rows in state.items():
            try:
                seen[problem] = {int(index): [float(value) for value in counts] for index, *counts in rows}
                if any(len(counts) != 4 for counts in seen[problem].values()):
                    raise ValueError("four numbers are kept of a test")
            except (TypeError, ValueError) as error:
                raise ValueError(f"test order of problem {problem!r}: {error}") from None
        self._seen = seen
