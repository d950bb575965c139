"""The endpoint of the model's publisher.

NousResearch/atropos, environments/code_execution_server/lcb_modal_endpoint.py: LiveCodeBench's comparison with one more
step for printed answers: the numbers of a line may each lie 1e-4 apart, absolutely. Results of calls are
compared exactly.
"""

from __future__ import annotations

from typing import Any

from verifier_app.judge.compare import output_difference, value_difference

TOLERANCE = 1e-4


def printed(got: str, expected: str) -> bool:
    """Whether the printed answer is right."""
    return output_difference(got, expected, TOLERANCE) is None


def returned(got: Any, expected: Any) -> bool:
    """Whether the result of a call is right."""
    return value_difference(got, expected) is None
