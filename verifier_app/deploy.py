"""`atropos verifier deploy [--env NAME]`: what `modal deploy -m verifier_app` does, without a flag to forget."""

from __future__ import annotations

import sys


def deploy(environment: str | None = None) -> int:
    """Deploys the app with the settings of this command's environment: 0, or 2 with what to do."""
    try:
        import modal
    except ModuleNotFoundError:
        print("error: the package modal is missing. Run: pip install modal", file=sys.stderr)
        return 2
    from verifier_app.modal_app import app

    try:
        with modal.enable_output():
            app.deploy(environment_name=environment)
    except modal.exception.AuthError as error:
        print(f"error: no valid account ({error}). Run: modal token new", file=sys.stderr)
        return 2
    except modal.exception.NotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except modal.exception.Error as error:
        print(f"error: Modal did not deploy {app.name} ({type(error).__name__}: {error})", file=sys.stderr)
        return 1
    print(f"deployed {app.name}: try it with `atropos verifier smoke`")
    return 0
