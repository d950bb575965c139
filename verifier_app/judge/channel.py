"""Messages between judge, template and zygote: JSON after its length, over a Unix stream socket, with descriptors.

One side speaks at a time, so that a read never reaches into a second message.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

HEADER = 4
MAX_FDS = 8
CHUNK = 1 << 16
_ROOM = socket.CMSG_SPACE(4 * MAX_FDS)


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One end. Not for use by two threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send one message; the descriptors travel with its first byte and stay open here."""
        self.send_body(json.dumps(message).encode(), fds)

    def send_body(self, body: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message that is JSON already."""
        data = len(body).to_bytes(HEADER, "big") + body
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                data = data[self.sock.sendmsg([data], rights) :]
            if data:
                self.sock.sendall(data)
        except OSError as error:
            raise ChannelClosed(str(error)) from None

    def recv(self) -> tuple[Any, list[int]]:
        """The next message and the descriptors that came with it. Blocks; ChannelClosed at the end."""
        body, fds = self.recv_body()
        return json.loads(body), fds

    def recv_body(self) -> tuple[bytes, list[int]]:
        """The next message as JSON. (The zygote calls this between forks: every object it touches is a copied page.)"""
        fds: list[int] = []
        data = self._read(CHUNK, fds)
        while len(data) < HEADER:
            data += self._read(HEADER - len(data), fds)
        missing = HEADER + int.from_bytes(data[:HEADER], "big") - len(data)
        if not missing:
            return data[HEADER:], fds
        pieces = [data[HEADER:]]
        while missing > 0:
            pieces.append(self._read(min(missing, 1 << 20), fds))
            missing -= len(pieces[-1])
        if missing < 0:
            raise ChannelClosed("two messages at once")
        return b"".join(pieces), fds

    def _read(self, count: int, fds: list[int]) -> bytes:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(count, _ROOM)
        except OSError as error:
            raise ChannelClosed(str(error)) from None
        for _, _, packed in ancillary:
            fds += memoryview(packed)[: len(packed) & ~3].cast("i").tolist()
        if not data:
            raise ChannelClosed("end of stream")
        return data


def channel_from_fd(fd: int) -> Channel:
    """A channel over an inherited socket; it will not be inherited further."""
    os.set_inheritable(fd, False)
    return Channel(socket.socket(fileno=fd))
