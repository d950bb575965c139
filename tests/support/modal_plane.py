"""A control plane for Modal's own client, on loopback: a deployment is recorded, a call starts a container.

A container is a process of `modal._container_entrypoint`, the program that Modal runs, with the mounted files and
nothing else of the project. With `capabilities` set it runs inside gVisor, as on Modal, with no way out but a socket to
this plane. What this cannot show is what Modal itself adds: the network's wall, the limits, the scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.events import RecvRequest, listen
from grpclib.server import Server, Stream
from modal_proto import api_pb2

from tests.support.gvisor import inside
from tests.support.modal_deployments import SUCCESS, Deployments, received

REPOSITORY = Path(__file__).resolve().parents[2]
DENY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from verifier_app.judge.layers import seccomp
seccomp.install(seccomp.refusal_rules(sys.argv[2].split(",")))
os.execv(sys.argv[3], sys.argv[3:])
"""
REFUSALS = {
    "resource_exhausted": (Status.RESOURCE_EXHAUSTED, "too many pending inputs"),
    "unavailable": (Status.UNAVAILABLE, "the control plane is away"),
    "aborted": (Status.ABORTED, "a conflict that passes"),
    "unimplemented": (Status.UNIMPLEMENTED, "no such call"),
    "not_found": (Status.NOT_FOUND, "Function 'verify' not found"),
    "unauthenticated": (Status.UNAUTHENTICATED, "Token is revoked"),
}
RESCHEDULES = 2  # times that a call whose container died is given to another one


@dataclass
class Call:
    """One input of a function and what became of it."""

    function_id: str
    call_id: str
    input_id: str
    input: api_pb2.FunctionInput
    deaths: int = 0
    output: api_pb2.FunctionGetOutputsItem | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Container:
    """A process that is started for one call and may take it once."""

    process: asyncio.subprocess.Process
    call: Call
    taken: bool = False


