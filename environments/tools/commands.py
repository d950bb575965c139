"""Commands of `atropos` that read what a run left: report, watch, diff, export, audit, rejudge, verify, metrics.

Heavy imports live inside the commands, so that `--help` of each answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from environments.common.errors import ConfigError
from verifier_app.judge.default_limits import MEMORY_LIMIT_MB, TIME_LIMIT_S

PANEL = "Tools"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path | None, typer.Option(help="File to write; none: report.html in the folder.")] = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts to show, the newest ones.", min=0)] = 5000,
    trace: Annotated[
        Path | None, typer.Option(help="File for the time-line of all processes, to open in Perfetto; none: none.")
    ] = None,
) -> None:
    """Write one HTML page of a run: curves, evaluations, and a browser of its rollouts. It needs no network."""
    from environments.tools.report.page import write_report

    typer.echo(write_report(run, out, rollouts, trace))


@app.command(rich_help_panel=PANEL)
def watch(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    terminal: Annotated[bool, typer.Option("--terminal", help="In this terminal instead of a browser.")] = False,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: a free one.", min=0, max=65535)] = 8090,
    rollouts: Annotated[int, typer.Option(help="Rollouts to keep, the newest ones.", min=0)] = 2000,
) -> None:
    """Show a running run: the report, updated in the browser, or its steps in the terminal. It only reads."""
    if terminal:
        from environments.tools.watch_terminal import watch as show

        show(run)
    else:
        from environments.tools.watch import serve

        serve(run, port, rollouts, typer.echo)


@app.command(rich_help_panel=PANEL)
def diff(
    run_a: Annotated[Path, typer.Argument(help="A run's folder.")],
    run_b: Annotated[Path, typer.Argument(help="Another one's.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write as well, with the curves; none: none.")] = None,
) -> None:
    """Compare two runs: options, held-out scores with paired intervals, speed by phase, and curves over each other."""
    from environments.tools.diff.compare import compare
    from environments.tools.diff.page import write_page
    from environments.tools.diff.terminal import show

    found = compare(run_a, run_b)
    show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    if out is not None:
        write_page(found, out)
        typer.echo(out)


@app.command(rich_help_panel=PANEL)
def export(
    run: Annotated[Path, typer.Argument(help="A training run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; replaced where it is an export already.")],
    checkpoint: Annotated[
        str, typer.Option(help="latest, best, a name such as step-00000012, or a folder.")
    ] = "latest",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    model: Annotated[Path | None, typer.Option(help="The model the run began with; none: as configured.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write a run's adapter alone, in peft's format, not merged.")
    ] = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder, for transformers and vLLM."""
    from trainer.model.export_command import DTYPES
    from trainer.model.export_command import export as write

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: choose {' or '.join(DTYPES)}")
    folder, step = write(run, checkpoint, out, dtype, model, adapter=adapter)  # type: ignore[arg-type]
    typer.echo(f"{folder}: the weights after step {step}, {dtype}")


@app.command(rich_help_panel=PANEL)
def audit(
    run: Annotated[Path, typer.Argument(help="A training run's folder.")],
    environment: Annotated[
        list[Path] | None, typer.Option(help="An environment's run folder, several times for several; none: RUN.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="The API server's journal; none: api.journal in RUN.")] = None,
) -> None:
    """Prove from a run's journals that each group was trained on once or counted, and each reward is a verdict's."""
    from environments.tools.audit import audit as prove

    found = prove(run, environment or (), journal)
    typer.echo("\n".join(found.lines()))
    raise typer.Exit(1 if found.violations else 0)


@app.command(rich_help_panel=PANEL, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def rejudge(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run's folder, with recorded programs.")],
    out: Annotated[Path, typer.Option(help="Folder for the new verdicts; a second run resumes there.")],
    profile: Annotated[
        str, typer.Option(help="Whose rules: run (the environment's options), livecodebench or nouscoder.")
    ] = "run",
    evaluations: Annotated[bool, typer.Option("--evaluations", help="The samples of evaluations as well.")] = False,
    limit: Annotated[int | None, typer.Option(help="Programs; none: all of them.", min=1)] = None,
) -> None:
    """Judge a run's recorded programs again, and say what changes; exit code 1 where a reward does.

    Further options are the environment's (`atropos run-env livecode --help`) and override the run's own:
    --env.verifier, --env.time_limit_s and so on.
    """
    from typing import get_args

    from environments.livecode.evaluation.profiles import Name
    from environments.tools.rejudge import rejudge_run

    if profile not in get_args(Name):
        raise ConfigError(f"--profile {profile}: choose {', '.join(get_args(Name))}")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    messages = Console(stderr=True, highlight=False)
    with Progress(*columns, console=messages) as bar:

        def begin(total: int) -> Callable[[], None]:
            row = bar.add_task("judging", total=total)
            return lambda: bar.advance(row)

        try:
            found = rejudge_run(run, out, profile, evaluations, limit, context.args, begin)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            messages.print(
                f"stopped: the verdicts so far are in {out}; the same command continues there", soft_wrap=True
            )
            raise typer.Exit(130) from None
    typer.echo("\n".join(found.lines()))
    typer.echo(f"all verdicts: {out / 'rejudged.jsonl'}; what changed: {out / 'changed.jsonl'}")
    raise typer.Exit(1 if found.rewards_changed or found.lost else 0)


@app.command(rich_help_panel=PANEL)
def verify(
    file: Annotated[Path, typer.Argument(help="The program to judge.")],
    problem: Annotated[str | None, typer.Option(help="Id of a problem in --problems.")] = None,
    problems: Annotated[Path | None, typer.Option(help="Problem file (JSONL) that --problem is in.")] = None,
    tests: Annotated[
        Path | None,
        typer.Option(
            help='JSON file with tests instead of a problem: [{"input": "1 2\\n", "output": "3\\n"}, ...], both '
            "strings; with --fn-name one JSON value a line in them."
        ),
    ] = None,
    fn_name: Annotated[str | None, typer.Option(help="Function to call, with --tests; none: stdin.")] = None,
    language: Annotated[
        str | None, typer.Option(help="python, cpp or an installed language; none: by the file's suffix.")
    ] = None,
    time_limit_s: Annotated[float, typer.Option(help="Seconds for one test.", min=0.01)] = TIME_LIMIT_S,
    memory_limit_mb: Annotated[int, typer.Option(help="Megabytes for one test.", min=16)] = MEMORY_LIMIT_MB,
    all_tests: Annotated[bool, typer.Option("--all-tests", help="Continue after the first failure.")] = False,
    require_isolation: Annotated[str | None, typer.Option(help="strong: refuse hosts without it.")] = None,
) -> None:
    """Judge one program by hand and show why it fails; exit code 0 only when it is accepted."""
    from environments.tools.verify_program import verify_file

    code = verify_file(
        file,
        problem_id=problem,
        problems=problems,
        tests=tests,
        fn_name=fn_name,
        language=language,
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        all_tests=all_tests,
        require_isolation=require_isolation,
    )
    raise typer.Exit(code)


@app.command(rich_help_panel=PANEL)
def metrics() -> None:
    """Print the table of the trainer's metrics as Markdown: names, meanings, how they are reduced."""
    from trainer.metric_table import markdown

    typer.echo(markdown(), nl=False)
