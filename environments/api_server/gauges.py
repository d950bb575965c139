"""What GET /metrics shows of the store at the moment it is asked."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from environments.api_server.store import Store


def measure(store: Store, registry: CollectorRegistry) -> None:
    """Registers the gauges; each reads the store when the metrics are asked for."""
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "groups_queued": ("Groups that a trainer will get.", lambda: store.groups_queued),
        "rollouts_waiting": ("Rollouts that wait.", lambda: sum(e.size for e in list(store.waiting.values()))),
        "batches_leased": ("Batches handed out and not acknowledged.", lambda: len(store.leases)),
        "batches_rolled_back": ("Batches that will be served again.", lambda: len(store.again)),
        "step": ("Step of the next batch.", lambda: store.step),
        "journal_bytes": ("Size of the journal.", lambda: store.journal.size if store.journal else 0),
    }
    for name, (what, read) in gauges.items():
        Gauge(f"atropos_{name}", what, registry=registry).set_function(read)
