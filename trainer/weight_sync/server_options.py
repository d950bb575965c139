"""What a vLLM server was started with, where that decides whether it can take the weights."""

from __future__ import annotations

from typing import Any

from trainer.weight_sync.vllm_routes import WeightServer, WeightSyncError


def check_options(server: WeightServer, backend: str, transfer: str, *, sleeps: bool = False) -> None:
    """WeightSyncError (phase "health") for a server that was started for another way of weights, or cannot sleep.

    Args:
        backend: the trainer's weights.backend. transfer: the server's weight_transfer that belongs to it.
        sleeps: whether it has to give its memory back.
    """
    try:
        # vLLM takes seconds for this answer, so it is asked for once.
        described = server.ask("health", "/server_info?config_format=json")["vllm_config"]
        found: dict[str, Any] | None = described["weight_transfer_config"]
        engine = found and found["backend"]
    except (WeightSyncError, KeyError, TypeError):
        return  # another form of the answer: `init` will say it
    if engine != transfer:
        raise WeightSyncError(
            server.url,
            "health",
            f"weights.backend is {backend}, and the server was started with {engine or 'none'}: start it with "
            f"`atropos serve-model --weight_transfer {transfer}`, or set weights.backend: disk",
        )
    if sleeps and not (described.get("model_config") or {}).get("enable_sleep_mode", True):
        raise WeightSyncError(
            server.url,
            "health",
            f"weights.backend is {backend}, and the server keeps its memory: start it with `atropos serve-model "
            "--sleep_mode true`",
        )
