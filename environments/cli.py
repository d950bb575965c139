"""The `atropos` command: every program of the project, in three groups.

Heavy imports live inside the commands, so that `--help` of each answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from environments.common.errors import BAD_INPUT, LivecodeError, note_bad_input
from environments.common.extras import explained
from environments.common.terminal import take_any_text
from environments.dataset.cli import app as data_commands
from environments.tools.commands import PANEL as TOOLS
from environments.tools.commands import app as tool_commands
from trainer.pretrained import main as pretrained

GROUP = "atropos.environments"
COMMANDS = "atropos.commands"
"""An environment's own command line, `main(mode, argv) -> exit code`: its help and errors need not import Atropos."""
MODES = ("serve", "process", "evaluate")
RUN, DATA = "Run", "Data"


class _Commands(typer.core.TyperGroup):
    """Where the errors of every command end: one line, and the exit code that the error carries."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        command = self.get_command(ctx, args[0]) if args else None
        # The arguments of an environment, vLLM or another command are theirs to read.
        own = command is not None and not command.context_settings.get("ignore_unknown_options")
        return list(super().parse_args(ctx, _as_meant(args) if own else args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (missing := explained(error)) is None:
                raise
            note_bad_input()
            raise fail(str(missing), BAD_INPUT) from None
        except LivecodeError as error:
            if error.exit_code == BAD_INPUT:
                note_bad_input()
            raise fail(str(error), error.exit_code) from None


def _as_meant(words: list[str]) -> list[str]:
    """Options with dashes or underscores alike, and `~` as the home folder: after `=` no shell makes it so."""
    meant = []
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        try:
            meant.append(name.replace("_", "-") + equals + _at_home(value))
        except ValueError as error:
            raise fail(f"{word}: {error}") from None
    return meant


def _at_home(value: str) -> str:
    if not value.startswith("~"):
        return value
    from environments.common.option_rules import expanded

    return str(expanded(value))


app = typer.Typer(
    name="atropos",
    cls=_Commands,
    help="Reinforcement learning with verifiable rewards for competitive programming.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_errors = Console(stderr=True, highlight=False)


def fail(message: str, code: int = 2) -> typer.Exit:
    """Prints one error and gives the exit to raise."""
    _errors.print(Text.assemble(("error ", "bold red"), message), soft_wrap=True)
    return typer.Exit(code)


def installed_environments() -> dict[str, EntryPoint]:
    """Environments of every installed package, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@app.command(
    "run-env",
    help="Run an environment: NAME, then serve, process or evaluate, and its options.",
    rich_help_panel=RUN,
    context_settings=_PASS_THROUGH,
)
def run_env(context: typer.Context) -> None:
    """Run an environment: NAME [serve|process|evaluate] [--config FILE] [--env.option value ...]

    serve feeds the Atropos API for a trainer (the default); process writes groups to a file;
    evaluate scores a model. `atropos run-env NAME --help` lists the options of an environment.
    """
    words = list(context.args)
    known = installed_environments()
    listed = ", ".join(sorted(known)) or "none"
    if not words or words[0] in ("-h", "--help"):
        typer.echo(f"{run_env.__doc__}\nInstalled environments: {listed}")
        raise typer.Exit(0 if words else 2)
    name, rest = words[0], words[1:]
    if name not in known:
        raise fail(f"run-env {name}: no such environment. Installed: {listed}.")
    mode = rest.pop(0) if rest and not rest[0].startswith("-") else "serve"
    if mode not in MODES:
        raise fail(f"run-env {name} {mode}: no such mode. Choose one of {', '.join(MODES)}.")
    for command in entry_points(group=COMMANDS, name=name):
        raise typer.Exit(command.load()(mode, rest))
    environment = known[name].load()
    if hasattr(environment, "run_command"):
        raise typer.Exit(environment.run_command(mode, rest))
    # An environment written for plain Atropos brings its own command line.
    sys.argv = [name, mode, *rest]
    environment.cli()


@app.command("run-api", rich_help_panel=RUN)
def run_api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    journal: Annotated[
        Path | None, typer.Option(help="File that keeps the groups; one for each run. None: in memory only.")
    ] = None,
    max_body_mb: Annotated[int, typer.Option(help="MiB of the longest request body.", min=1, max=1000)] = 256,
    allow_reset: Annotated[
        bool, typer.Option("--allow-reset", help="Let GET /reset_data forget everything, the journal included.")
    ] = False,
) -> None:
    """Start the Atropos API server, where environments put groups and the trainer takes batches."""
    from environments.api_server.launch import serve

    serve(
        host,
        port,
        None if journal is None else journal.expanduser(),
        allow_reset=allow_reset,
        max_body_mb=max_body_mb,
    )


