"""What other stacks find by the package's name: verifiers and prime-rl load the taskset `atropos-livecode` here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from integrations.verifiers_taskset import LivecodeTaskset

__all__ = ["LivecodeTaskset"]


def __getattr__(name: str) -> Any:
    """Imports verifiers only where it asks (PEP 562)."""
    if name == "LivecodeTaskset":
        from integrations.verifiers_taskset import LivecodeTaskset

        return LivecodeTaskset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
