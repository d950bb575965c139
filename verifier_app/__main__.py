"""`atropos verifier serve ...`: the judge as an HTTP service. `... deploy`, `... smoke`: the judge on Modal.

Where only this package and its requirements are installed, `python -m verifier_app` is the same.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from verifier_app.settings import ServerSettings, describe

USAGE = """usage: atropos verifier serve [--help]         the judge as an HTTP service
       atropos verifier deploy [--env NAME]    deploys to Modal, as `modal deploy -m verifier_app` does
       atropos verifier smoke                  deploys to Modal for a minute, judges a few programs, removes it
`python -m verifier_app ...` is the same."""


def main(argv: list[str]) -> int:
    """The exit code: 0 after a stop or a good smoke test, 1 after a bad one, 2 for wrong settings."""
    if argv == ["smoke"]:
        from verifier_app.smoke import smoke

        return smoke()
    if argv == ["deploy"] or (len(argv) == 3 and argv[:2] == ["deploy", "--env"]):
        from verifier_app.deploy import deploy

        return deploy(*argv[2:])
    if argv[:1] != ["serve"]:
        helped = argv[:1] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if helped else sys.stderr)
        return 0 if helped else 2
    try:
        settings = CliApp.run(ServerSettings, cli_args=[_kebab(word) for word in argv[1:]], cli_exit_on_error=False)
    except ValidationError as error:
        print("\n".join(describe(error)), file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from verifier_app.server import serve

    serve(settings)
    return 0


def _kebab(word: str) -> str:
    """An option with underscores as the one with dashes."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
