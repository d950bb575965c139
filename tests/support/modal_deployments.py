"""What a deployment leaves with the control plane of modal_plane.py: apps, functions, images, mounts, volumes."""

from __future__ import annotations

import hashlib
import itertools
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Stream
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS


Asked = TypeVar("Asked")


async def received(stream: Stream[Asked, Any]) -> Asked:
    """The request of a call; grpclib gives None where the caller has hung up."""
    request = await stream.recv_message()
    assert request is not None
    return request


class Deployments(ModalClientBase):
    """The routes that `modal deploy` uses, and those by which a caller finds what was deployed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.apps: dict[str, str] = {}  # name -> id
        self.functions: dict[str, api_pb2.Function] = {}
        self.published: dict[str, dict[str, str]] = {}  # app id -> function name -> id
        self.app_of: dict[str, str] = {}
        self.images: dict[str, api_pb2.Image] = {}
        self.mounts: dict[str, list[api_pb2.MountFile]] = {}
        self.volumes: dict[str, str] = {}
        self.stopped: list[str] = []
        self.seen: Counter[str] = Counter()
        self.received_bytes = 0
        self._numbers = itertools.count(1)
        self._files: dict[str, bytes] = {}
        self._blob_url = ""

    def new(self, kind: str) -> str:
        """A fresh id of this kind."""
        return f"{kind}-{next(self._numbers):06d}"

    def volume_path(self, volume_id: str) -> Path:
        """The folder that stands for a volume."""
        return self.folder / "volumes" / volume_id / "files"

    def image_variables(self) -> dict[str, str]:
        """What the images' ENV lines set."""
        lines = [line for image in self.images.values() for line in image.dockerfile_commands]
        pairs = [line.removeprefix("ENV ").partition("=") for line in lines if line.startswith("ENV VERIFIER_")]
        return {name: shlex.split(value)[0] for name, _, value in pairs}

    async def ClientHello(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(api_pb2.ClientHelloResponse(image_builder_version="2025.06"))

    async def EnvironmentGetOrCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        metadata = api_pb2.EnvironmentMetadata(
            name=request.deployment_name or "main",
            settings=api_pb2.EnvironmentSettings(image_builder_version="2025.06"),
        )
        await stream.send_message(api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata))

    async def AppGetByDeploymentName(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        await stream.send_message(api_pb2.AppGetByDeploymentNameResponse(app_id=self.apps.get(request.name, "")))

    async def AppCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        app_id = self.new("ap")
        if request.app_state == api_pb2.APP_STATE_INITIALIZING:
            self.apps[request.description] = app_id
        await stream.send_message(api_pb2.AppCreateResponse(app_id=app_id, app_page_url="http://app"))

    async def AppGetLayout(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        await stream.send_message(api_pb2.AppGetLayoutResponse(app_layout=self._layout(request.app_id)))

    async def AppPublish(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        self.published[request.app_id] = dict(request.function_ids)
        await stream.send_message(api_pb2.AppPublishResponse(url="http://app", deployed_at=time.time()))

    async def AppHeartbeat(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(Empty())

    async def AppClientDisconnect(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        self.stopped.append(request.app_id)
        await stream.send_message(Empty())

    async def AppStop(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        self.stopped.append(request.app_id)
        self.apps = {name: app_id for name, app_id in self.apps.items() if app_id != request.app_id}
        await stream.send_message(Empty())

    async def AppGetLogs(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(api_pb2.TaskLogsBatch(app_done=True))

    async def ImageGetOrCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        image_id = self.new("im")
        self.images[image_id] = request.image
        result = api_pb2.GenericResult(status=SUCCESS)
        await stream.send_message(api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=result))

    async def MountBatchedCheckExistence(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        missing = [sha for sha in request.sha256_hex_hashes if sha not in self._files]
        await stream.send_message(api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing))

    async def MountPutFile(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        data = self._files.get(request.data_blob_id) if request.data_blob_id else request.data
        self.received_bytes += request.ByteSize()
        if data and request.sha256_hex not in self._files:
            assert hashlib.sha256(data).hexdigest() == request.sha256_hex
            self._files[request.sha256_hex] = data
        exists = request.sha256_hex in self._files or request.sha256_hex == hashlib.sha256(b"").hexdigest()
        await stream.send_message(api_pb2.MountPutFileResponse(exists=exists))

    async def MountGetOrCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        mount_id = self.new("mo")
        self.mounts[mount_id] = list(request.files)
        await stream.send_message(api_pb2.MountGetOrCreateResponse(mount_id=mount_id))

    async def VolumeGetOrCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        create = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if request.deployment_name not in self.volumes and not create:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
        volume_id = self.volumes.setdefault(request.deployment_name, self.new("vo"))
        self.volume_path(volume_id).mkdir(parents=True, exist_ok=True)
        version = api_pb2.VOLUME_FS_VERSION_V1
        metadata = api_pb2.VolumeMetadata(version=version, name=request.deployment_name)
        await stream.send_message(
            api_pb2.VolumeGetOrCreateResponse(volume_id=volume_id, version=version, metadata=metadata)
        )

    async def VolumePutFiles(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        for file in request.files:
            path = self.volume_path(request.volume_id) / file.filename.lstrip("/")
            if path.exists() and request.disallow_overwrite_existing_files:
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.filename} exists")
            path.parent.mkdir(parents=True, exist_ok=True)
            # as on Modal, where a commit shows a file wholly or not at all
            whole = self.folder / self.new("written")
            whole.write_bytes(self._files[file.sha256_hex])
            whole.replace(path)
        await stream.send_message(Empty())

    async def VolumeListFiles(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        root = self.volume_path(request.volume_id)
        entries = [
            api_pb2.FileEntry(path=str(path.relative_to(root)), type=api_pb2.FileEntry.FILE, size=path.stat().st_size)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]
        await stream.send_message(api_pb2.VolumeListFilesResponse(entries=entries))

    async def BlobCreate(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        blob_id = self.new("bl")
        await stream.send_message(
            api_pb2.BlobCreateResponse(
                blob_id=blob_id,
                blob_ids=[blob_id],
                upload_urls=api_pb2.UploadUrlList(items=[f"{self._blob_url}/{blob_id}"]),
            )
        )

    async def BlobGet(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        self.seen["BlobGet"] += 1
        await stream.send_message(api_pb2.BlobGetResponse(download_url=f"{self._blob_url}/{request.blob_id}"))

    async def FunctionPrecreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        function_id = request.existing_function_id or self.new("fu")
        self.app_of[function_id] = request.app_id
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name, function_type=request.function_type, app_id=request.app_id
        )
        await stream.send_message(api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata))

    async def FunctionCreate(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        function_id = request.existing_function_id or self.new("fu")
        self.functions[function_id] = request.function
        self.app_of[function_id] = request.app_id
        self.published.setdefault(request.app_id, {})[request.function.function_name] = function_id
        await stream.send_message(
            api_pb2.FunctionCreateResponse(
                function_id=function_id,
                function=request.function,
                handle_metadata=self._handle(function_id),
                function_data=self._data(function_id),
            )
        )

    async def FunctionGet(self, stream: Stream[Any, Any]) -> None:
        request = await received(stream)
        if request.environment_name not in ("", "main"):
            raise GRPCError(Status.NOT_FOUND, f"Environment '{request.environment_name}' not found")
        function_id = self.published.get(self.apps.get(request.app_name, ""), {}).get(request.object_tag)
        if function_id is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found in environment 'main'")
        await stream.send_message(
            api_pb2.FunctionGetResponse(
                function_id=function_id,
                handle_metadata=self._handle(function_id),
                function=self._data(function_id),
            )
        )

    def _data(self, function_id: str) -> api_pb2.FunctionData:
        function = self.functions[function_id]
        ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=function)
        return api_pb2.FunctionData(function_name=function.function_name, ranked_functions=[ranked])

    def _handle(self, function_id: str) -> api_pb2.FunctionHandleMetadata:
        function = self.functions[function_id]
        return api_pb2.FunctionHandleMetadata(
            function_name=function.function_name,
            function_type=function.function_type,
            app_id=self.app_of[function_id],
            supported_input_formats=function.supported_input_formats,
            supported_output_formats=function.supported_output_formats,
        )

    def _layout(self, app_id: str) -> api_pb2.AppLayout:
        ids = self.published.get(app_id, {})
        objects = [
            api_pb2.Object(object_id=function_id, function_handle_metadata=self._handle(function_id))
            for function_id in ids.values()
        ]
        for function_id in ids.values():
            for needed in self.functions[function_id].object_dependencies:
                objects.append(api_pb2.Object(object_id=needed.object_id))
        return api_pb2.AppLayout(objects=objects, function_ids=ids)
