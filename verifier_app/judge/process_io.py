"""Moving bytes between the judge and one test: feed stdin, gather stdout, stderr and the result at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable, Sequence

from verifier_app.judge.refusals import Refusals

OUTPUT_CAP = 64 << 20
STDERR_KEPT = 8192
STDERR_FREE = 1 << 20  # beyond it stderr is emptied every NOISE_S only, or a program could keep its judge busy with it
NOISE_S = 0.005
CHUNK = 1 << 20
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
F_SETPIPE_SZ = 1031
FILE_BYTES = 64 << 20  # larger inputs come by a pipe: their file would be held in memory beside them


def wide_pipe(size: int) -> tuple[int, int]:
    """A pipe whose buffer is as wide as the kernel lets it be, up to 1 MiB, where that helps."""
    reader, writer = os.pipe()
    if size > 65536:
        try:
            fcntl.fcntl(writer, F_SETPIPE_SZ, 1 << 20)
        except OSError:
            return reader, writer
    return reader, writer


def sealed_file(data: bytes | bytearray, name: str = "stdin") -> int | None:
    """A descriptor of a file in memory that holds `data` and that nobody can change; None: too large, or no such files.

    Opened for reading alone, or mmap of it would be refused.
    """
    if len(data) > FILE_BYTES:
        return None
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        if fd >= 0:
            os.close(fd)


class ProcessIO:
    """The judge's ends of one test's pipes. Close it in every case.

    data: the test's input; a file as far as FILE_BYTES, unless waits_for_input (epoll takes no files), else a pipe.
    more: what follows it, which is not copied; then it is a pipe.
    cap: how many bytes of output are too many. What comes on stderr is read, and its end kept.
    """

    def __init__(
        self,
        data: bytes,
        call: bool,
        cap: int = OUTPUT_CAP,
        waits_for_input: bool = False,
        more: Sequence[bytes | bytearray] = (),
    ) -> None:
        self._left = memoryview(data)
        self._more = list(more)
        stdin = None if waits_for_input or more else sealed_file(data)
        if stdin is None:
            stdin, self._stdin = wide_pipe(len(data) + sum(map(len, more)))
        else:
            self._stdin = -1
        self._stderr, stderr = os.pipe()
        self._out, out = os.pipe()
        if call:
            null = os.open(os.devnull, os.O_WRONLY)
            self.child_fds = [stdin, null, stderr, out]
        else:
            self.child_fds = [stdin, out, stderr]
        self._cap = cap
        self._open = {self._stderr, self._out} | ({self._stdin} if self._stdin >= 0 else set())
        for fd in self._open:
            os.set_blocking(fd, False)
        self.data = bytearray()  # all that came on stdout or, for a call, on the result's pipe
        self.received = 0
        self.errors = b""
        self.error_bytes = 0
        self._noise_at: float | None = None  # when a noisy stderr is due to be emptied
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._stderr, select.POLLIN)
        if self._stdin >= 0:
            self._feed()

    def release_child(self) -> None:
        """Close the child's ends once they were handed over."""
        for fd in self.child_fds:
            os.close(fd)
        self.child_fds = []

    def close(self) -> None:
        """Close what is still open."""
        self.release_child()
        for fd in list(self._open):
            self._shut(fd)

    def _shut(self, fd: int) -> None:
        self._open.discard(fd)
        with contextlib.suppress(KeyError):
            self._poll.unregister(fd)
        os.close(fd)

    def _feed(self) -> None:
        try:
            while self._left or self._more:
                if not self._left:
                    self._left = memoryview(self._more.pop(0))
                    continue
                count = os.write(self._stdin, self._left[:CHUNK])
                self._left = self._left[count:]
        except BlockingIOError:
            self._poll.register(self._stdin, select.POLLOUT)
            return
        except BrokenPipeError:
            self._left = self._left[:0]
        self._shut(self._stdin)

    def _take(self, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._shut(fd)
        elif fd == self._out:
            self.received += len(data)
            self.data += data  # no list: a program may write byte by byte
        else:
            self.error_bytes += len(data)
            self.errors = (self.errors + data)[-STDERR_KEPT:]
            if self.error_bytes > STDERR_FREE and self._noise_at is None:
                self._noise_at = time.monotonic()
                self._poll.unregister(fd)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, F_SETPIPE_SZ, CHUNK)

    @property
    def over_cap(self) -> bool:
        return self.received > self._cap

    def run(
        self,
        control: int,
        next_look: Callable[[], float],
        check: Callable[[], str | None],
        refusals: Refusals | None = None,
    ) -> str | None:
        """Pump until `control` has a message (None) or `check` names a reason to stop.

        `next_look()` is the number of seconds until `check()` is due.
        """
        self._poll.register(control, select.POLLIN)
        listener = -1 if refusals is None else refusals.fd
        if listener >= 0:
            self._poll.register(listener, select.POLLIN)
        while True:
            timeout = next_look()
            if timeout <= 0:
                reason = check()
                if reason is not None:
                    return reason
                continue
            if self._noise_at is not None:
                timeout = min(timeout, NOISE_S)
                if self._stderr in self._open and time.monotonic() >= self._noise_at:
                    self._take(self._stderr)
                    self._noise_at = time.monotonic() + NOISE_S
            done = False
            for fd, event in self._poll.poll(timeout * 1000):
                if fd == control:
                    done = True
                elif fd == listener and refusals is not None:
                    self._refuse(refusals, listener, event)
                elif fd == self._stdin:
                    self._feed()
                elif fd in self._open:
                    self._take(fd)
            if self.over_cap:
                return "output_limit_exceeded"
            if done:
                return None

    def _refuse(self, refusals: Refusals, listener: int, event: int) -> None:
        """Answer a call that waits for its refusal; no more of them come when the sandbox or the judge hung up."""
        if event & select.POLLIN:
            refusals.answer()
        if not event & select.POLLIN or refusals.fd < 0:
            self._poll.unregister(listener)

    def drain(self) -> None:
        """Read what lies in the pipes; their writers are dead."""
        for fd in (self._out, self._stderr):
            while fd in self._open and not self.over_cap:
                before = self.received + self.error_bytes
                self._take(fd)
                if self.received + self.error_bytes == before:
                    break

    def last_error_line(self) -> str:
        """The last line of stderr that says something."""
        lines = self.errors.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