class _Server(Server):
    """Knows its connections, which Modal's client of this process keeps open, so that they can be closed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.protocols: list[Any] = []

    def _protocol_factory(self) -> Any:
        protocol = super()._protocol_factory()
        self.protocols.append(protocol)
        return protocol


class ControlPlane(Deployments):
    """The routes that `modal deploy`, `Function.remote` and a container use.

    faults: words that are spent one for each call: "resource_exhausted", "unavailable" and the other names of REFUSALS
    (refused at the door), "killed"
    (its container dies once), "lost" (every container of it dies), "timeout", "internal", "garbage" (a result that is
    no verdict), "slow_start" (a second passes before its container begins).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = ""
        self.socket = folder / "door" / "socket"
        self.denied: tuple[str, ...] = ()  # groups of system calls that containers are refused
        self.variables: dict[str, str] = {}  # more of a container's environment
        self.capabilities: str | None = None  # of containers inside gVisor; None: they run on this machine's kernel
        self.faults: deque[str] = deque()
        self.running = 0
        self.most_in_flight = 0
        self.started = 0
        self.died: list[str] = []  # what containers that ended without an answer had to say
        self._calls: dict[str, Call] = {}
        self._containers: dict[str, Container] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._faulty: dict[str, str] = {}

    # -- Calling --------------------------------------------------------------------------------------------

    async def FunctionMap(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        fault = self.faults.popleft() if self.faults else ""
        self.seen["calls"] += 1
        self.received_bytes += request.ByteSize()
        if fault in REFUSALS:
            raise GRPCError(*REFUSALS[fault])
        (item,) = request.pipelined_inputs
        call = Call(request.function_id, self.new("fc"), self.new("in"), item.input)
        self._calls[call.call_id] = call
        self.most_in_flight = max(self.most_in_flight, sum(call.output is None for call in self._calls.values()))
        if fault:
            self._faulty[call.input_id] = fault
        self._begin(self._serve(call, fault))
        await stream.send_message(
            api_pb2.FunctionMapResponse(
                function_call_id=call.call_id,
                pipelined_inputs=[api_pb2.FunctionPutInputsResponseItem(idx=0, input_id=call.input_id, input_jwt="j")],
            )
        )

    async def FunctionGetOutputs(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        call = self._calls[request.function_call_id]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.done.wait(), max(request.timeout, 0.01))
        outputs = [] if call.output is None else [call.output]
        await stream.send_message(
            api_pb2.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=0 if outputs else 1)
        )

    async def _serve(self, call: Call, fault: str) -> None:
        """Containers for a call until one answers or there were too many."""
        failures = {
            "timeout": api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT,
            "internal": api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
        }
        if fault in failures:
            return self._finish(call, api_pb2.GenericResult(status=failures[fault], exception="scripted"))
        if fault == "garbage":
            import cbor2

            data = cbor2.dumps({"verdict": {"status": "fine"}})
            return self._finish(call, api_pb2.GenericResult(status=SUCCESS, data=data))
        if fault == "slow_start":
            await asyncio.sleep(1.0)
        while call.output is None and call.deaths <= RESCHEDULES:
            await self._run_container(call)
        if call.output is None:
            status = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            self._finish(call, api_pb2.GenericResult(status=status, exception="Runner failed too many times"))
        return None

    def _finish(self, call: Call, result: api_pb2.GenericResult) -> None:
        call.output = api_pb2.FunctionGetOutputsItem(
            result=result, input_id=call.input_id, data_format=api_pb2.DATA_FORMAT_CBOR
        )
        call.done.set()

    async def _run_container(self, call: Call) -> None:
        """One container for this call, until it ends; it must not take another's, whose own would then start anew."""
        function_id, task_id = call.function_id, self.new("ta")
        function = self.functions[function_id]
        root = self.folder / "containers" / task_id
        self._mount(function, root)
        arguments = api_pb2.ContainerArguments(
            task_id=task_id,
            function_id=function_id,
            app_id=self.app_of[function_id],
            function_def=function,
            app_layout=self._layout(self.app_of[function_id]),
            environment_name="main",
        )
        (root / "arguments").write_bytes(arguments.SerializeToString())
        (volume,) = function.volume_mounts
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "PYTHONPATH": str(root / "root"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(root / "arguments"),
            "MODAL_SERVER_URL": self.url,
            "MODAL_OVERRIDE_HEADERS": f"x-task-id:{task_id}",
            # what Modal mounts at the path of the definition is this folder here
            "VERIFIER_TESTS_DIR": str(self.volume_path(volume.volume_id)),
            **self.image_variables(),
            **self.variables,
        }
        log = (root / "log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *self._command(root, environment),
            env=environment,
            cwd=root / "root",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self._containers[task_id] = Container(process, call)
        self.running += 1
        self.started += 1
        try:
            await process.wait()
        finally:
            self.running -= 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if call.output is None:
            self.died.append((root / "log").read_text(errors="replace")[-2000:])
            call.deaths += 1

    def _command(self, root: Path, environment: dict[str, str]) -> list[str]:
        """Modal's entry point; on a poorer host, or inside gVisor, where only a Unix socket leads here."""
        entry = [sys.executable, "-m", "modal._container_entrypoint"]
        if self.denied:
            entry = [sys.executable, "-c", DENY, str(REPOSITORY), ",".join(self.denied), *entry]
        if self.capabilities is None:
            return entry
        environment["MODAL_SERVER_URL"] = f"unix://{self.socket}"
        shared = [root, self.socket.parent, self.folder / "volumes"]
        return inside(root / "bundle", self.capabilities, entry, environment, shared, root / "root")

    def _mount(self, function: api_pb2.Function, root: Path) -> None:
        (root / "root").mkdir(parents=True)
        for mount_id in function.mount_ids:
            for file in self.mounts[mount_id]:
                path = root / file.filename.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._files.get(file.sha256_hex, b""))

    # -- A container's side ---------------------------------------------------------------------------------

    async def ContainerHello(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(Empty())

    async def ContainerHeartbeat(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(api_pb2.ContainerHeartbeatResponse())

    async def FunctionGetInputs(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        assert stream.metadata is not None
        container = self._containers[str(stream.metadata["x-task-id"])]
        if container.taken:
            await asyncio.Event().wait()  # nothing more for this one
        call, container.taken = container.call, True
        fault = self._faulty.get(call.input_id)
        if fault == "lost" or (fault == "killed" and not call.deaths):
            container.process.kill()
            return
        item = api_pb2.FunctionGetInputsItem(
            input_id=call.input_id, input=call.input, function_call_id=call.call_id, retry_count=call.deaths
        )
        await stream.send_message(api_pb2.FunctionGetInputsResponse(inputs=[item]))

    async def FunctionPutOutputs(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        for item in request.outputs:
            call = next(call for call in self._calls.values() if call.input_id == item.input_id)
            call.output = api_pb2.FunctionGetOutputsItem(
                result=item.result, input_id=item.input_id, data_format=item.data_format
            )
            call.done.set()
        await stream.send_message(Empty())

    async def TaskResult(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        self.seen[f"task failed: {request.result.exception}"] += 1
        await stream.send_message(Empty())

    async def VolumeCommit(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(api_pb2.VolumeCommitResponse())

    # -- Life -----------------------------------------------------------------------------------------------

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        self._files[request.match_info["id"]] = data
        self.seen["uploads"] += 1
        self.received_bytes += len(data)
        return web.Response(headers={"ETag": hashlib.md5(data).hexdigest()})

    async def _get_blob(self, request: web.Request) -> web.Response:
        return web.Response(body=self._files[request.match_info["id"]])

    async def _check_account(self, event: RecvRequest) -> None:
        if event.metadata.get("x-modal-token-secret") == "wrong":
            raise GRPCError(Status.UNAUTHENTICATED, "Token secret is wrong")

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Both servers, until the block ends; every container ends with them."""
        blobs = web.Application(client_max_size=1 << 30)
        blobs.add_routes([web.put("/{id}", self._put_blob), web.get("/{id}", self._get_blob)])
        runner = web.AppRunner(blobs, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._blob_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        server = _Server([self])
        listen(server, RecvRequest, self._check_account)
        await server.start("127.0.0.1", 0)
        self.socket.parent.mkdir(parents=True)
        door = _Server([self])
        listen(door, RecvRequest, self._check_account)
        await door.start(path=str(self.socket))
        assert isinstance(server._server, asyncio.Server)
        self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            for container in self._containers.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(container.process.pid, signal.SIGKILL)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for one in (server, door):
                one.close()
                await one.wait_closed()
                for protocol in one.protocols:
                    protocol.connection.close()
            await asyncio.gather(*(container.process.wait() for container in self._containers.values()))
            await asyncio.sleep(0.05)  # the transports close in the loop's next rounds
            await runner.cleanup()


def _unimplemented(name: str) -> Any:
    async def refuse(self: ControlPlane, stream: Stream[Any, Any]) -> None:
        self.seen[f"unimplemented: {name}"] += 1
        raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not part of the loopback control plane")

    return refuse


for _name in ControlPlane.__abstractmethods__:
    setattr(ControlPlane, _name, _unimplemented(_name))
ControlPlane.__abstractmethods__ = frozenset()


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """A control plane in a thread of its own, with Modal's client in this process and its children pointed at it."""
    plane, ready, stop = ControlPlane(folder), threading.Event(), threading.Event()  # type: ignore[abstract]  # filled in above

    async def live() -> None:
        async with plane.serve():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield plane
    finally:
        stop.set()
        thread.join(30)
