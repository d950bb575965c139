"""An ASGI app on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import uvicorn


class Served:
    """An ASGI app on a port of its own, in a thread."""

    def __init__(self, app: Any, port: int = 0, http: Any = "auto") -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        # Not "error": its thread would format a traceback while pytest formats another, and Python 3.11's parser,
        # which both use, then fails by a counter that threads share.
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http=http))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()
