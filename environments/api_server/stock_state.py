"""What Atropos' own remaining routes read: /info, /wandb_info, /status-env, /disconnect-env."""

from __future__ import annotations

import time
from typing import Any

from atroposlib.api import server as stock

from environments.api_server.requests import RegisterEnv
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


def registered(store: Store, env: RegisterEnv) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of one more environment and the answer to it, as Atropos' own /register-env makes them.

    That one works on the state that `show` sets, at any moment: this is for the thread that changes the store.
    """
    number, same = len(store.envs), sum(one["desired_name"] == env.desired_name for one in store.envs)
    name = f"{env.desired_name}_{same}"
    entry = {
        "max_context_len": env.max_token_length,
        "weight": env.weight,
        "desired_name": env.desired_name,
        "real_name": name,
        "registered_id": number,
        "last_update": time.time(),
        "connected": True,
        "min_batch_allocation": env.min_batch_allocation,
        "group_size": env.group_size,
    }
    run = store.registration or {}
    answer = {
        "status": "success",
        "env_id": number,
        "wandb_name": name,
        "checkpoint_dir": run.get("checkpoint_dir", ""),
        "starting_step": store.step,
        "checkpoint_interval": run.get("save_checkpoint_interval", -1),
        "num_steps": run.get("num_steps", -1),
    }
    return entry, answer


class _Sizes:
    """The queue as /status-env reads it: who sent how many rollouts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Any:
        for entry in list(self._store.waiting.values()):
            yield {"tokens": range(entry.size), "env_id": entry.env_id}

    def __len__(self) -> int:
        return len(self._store.waiting)
