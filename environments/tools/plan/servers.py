"""vLLM servers that decode many requests at a time, as a stated model: all running requests advance at one speed.

A decode step of n requests with k cached tokens takes max(weights_s, n x sequence_s) + k x kv_token_s + overhead_s
seconds: the weights are read once or the products computed, whichever takes longer, the cache is read besides. Prompts
are computed before, prompt_token_s a token, and nothing is decoded meanwhile. The cache is bounded: a request waits
until its prompt fits, and where running ones outgrow the cache the newest is put back and computed again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from environments.tools.plan.clock import Clock, Level

_LONGEST = 256.0
"""Tokens after which the speed is looked at again: the cache grows meanwhile."""
_WATERMARK = 0.98


@dataclass(frozen=True)
class Speed:
    """One server's constants, in seconds and tokens; see the module."""

    weights_s: float
    sequence_s: float
    kv_token_s: float
    overhead_s: float
    prompt_token_s: float
    cache_tokens: float
    most_running: int

    def step_s(self, running: int, cached: float) -> float:
        """Seconds in which each of the running requests gets a token."""
        return max(self.weights_s, running * self.sequence_s) + cached * self.kv_token_s + self.overhead_s


@dataclass(eq=False)
class Request:
    """One answer to be generated. `prefix` names a prompt that several share."""

    prompt: int
    length: int
    prefix: int
    done: Callable[[], None]
    made: float = 0.0
    """Tokens that it had when it was put back."""
    mark: float = field(default=0.0, compare=False)
    """The server's mark when its running began, less `made`."""
    order: int = 0


class Server:
    """One vLLM server. `mark` counts the tokens that a request would have that ran from the beginning."""

    def __init__(self, clock: Clock, speed: Speed) -> None:
        self.speed = speed
        self.assigned = 0
        self.running, self.queue, self.paused = Level(clock), Level(clock), Level(clock)
        self.decoding = Level(clock)
        self.preempted, self.tokens = 0, 0.0
        self._clock = clock
        self._waiting: deque[Request] = deque()
        self._active: list[tuple[float, int, Request]] = []
        self._prefixes: set[int] = set()
        self._mark = self._cached = self._debt = 0.0
        self._updated = self._step = 0.0
        self._stamp = self._order = 0

    def submit(self, request: Request) -> None:
        """A new request."""
        self.assigned += 1
        self._advance()
        self._waiting.append(request)
        self.queue.add(1)
        self._go_on()

    def pause(self) -> None:
        """No token is made until `resume`; running requests stay."""
        if not self.paused.value:
            self._advance()
            self.paused.add(1)
            self._go_on()

    def resume(self, *, cleared: bool) -> None:
        """cleared: the cache was emptied, as for new weights, so that all that runs is computed again."""
        if self.paused.value:
            self._advance()
            self.paused.add(-1)
        if cleared:
            self._prefixes.clear()
            self._debt += self._cached * self.speed.prompt_token_s
        self._go_on()

    def _advance(self) -> None:
        now = self._clock.now
        seconds, self._updated = now - self._updated, now
        if self.paused.value or not self._active or not seconds:
            return
        paid = min(seconds, self._debt)
        self._debt -= paid
        made = (seconds - paid) / self._step
        self._mark += made
        self._cached += made * len(self._active)
        self.tokens += made * len(self._active)

    def _go_on(self) -> None:
        """Ends what is done, admits what fits, and sets the time of the next look."""
        ended = []
        while self._active and self._active[0][0] <= self._mark + 1e-6:
            request = heapq.heappop(self._active)[2]
            self._cached -= request.prompt + self._mark - request.mark
            self.running.add(-1)
            ended.append(request)
        while len(self._active) > 1 and self._cached > self.speed.cache_tokens:
            self._put_back()
        while self._waiting and not self.paused.value and self._fits(self._waiting[0]):
            self._admit(self._waiting.popleft())
        if not self._active:
            self._cached = self._debt = 0.0
        self.decoding.add(int(bool(self._active) and not self.paused.value) - self.decoding.value)
        self._stamp += 1
        if self._active and not self.paused.value:
            running = len(self._active)
            left = self._active[0][0] - self._mark
            room = max(1.0, (self.speed.cache_tokens - self._cached) / running) if running > 1 else left
            tokens = min(left, room, _LONGEST)
            self._step = self.speed.step_s(running, self._cached + tokens * running / 2)
            self._clock.after(self._debt + tokens * self._step, self._look, self._stamp)
        for request in ended:
            self.assigned -= 1
            request.done()

    def _look(self, stamp: int) -> None:
        if stamp == self._stamp:
            self._advance()
            self._go_on()

    def _fits(self, request: Request) -> bool:
        if not self._active:
            return True
        room = self._cached + request.prompt + request.made <= _WATERMARK * self.speed.cache_tokens
        return room and len(self._active) < self.speed.most_running

    def _admit(self, request: Request) -> None:
        self._order += 1
        request.order, request.mark = self._order, self._mark - request.made
        computed = request.made + (0 if request.prefix in self._prefixes else request.prompt)
        self._prefixes.add(request.prefix)
        self._debt += computed * self.speed.prompt_token_s
        self._cached += request.prompt + request.made
        self.queue.add(-1)
        self.running.add(1)
        heapq.heappush(self._active, (request.mark + request.length, request.order, request))

    def _put_back(self) -> None:
        entry = max(self._active, key=lambda one: one[1])
        self._active.remove(entry)
        heapq.heapify(self._active)
        request = entry[2]
        request.made = self._mark - request.mark
        self._cached -= request.prompt + request.made
        self.preempted += 1
        self.running.add(-1)
        self.queue.add(1)
        self._waiting.appendleft(request)


class Servers:
    """Several servers; a request goes to one with the fewest."""

    def __init__(self, clock: Clock, speeds: Sequence[Speed]) -> None:
        self.all = [Server(clock, speed) for speed in speeds]
        self._heap = [(0, place) for place in range(len(self.all))]

    def submit(self, prompt: int, length: int, prefix: int, done: Callable[[], None]) -> None:
        """A request that ends in `done`."""
        while True:
            load, place = self._heap[0]
            if load == self.all[place].assigned:
                break
            heapq.heappop(self._heap)  # it has another load by now, and an entry for that
        server = self.all[place]

        def ended() -> None:
            heapq.heappush(self._heap, (server.assigned, place))
            done()

        heapq.heapreplace(self._heap, (server.assigned + 1, place))
        server.submit(Request(prompt, max(1, length), prefix, ended))

    def pause(self) -> None:
        """All of them."""
        for server in self.all:
            server.pause()

    def resume(self, *, cleared: bool) -> None:
        """All of them; see `Server.resume`."""
        for server in self.all:
            server.resume(cleared=cleared)
