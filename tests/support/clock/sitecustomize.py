"""A clock that jumps: first on PYTHONPATH, it moves `time.time` by up to a day, forth and back, every second or so.

The true clock of the machine is left alone. `time.monotonic`, which deadlines have to use, is as it was.
"""

import random
import time

_true, _true_ns, _draw = time.time, time.time_ns, random.Random()
_next, _offset = 0.0, 0.0


def _moved() -> float:
    global _next, _offset
    if time.monotonic() >= _next:
        _next = time.monotonic() + _draw.uniform(0.2, 2.0)
        _offset = _draw.uniform(-86_400.0, 86_400.0)
    return _offset


time.time = lambda: _true() + _moved()
time.time_ns = lambda: _true_ns() + int(_moved() * 1e9)