app.add_typer(data_commands, name="data", rich_help_panel=DATA)
app.command("pretrained", rich_help_panel=DATA)(pretrained)


@app.command(rich_help_panel=DATA)
def warmup(
    out: Annotated[Path, typer.Option(help="Folder for the files, made where missing.")],
    seed: Annotated[int, typer.Option(help="Draws instances and tests.")] = 0,
) -> None:
    """Write the warm-up sets, very easy problems from a seeded generator, as JSONL files with a manifest."""
    from environments.livecode.problems.warmup.__main__ import main

    main(out, seed)


@app.command(rich_help_panel=RUN, context_settings={"ignore_unknown_options": True})
def supervise(
    command: Annotated[list[str], typer.Argument(help="The command, after --.")],
    name: Annotated[str, typer.Option(help="What it is called in messages.")] = "process",
    restarts: Annotated[int, typer.Option(help="How often in a row it may be started again.", min=0)] = 5,
) -> None:
    """Start a command again when it dies, with growing pauses and a limit; signals are handed on."""
    from environments.launch.supervise import main

    raise typer.Exit(main(name, command, restarts))


@app.command(rich_help_panel=RUN)
def init(
    run: Annotated[Path, typer.Argument(help="The run's name, or the path of the YAML file to write.")],
    model: Annotated[Path, typer.Option(help="Folder of a Hugging Face causal language model, or its hub name.")],
    problems: Annotated[str, typer.Option(help="JSONL file of problems, a split that was built, or warmup:train.")],
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 20,
    group_size: Annotated[int, typer.Option(help="Rollouts of one problem.", min=2)] = 8,
    groups: Annotated[int, typer.Option(help="Groups in a step.", min=1)] = 8,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer in tokens; none: 256 on a CPU, 4096 on a GPU.", min=1)
    ] = None,
) -> None:
    """Write the one file of a run on your own problems, with sizes that fit this machine; see `atropos train`."""
    from environments.launch.init import write_launch

    typer.echo(write_launch(run, model, problems, steps, group_size, groups, max_new_tokens))


app.registered_commands += tool_commands.registered_commands

_PROGRAMS = (
    ("demo", RUN, "environments.launch.demo", "Run the whole loop on this machine with a small model."),
    (
        *("train", RUN, "environments.launch.train"),
        "Train on this machine: --config FILE starts API server, vLLM, environment and trainer; again, it resumes.",
    ),
    ("serve-model", RUN, "environments.launch.serve_model", "Start vLLM with the flags this project needs."),
    ("run-trainer", RUN, "trainer.launch", "Start the trainer alone, as torchrun does: --nproc-per-node N ..."),
    ("verifier", RUN, "verifier_app.__main__", "The judge elsewhere: serve over HTTP, deploy to Modal, smoke test."),
    (
        *("select", TOOLS, "environments.tools.select_checkpoint"),
        "Choose a run's best checkpoint by serving and evaluating them: --run DIR --evaluation FILE --serving FILE ...",
    ),
    (
        *("replay", TOOLS, "trainer.replay_command"),
        "A recorded training step again: RUN --step N, bit for bit, or as if with other trainer options.",
    ),
    ("budget", TOOLS, "trainer.budget", "Memory and speed of a training configuration, before a GPU is asked for."),
    (
        *("plan", TOOLS, "environments.tools.plan.command"),
        "What a recipe does on a cluster, simulated: steps an hour, idle parts, money, the bottleneck.",
    ),
)
"""Programs that read their own options: name, group, module with `main(argv)`, sentence."""


def _add_program(name: str, group: str, module: str, sentence: str) -> None:
    @app.command(name, help=sentence, rich_help_panel=group, context_settings=_PASS_THROUGH)
    def run(context: typer.Context) -> None:
        raise typer.Exit(import_module(module).main(list(context.args)))


for _program in _PROGRAMS:
    _add_program(*_program)


def main() -> None:
    """Entry point of the console script."""
    take_any_text()
    app()


if __name__ == "__main__":
    main()
