"""Makers of test inputs: each returns a function that draws the values of one test."""

from __future__ import annotations

from random import Random

from environments.livecode.problems.warmup.template import Inputs, Params, Value

WORDS = """
    apple river stone cloud green tiger lemon piano bread candle doctor engine forest garden hammer
    island jacket kitten ladder marble needle orange pencil rabbit saddle tunnel velvet window yellow
    zipper anchor basket copper dragon falcon guitar honey igloo jungle koala
""".split()


def number(low: int = 0, high: int = 50) -> Inputs:
    """One integer."""
    return lambda rng, params: (rng.randint(low, high),)


def number_near(name: str, spread: int = 4) -> Inputs:
    """One integer close to a parameter, so that off-by-one programs fail."""
    return lambda rng, params: (int(params[name]) + rng.randint(-spread, spread),)


def maybe_multiple(name: str, most: int = 12) -> Inputs:
    """One positive integer: a multiple of a parameter, or of one of its divisors only, or any other."""

    def draw(rng: Random, params: Params) -> tuple[Value, ...]:
        k = int(params[name])
        divisors = [offset for offset in range(1, k) if k % offset == 0]
        offset = rng.choice([0, 0, rng.choice(divisors), rng.randint(1, k - 1)])
        return (k * rng.randint(1, most) + offset,)

    return draw


def numbers(count: int, low: int = 0, high: int = 30) -> Inputs:
    """`count` integers, each a line of its own (or an argument)."""
    return lambda rng, params: tuple(rng.randint(low, high) for _ in range(count))


def one_line(inputs: Inputs) -> Inputs:
    """The same values, all on one line of stdin."""

    def draw(rng: Random, params: Params) -> tuple[Value, ...]:
        return ([value for value in inputs(rng, params) if isinstance(value, int)],)

    return draw


def row(low: int = 0, high: int = 20, shortest: int = 3, longest: int = 7) -> Inputs:
    """A list of integers."""
    return lambda rng, params: ([rng.randint(low, high) for _ in range(rng.randint(shortest, longest))],)


def row_around(name: str, spread: int = 4) -> Inputs:
    """A list of integers close to a parameter; the parameter itself occurs now and then."""

    def draw(rng: Random, params: Params) -> tuple[Value, ...]:
        k = int(params[name])
        near = [k + rng.randint(-spread, spread) for _ in range(rng.randint(4, 7))]
        return ([k if rng.random() < 0.3 else value for value in near],)

    return draw


def row_at_least(name: str, extra: int = 4) -> Inputs:
    """A list of integers that is longer than a parameter."""

    def draw(rng: Random, params: Params) -> tuple[Value, ...]:
        length = int(params[name]) + rng.randint(1, extra)
        return ([rng.randint(0, 30) for _ in range(length)],)

    return draw


def word() -> Inputs:
    """One word of lower-case letters."""
    return lambda rng, params: (rng.choice(WORDS),)


def made_up_word(shortest: int = 2, longest: int = 11) -> Inputs:
    """One word of lower-case letters whose length varies more than that of real words."""
    return lambda rng, params: ("".join(rng.choices("abcdefghilmnoprst", k=rng.randint(shortest, longest))),)


def word_with(name: str) -> Inputs:
    """One made-up word in which the letter of a parameter occurs none to four times."""

    def draw(rng: Random, params: Params) -> tuple[Value, ...]:
        letters = list("".join(rng.choices("abcdefghilmnoprst", k=rng.randint(3, 6))))
        letters += [str(params[name])] * rng.randint(0, 4)
        rng.shuffle(letters)
        return ("".join(letters),)

    return draw


def words(shortest: int = 3, longest: int = 6) -> Inputs:
    """A list of words (a line of them)."""
    return lambda rng, params: ([rng.choice(WORDS) for _ in range(rng.randint(shortest, longest))],)
