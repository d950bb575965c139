"""The verifier: the judge (`verifier_app.judge`) and the ways to reach it. Importing this package imports nothing.

`modal deploy -m verifier_app` finds `app`, which is made at first use: the judge never needs modal.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`app`, the Modal app (PEP 562)."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from verifier_app.modal_app import app

    return app
