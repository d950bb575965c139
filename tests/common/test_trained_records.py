"""The trainer's lines: read and written as they were before they were structs."""

from __future__ import annotations

import json

import msgspec
import pytest

from environments.common.record_lines import RecordError, decode
from environments.common.trained_records import TrainedStep, TrainedTokens

LINES = [
    (TrainedStep, (", ", ": "), '{"step": 3, "groups": ["a", "b"], "dropped": {"c": "stale"}}'),
    (TrainedTokens, (",", ":"), '{"group_id":"g\\u00e9","index":1,"step":12,"advantage":0.75,"ratio":null,"old":"eJw=",'
     '"change":"eJw=","flags":"eJw="}'),
    (TrainedTokens, (",", ":"), '{"group_id":"g","index":0,"step":0,"advantage":-1e-05,"ratio":1.0625,"old":"",'
     '"change":"","flags":""}'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "separators", "line"), LINES)
def test_a_line_that_is_read_and_written_is_the_same(
    kind: type[msgspec.Struct], separators: tuple[str, str], line: str
) -> None:
    assert json.dumps(msgspec.to_builtins(decode(line, kind)), separators=separators) == line


def test_a_step_without_its_groups_is_an_error_that_names_them() -> None:
    with pytest.raises(RecordError, match="missing required field `groups`"):
        decode('{"step": 3}', TrainedStep)
    with pytest.raises(RecordError, match=r"`\$.dropped\[\.\.\.\]`"):
        decode('{"step": 3, "groups": [], "dropped": {"a": 1}}', TrainedStep)
