"""What Atropos' own remaining routes read: /info, /wandb_info, /status-env, /disconnect-env."""

from __future__ import annotations

from typing import Any

from atroposlib.api import server as stock

from environments.api_server.store import Store


def show(store: Store) -> None:
    """Puts the store's state where Atropos' one app looks for it."""
    state = stock.app.state
    state.envs = store.envs
    state.buffer = {}
    state.started = store.started
    state.status_dict = {"step": store.step}
    state.queue = _Sizes(store)
    for attribute, name, missing in (
        ("group", "wandb_group", None),
        ("project", "wandb_project", None),
        ("batchsize", "batch_size", -1),
        ("max_token_len", "max_token_len", -1),
        ("checkpoint_dir", "checkpoint_dir", ""),
        ("save_checkpoint_interval", "save_checkpoint_interval", -1),
        ("num_steps", "num_steps", -1),
    ):
        setattr(state, attribute, (store.registration or {}).get(name, missing))


class _Sizes:
    """The queue as /status-env reads it: who sent how many rollouts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Any:
        for entry in list(self._store.waiting.values()):
            yield {"tokens": range(entry.size), "env_id": entry.env_id}

    def __len__(self) -> int:
        return len(self._store.waiting)
