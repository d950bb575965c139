from typing import Any

def grab_batch_with_minimum_allocations(
    queue: list[dict[str, Any]], batch_size: int, env_configs: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]]]: ...
