"""Bytes of tensors that are alive, and their peak: real tensors or fake ones (shapes without memory).

Follows storages, not tensors: views count once, and FSDP's resizing of storages counts when it happens. What a kernel
allocates inside itself and frees again is not seen. torch's own MemTracker does the same, but cannot run two steps
under FSDP2 and counts whole tensors for DTensor's shape propagation.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside of it, `now` is the bytes of all storages that were made or touched and still live; `peak` their maximum.

    A storage counts from the first operation that returns it: give what exists already to `count`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._kept: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts tensors that exist already."""
        for tensor in tensors:
            self._see(tensor)

    def reset_peak(self) -> None:
        """Begins a new maximum at what is alive now."""
        self.peak = self.now

    def hidden(self, size: int) -> None:
        """A kernel's own memory of `size` bytes, beside everything that is alive."""
        self.peak = max(self.peak, self.now + size)

    def __enter__(self) -> LiveBytes:
        # A storage's resize is no operation: FSDP frees and allocates unsharded weights by it.
        self._resize = torch.UntypedStorage.resize_
        tracker, resize = self, self._resize

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            tracker._measure(storage)
            return done

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, torch.distributed.tensor.DTensor) for kind in types):
            return NotImplemented  # it comes back as operations on this rank's shards
        result = operator(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._see(value)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        if isinstance(tensor, torch.distributed.tensor.DTensor):
            tensor = tensor._local_tensor
        self._measure(tensor.untyped_storage())

    def _measure(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._kept:
            self._kept[key] = weakref.finalize(storage, self._forget, key)
        size = storage.nbytes()
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._kept[key]
