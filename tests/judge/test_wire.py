"""The format between a called function and the judge: exact for data, never an exception, never a pass by accident."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier_app.judge import value_codec
from verifier_app.judge.compare import value_difference

KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
VALUES = st.recursive(
    KEYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS), inner, max_size=3)
    ),
    max_leaves=15,
)


def shape(value: Any) -> Any:
    """Value and type of every node."""
    if isinstance(value, value_codec.Items):
        return dict, [(shape(key), shape(item)) for key, item in value.pairs]
    if isinstance(value, (list, tuple)):
        return type(value), [shape(item) for item in value]
    if isinstance(value, dict):
        return dict, [(shape(key), shape(item)) for key, item in value.items()]
    return type(value), repr(value)


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_plain_data_arrives_as_it_left(value: Any) -> None:
    assert shape(value_codec.decode(value_codec.encode(value))) == shape(value)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='[]{}":,0123456789tdxNaInfiye-+. ', max_size=60).map(str.encode))
def test_any_bytes_are_data_or_malformed_and_never_equal_to_a_secret(data: bytes) -> None:
    try:
        value = value_codec.decode(data)
    except value_codec.Malformed:
        return
    assert value_difference(value, {"secret": [0.5, "e5b1c6a07f3d9284"]}) is not None


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[" * 100_000,
     b'{"t": 1}', b'{"d": [1]}', b'{"q": []}', b"{}", b'{"t": [], "d": []}', b"\xff",
     b"1 2", b'{"t": ' * 5000 + b"[]" + b"}" * 5000],
    ids=lambda data: repr(data[:16]),
)  # fmt: skip
def test_what_is_not_the_format_is_malformed(data: bytes) -> None:
    with pytest.raises(value_codec.Malformed):
        value_codec.decode(data)


class _Proud(list):  # type: ignore[type-arg]
    def __eq__(self, other: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(["anything"])


class _Liar:
    __class__ = list  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize(
    "value",
    [{1, 2}, deque([1]), b"x", object(), 1j, range(3), _Liar(), print, type],
    ids=lambda value: type(value).__name__,
)
def test_other_types_equal_nothing(value: Any) -> None:
    received = value_codec.decode(value_codec.encode(value))
    assert value_difference(received, [1, 2]) is not None
    assert value_difference([received], [[1, 2]]) is not None


def test_subclasses_arrive_as_their_base_with_their_true_contents() -> None:
    point = namedtuple("point", "x y")
    assert value_codec.decode(value_codec.encode(Counter("aa"))) == {"a": 2}
    assert value_codec.decode(value_codec.encode(defaultdict(list, a=[1]))) == {"a": [1]}
    assert value_codec.decode(value_codec.encode(OrderedDict(a=1))) == {"a": 1}
    assert value_codec.decode(value_codec.encode(point(1, 2))) == (1, 2)
    assert value_difference(value_codec.decode(value_codec.encode(_Proud([1]))), [1]) is None
    assert value_difference(value_codec.decode(value_codec.encode(_Proud([1]))), [2]) is not None


def test_numpy_scalars_arrive_as_numbers_and_arrays_as_nothing() -> None:
    numpy = pytest.importorskip("numpy")
    assert shape(
        value_codec.decode(value_codec.encode([numpy.int64(3), numpy.float64(0.5), numpy.bool_(True)]))
    ) == shape([3, 0.5, True])
    assert isinstance(value_codec.decode(value_codec.encode(numpy.arange(3))), value_codec.OtherValue)


def test_values_too_deep_to_print_are_other() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert isinstance(value_codec.decode(value_codec.encode(loop)), value_codec.OtherValue)
    assert isinstance(value_codec.decode(b'{"d": [[[1], 2]]}'), value_codec.Items)


@pytest.mark.parametrize("value", [10**5000, -(7**6000), [1, 10**5000], {"a": [(10**700,)]}], ids=list("abcd"))
def test_ints_of_any_length_arrive_as_they_left(value: Any) -> None:
    assert value_codec.decode(value_codec.encode(value)) == value
