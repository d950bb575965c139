"""`python -m verifier_app serve [--host H] [--port P] ...`: the judge as an HTTP service."""

from __future__ import annotations

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from verifier_app.settings import ServerSettings


def main(argv: list[str]) -> int:
    """The exit code: 0 after a stop, 2 for wrong settings."""
    if argv[:1] != ["serve"]:
        print("usage: python -m verifier_app serve [--help]", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    try:
        settings = CliApp.run(ServerSettings, cli_args=argv[1:], cli_exit_on_error=False)
    except (ValidationError, SettingsError) as error:
        if isinstance(error, SettingsError):
            print(f"error: {error}", file=sys.stderr)
            return 2
        for one in error.errors():
            name = "_".join(str(part) for part in one["loc"]).upper()
            what = one["msg"].removeprefix("Value error, ")
            given = "" if "token" in name.lower() or not name else f" = {one['input']!r}"
            print(f"error: {f'VERIFIER_{name}{given}: ' if name else ''}{what}", file=sys.stderr)
        return 2
    from verifier_app.server import serve

    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
