"""Stand-in vLLM servers with vLLM's real `nccl` engine in each worker, and no model: what comes is hashed.

Each server is a process with the weight routes over HTTP, in which every worker is a thread of its own; the engines
compute their ranks, join the group and unpack by vLLM's own code, over gloo (tests/support/gloo_nccl.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from torch import Tensor

from environments.launch.processes import free_port
from tests.support.forked import forked


def digest(tensor: Tensor) -> list[Any]:
    """Type, shape and the hash of the bytes."""
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest()]


class _Model:
    """Keeps the hash of what it is given, chunk by chunk."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, list[Any]]] = []
        self.on_chunk: Callable[[], None] = lambda: None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.chunks.append({name: digest(tensor) for name, tensor in weights})
        self.on_chunk()


class _Server:
    """The state behind the routes."""

    def __init__(self, workers: int, backend: str, hang_at: str, die_in_chunk: bool) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        self.calls: list[str] = []
        self.inits: list[dict[str, Any]] = []
        self.version = "default"
        self.backend, self.hang_at = backend, hang_at
        self.models = [_Model() for _ in range(workers)]
        if die_in_chunk:
            self.models[0].on_chunk = lambda: os._exit(3)
        self.engines: list[Any] = []
        engine: Any = NCCLWeightTransferEngine  # of what it is given here it asks only what these have
        for rank, model in enumerate(self.models):
            parallel = SimpleNamespace(data_parallel_index=0, world_size=workers, rank=rank)
            config = SimpleNamespace(parallel_config=parallel, model_config=None)
            self.engines.append(engine(None, config, torch.device("cpu"), model))

    def on_every_worker(self, work: Callable[[Any], Any]) -> None:
        with ThreadPoolExecutor(len(self.engines)) as pool:
            list(pool.map(work, self.engines))

    def post(self, path: str, body: Any) -> dict[str, Any]:
        if path == "/init_weight_transfer_engine":
            self.inits.append(body["init_info"])
            if self.backend != "nccl":
                raise ValueError("Invalid init_info for DiskWeightTransferEngine: unexpected keyword argument")
            self.on_every_worker(lambda engine: engine.init_transfer_engine(engine.parse_init_info(body["init_info"])))
        elif path == "/shutdown_weight_transfer_engine":
            self.on_every_worker(lambda engine: engine.shutdown())
        elif path == "/update_weights":
            for model in self.models:
                model.chunks.clear()
            self.on_every_worker(lambda engine: engine.receive_weights(engine.parse_update_info(body["update_info"])))
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        return {"success": True}

    def get(self, path: str) -> dict[str, Any]:
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/get_world_size":
            return {"world_size": len(self.engines)}
        if path == "/server_info":
            return {"vllm_config": {"weight_transfer_config": {"backend": self.backend}}}
        if path == "/state":
            workers = [model.chunks for model in self.models]
            return {"version": self.version, "calls": self.calls, "inits": self.inits, "workers": workers}
        return {}


def serve(port: int, *options: Any) -> None:
    """A stand-in server's process."""
    from tests.support.gloo_nccl import install

    install()
    torch.set_num_threads(1)
    server = _Server(*options)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, make: Callable[[str], dict[str, Any]]) -> None:
            path = self.path.partition("?")[0]
            if path != "/state":
                server.calls.append(path)
            if path == server.hang_at:
                time.sleep(3600)
            try:
                status, body = 200, make(path)
            except Exception as error:
                status, body = 500, {"error": f"{type(error).__name__}: {error}"}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # it was not waited for
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(server.get)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
            self.answer(lambda path: server.post(path, body))

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


class Receiver:
    """A stand-in server with `workers` workers.

    hang_at: the route at which it never answers. die_in_chunk: it ends while it loads the first chunk.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        port: int = 0,
        backend: str = "nccl",
        hang_at: str = "",
        die_in_chunk: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = forked(serve, self.port, workers, backend, hang_at, die_in_chunk)
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False)
                break
            except httpx.TransportError:
                assert self._process.poll() is None, f"the stand-in server ended with {self._process.returncode}"
                time.sleep(0.05)

    def state(self) -> dict[str, Any]:
        """Its version; calls: routes in order; inits: what the engines were told; workers: each one's last chunks."""
        found: dict[str, Any] = httpx.get(f"{self.url}/state", timeout=10.0, trust_env=False).json()
        return found

    def received(self) -> list[dict[str, list[Any]]]:
        """Digest of every tensor of the last update, for each worker."""
        return [
            {name: found for chunk in chunks for name, found in chunk.items()} for chunks in self.state()["workers"]
        ]

    def kill(self) -> None:
        """As `kill -9`."""
        self._process.kill()
        self._process.join(10)
