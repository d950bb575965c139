"""Messages between judge, template and zygote: JSON after its length, over a Unix stream socket, with descriptors."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

HEADER = 4
MAX_FDS = 8


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
        body = json.dumps(message).encode()
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
        fds: list[int] = []
        header = self._exactly(HEADER, fds)
        body = self._exactly(int.from_bytes(header, "big"), fds)
        return json.loads(body), fds

    def _exactly(self, count: int, fds: list[int]) -> bytes:
        pieces = []
        while count:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(min(count, 1 << 20), socket.CMSG_SPACE(4 * MAX_FDS))
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            for _, _, packed in ancillary:
                received = array.array("i")
                received.frombytes(packed[: len(packed) - len(packed) % 4])
                fds.extend(received)
            if not data:
                raise ChannelClosed("end of stream")
            pieces.append(data)
            count -= len(data)
        return b"".join(pieces)


def channel_from_fd(fd: int) -> Channel:
    """A channel over an inherited socket; it will not be inherited further."""
    os.set_inheritable(fd, False)
    return Channel(socket.socket(fileno=fd))
