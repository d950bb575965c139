"""Groups in binary form: every number comes back bit for bit, and damaged or oversized bytes are refused."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.common import group_bytes
from environments.common.group_bytes import GroupBytesError, as_json, is_packed, join, pack, readdressed, split, unpack

finite = st.floats(allow_nan=False, allow_infinity=False)
rounded = st.floats(-20, 0).map(lambda value: round(value, 5) + 0.0)
single = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def groups(draw: st.DrawFn) -> dict[str, Any]:
    numbers = draw(st.sampled_from([rounded, single, finite]))
    rows = draw(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12), min_size=1, max_size=4))
    return {
        "tokens": rows,
        "masks": [[token if draw(st.booleans()) else -100 for token in row] for row in rows],
        "scores": [draw(finite) for _ in rows],
        "inference_logprobs": [[draw(numbers) for _ in row] for row in rows],
        "overrides": [{"finish_reason": draw(st.text(max_size=5))} for _ in rows],
        "group_overrides": {"group_id": "g"},
    } | draw(st.sampled_from([{}, {"env_id": 3}]))


def bits(rows: Any) -> list[bytes]:
    return [struct.pack(f"<{len(row)}d", *row) for row in rows]


@settings(max_examples=150, deadline=None)
@given(groups())
def test_every_number_comes_back_bit_for_bit_as_array_and_as_json(group: dict[str, Any]) -> None:
    body = pack(group)
    for found in (unpack(body).fields(), json.loads(as_json(body))):
        assert bits(found["inference_logprobs"]) == bits(group["inference_logprobs"])
        for name in ("tokens", "masks"):
            assert [list(row) for row in found[name]] == group[name]
        columns = ("tokens", "masks", "inference_logprobs")
        assert {k: v for k, v in found.items() if k not in columns} == {
            k: v for k, v in group.items() if k not in columns
        }


def test_negative_zero_and_the_smallest_numbers_keep_their_bits() -> None:
    numbers = [0.0, -0.0, 5e-324, -1e-5, float(np.nextafter(-1e-5, 0.0))]
    group = {"tokens": [[1] * 5], "masks": [[-100] + [1] * 4], "inference_logprobs": [numbers]}
    (found,) = unpack(pack(group)).reals["inference_logprobs"]
    assert bits([found]) == bits([numbers])


def long_group(length: int = 4_000) -> dict[str, Any]:
    tokens = [[(n * 7919 + row) % 150_000 for n in range(length)] for row in range(2)]
    logprobs = [[round(-(math.sin(n * 0.37 + row) ** 2), 5) + 0.0 for n in range(length)] for row in range(2)]
    masks = [[-100] * 500 + row[500:] for row in tokens]
    return {"tokens": tokens, "masks": masks, "inference_logprobs": logprobs, "group_overrides": {"group_id": "g"}}


def test_what_is_rounded_takes_four_bytes_a_number_before_compression_and_the_mask_next_to_none() -> None:
    group = long_group()
    assert len(pack(group)) < 2 * 4_000 * 8
    head = group_bytes._decoded(pack(group))
    assert (head.runs, head.reals) == ([[500, 3_500]] * 2, [("inference_logprobs", "e5")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"masks": [[-100, 5]]}, r"masks\[0\]: it holds more than -100 and the tokens' ids"),
        ({"masks": [[-100]]}, r"masks\[0\]"),
        ({"tokens": [[1, -2]]}, "tokens: send token ids"),
        ({"tokens": [[1, 2**31]]}, "tokens: send token ids"),
        ({"inference_logprobs": [[1.0]]}, "inference_logprobs: its rows have not the tokens' lengths"),
    ],
)
def test_a_group_without_a_binary_form_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(GroupBytesError, match=reason):
        pack({"tokens": [[1, 2]], "masks": [[-100, 2]], "inference_logprobs": [[1.0, -1.0]]} | change)


def test_a_batch_gives_each_group_in_the_form_that_it_came_in() -> None:
    plain = b'{"tokens": [[1, 2]], "group_overrides": {"problem_id": "p"}}'
    packed, named = split(join([("a", plain), ("b", pack(long_group()))]))
    assert packed == json.loads(plain) | {"api_group_id": "a"}
    assert named["group_overrides"] == {"group_id": "g"}
    assert "api_group_id" not in named
    with pytest.raises(GroupBytesError, match="no batch of groups"):
        split(b'{"batch": null}')
    with pytest.raises(GroupBytesError, match="no batch of groups"):
        split(join([("a", plain)])[:-1])


def test_a_group_is_readdressed_without_being_unpacked() -> None:
    body = readdressed(pack(long_group() | {"env_id": 3}), 7)
    assert unpack(body).env_id == 7
    with pytest.raises(GroupBytesError, match="no group in binary form"):
        readdressed(b"{}", 7)


def forged(**changes: Any) -> bytes:
    head = group_bytes._decoded(pack(long_group(600)))
    for name, value in changes.items():
        setattr(head, name, value)
    return group_bytes._GROUP + msgspec.msgpack.encode(head)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (forged(counts=[2**31 - 1, 2**31 - 1], runs=[[2**31 - 1]] * 2), "it unpacks to .* bytes, above 1 MiB"),
        (forged(rest=2**31 - 1), "above 1 MiB"),
        (forged(counts=[600, 599], runs=[[500, 100], [500, 99]]), "zstd frame is damaged or not of the size"),
        (forged(counts=[600, 601], runs=[[500, 100], [500, 101]]), "zstd frame is damaged or not of the size"),
        (forged(content=group_bytes._compressed(b"\0" * (64 << 20))), "zstd frame is damaged or not of the size"),
        (forged(content=b"no zstd"), "zstd frame is damaged"),
        (forged(runs=[[500, 100]]), "1 masks for 2 rollouts"),
        (forged(runs=[[500, 100], [500, 99]]), "runs do not add up"),
        (forged(reals=[("scores", "e5")]), "columns scores"),
        (forged(reals=[("inference_logprobs", "f2")]), "no group in binary form"),
        (forged(env_id=-1), "no group in binary form"),
        (forged(counts=[600, -600]), "no group in binary form"),
        (forged(rest=1), "zstd frame"),
        (pack(long_group(600))[:-1], "no group in binary form"),
        (b"\xc1AG1", "no group in binary form"),
    ],
)
def test_damaged_and_oversized_bytes_are_refused_before_they_are_unpacked(body: bytes, reason: str) -> None:
    assert is_packed(body)
    with pytest.raises(GroupBytesError, match=reason):
        unpack(body, most=1 << 20)


def test_fields_that_come_twice_are_refused() -> None:
    rest = b'{"tokens":[[9]]}'
    head = group_bytes._decoded(pack({"tokens": [[1, 2]], "masks": [[-100, 2]]}))
    ids = group_bytes._planes(np.array([1, 2], "<i4"))
    head.rest, head.content = len(rest), group_bytes._compressed(rest + ids)
    with pytest.raises(GroupBytesError, match="tokens: it comes twice"):
        unpack(group_bytes._GROUP + msgspec.msgpack.encode(head))
