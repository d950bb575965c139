"""`atropos data build|check|audit|calibrate|filter|show|push`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from environments.common.plugins import known

if TYPE_CHECKING:
    from environments.dataset.deduplicate import Signature

app = typer.Typer(help="The problems and their tests.", no_args_is_help=True)
_errors = Console(stderr=True, highlight=False)


def _fail(message: str, code: int = 2) -> typer.Exit:
    _errors.print(Text.assemble(("error ", "bold red"), message), soft_wrap=True)
    return typer.Exit(code)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors) as progress:
        row = progress.add_task(what, total=total)
        yield lambda: progress.advance(row)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to build into; a second run does only what is missing.")],
    recipe: Annotated[
        str,
        typer.Option(
            help='What to build: nouscoder, deepcoder, original, rlvr, miniature or a plugin; "list" explains.'
        ),
    ] = "nouscoder",
    local: Annotated[Path | None, typer.Option("--from", help="Folder of the sources' files; none: the hub.")] = None,
    min_tests: Annotated[int, typer.Option(help="Training problems with fewer tests are left out.", min=1)] = 5,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="A cleaning step to leave out: few_tests, known_bad, duplicate, contaminated, solution_fails."
        ),
    ] = None,
    validation_from: Annotated[
        str | None,
        typer.Option(help="Date from which LiveCodeBench problems before 2024-07-31 become a validation split."),
    ] = None,
    leave_out_known_bad: Annotated[
        bool, typer.Option("--leave-out-known-bad", help="Leave the two test problems out whose tests are wrong.")
    ] = False,
    any_count: Annotated[
        bool, typer.Option("--any-count", help="Continue where counts differ from the published ones.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.", min=0)] = 0,
) -> None:
    """Build training, test and validation problems from their sources."""
    from environments.dataset.build import CLEANING, Options
    from environments.dataset.build import build as run
    from environments.dataset.sources import GROUP, RECIPES, recipe_of

    if recipe not in (names := known(GROUP, RECIPES)):
        listed = "\n".join(f"  {name}: {recipe_of(name).description}" for name in names)
        raise _fail(f"--recipe {recipe}: choose one of\n{listed}")
    if unknown := set(skip or ()) - set(CLEANING):
        raise _fail(f"--skip {', '.join(sorted(unknown))}: no such step. Known: {', '.join(CLEANING)}.")
    options = Options(
        out, local, min_tests, frozenset(skip or ()), validation_from, leave_out_known_bad, any_count,
        workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    manifest = run(recipe_of(recipe), options, lambda line: _errors.print(line, soft_wrap=True), _progress)
    for name, split in manifest["splits"].items():
        typer.echo(f"{out / name}: {split['problems']} problems, {split['tests']} tests")
    for name, source in manifest["sources"].items():
        for reason, count in source["dropped"].items():
            typer.echo(f"  left out of {name}: {count} {reason}")
    typer.echo(f"{out / 'manifest.json'} has it all, {out / 'decontamination.jsonl'} the pairs that were in both")


@app.command()
def check(
    train: Annotated[Path, typer.Argument(help="Training problems: a built split, or a JSONL file.")],
    test: Annotated[Path, typer.Argument(help="Held-out problems, likewise.")],
) -> None:
    """Prove that no held-out problem is in training; exit code 1 where one is."""
    from environments.dataset.deduplicate import Overlap
    from environments.livecode.problems.problem import ProblemError

    try:
        known, ours = _signatures(test), _signatures(train)
    except ProblemError as error:
        raise _fail(f"data check: {error}") from None
    overlap = Overlap(known)
    with _progress("comparing", len(ours)) as tick:
        found = []
        for problem in ours:
            if match := overlap.match(problem):
                found.append(match)
            tick()
    for match in found:
        typer.echo(f"{match.id} is {match.other} of {test} ({match.how}, {match.score:g})")
    if found:
        raise _fail(f"data check: {len(found)} of {len(ours)} training problems are in {test}: leave them out", 1)
    typer.echo(f"{len(ours)} problems of {train} and {len(known)} of {test}: none in both")


@app.command()
def audit(
    split: Annotated[Path, typer.Argument(help="Problems: a built split, or a JSONL file.")],
    run: Annotated[
        Path | None, typer.Option(help="A run's folder: its recorded programs take the place of known solutions.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the findings, one JSON object a line.")] = None,
    workers: Annotated[int, typer.Option(help="Judges; 0: one per core.", min=0)] = 0,
) -> None:
    """Find problems that have several right answers, or wrong tests."""
    import asyncio

    from environments.dataset import audit as audits
    from environments.livecode.problems.load import load_problems
    from environments.livecode.problems.problem import ProblemError

    try:
        problems = load_problems(split)
        programs = audits.known_solutions(split) if run is None else audits.programs_of_run(run)
    except ProblemError as error:
        raise _fail(f"data audit: {error}") from None
    needed, most = (2, 0.0) if run is None else (audits.AGREEING, audits.MOST)
    chosen = [(problem, programs.get(problem.id, [])) for problem in problems]
    chosen = [(problem, codes if len(set(codes)) >= needed else []) for problem, codes in chosen]
    with _progress("running programs", len(chosen)) as tick:
        work = audits.audit(
            chosen,
            workers or len(os.sched_getaffinity(0)),
            tick,
            agreeing=needed,
            most=most,
            tests_dir=_tests_of(split),
        )
        findings = asyncio.run(work)
    for finding in findings:
        said = f'says "{finding.phrase}"; ' if finding.phrase else ""
        denied = f"{len(finding.tests)} tests deny what programs print" if finding.tests else ""
        typer.echo(f"{finding.problem_id}: {', '.join(sorted(finding.kinds))}: {said}{denied}".rstrip("; "))
    target = out or (run or (split if split.is_dir() else split.parent)) / "audit.jsonl"
    audits.write(findings, target)
    compared = sum(bool(codes) for _, codes in chosen)
    typer.echo(
        f"{len(findings)} of {len(problems)} problems are to be looked at; {compared} had {needed} programs or more to "
        f"compare. Each with its outputs: {target}"
    )


@app.command()
def calibrate(
    split: Annotated[Path, typer.Argument(help="Problems: a built split, or a JSONL file.")],
    slow: Annotated[
        Path | None, typer.Option(help="Programs that should be too slow: {problem_id, code}, one JSON object a line.")
    ] = None,
    time_factor: Annotated[
        float | None, typer.Option(help="env.own_time_factor of the training; none: 15 s for every problem.", min=1.0)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for all that was measured, one JSON object a line.")] = None,
    workers: Annotated[int, typer.Option(help="Judges; 0: one per core.", min=0)] = 0,
) -> None:
    """Hold the time limits against the CPU time of known solutions, and of programs that should be too slow."""
    import asyncio

    from environments.dataset import calibrate as calibrations
    from environments.dataset.audit import known_solutions
    from environments.livecode.problems.load import load_problems
    from environments.livecode.problems.problem import ProblemError
    from environments.livecode.verification.own_limits import OwnLimits

    try:
        problems = load_problems(split)
        known, brute = known_solutions(split), calibrations.read_programs(slow) if slow else {}
    except ProblemError as error:
        raise _fail(f"data calibrate: {error}") from None
    chosen = [problem for problem in problems if problem.id in known or problem.id in brute]
    if not chosen:
        raise _fail(f"data calibrate: {split}: no known solution and no program of --slow is of one of its problems")
    with _progress("running programs", len(chosen)) as tick:
        work = calibrations.calibrate(
            chosen,
            known,
            brute,
            OwnLimits(time=time_factor),
            workers or len(os.sched_getaffinity(0)),
            tick,
            tests_dir=_tests_of(split),
        )
        found = asyncio.run(work)
    for one in found:
        for complaint in one.complaints:
            typer.echo(f"{one.problem_id}: {complaint}")
    target = out or (split if split.is_dir() else split.parent) / "calibration.jsonl"
    calibrations.write(found, target)
    wrong = sum(bool(one.complaints) for one in found)
    typer.echo(f"{wrong} of {len(found)} problems are to be looked at. All of them: {target}")


def _tests_of(split: Path) -> Path | None:
    """Where a built split's test sets lie; None for another file."""
    from environments.livecode.problems.stored_tests import TESTS, is_built

    return (split if split.is_dir() else split.parent).parent / TESTS if is_built(split) else None


@app.command("filter", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def filter_(
    context: typer.Context,
    split: Annotated[Path, typer.Argument(help="Problems: a built split, or a JSONL file.")],
    samples: Annotated[int, typer.Option(help="Samples of each problem; the recipe's group has 8.", min=1)] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is left; none: SPLIT-filtered. Beside a built split.")
    ] = None,
    leave_out_never: Annotated[
        bool, typer.Option("--leave-out-never", help="Leave problems out as well that the model never solves.")
    ] = False,
) -> None:
    """Leave out what the served start model always solves, and keep the pass rates of the rest.

    Further options are the environment's (`atropos run-env livecode --help`): --config FILE, --model, --servers,
    --env.temperature and so on, as for training. Run again, it generates only what is missing.
    """
    import asyncio
    import logging
    import sys

    from environments.common.settings import write_yaml
    from environments.livecode.config import load_run_config
    from environments.livecode.problems.sampler import check_sets

    target = out or split.with_name(split.stem + "-filtered")
    check_sets([str(split)])
    words = [*context.args, "--env.problems", str(split), "--env.run_dir", str(target / "samples")]
    config = load_run_config(None, words, leave_out=("process",))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    from environments.dataset.filter import Split, measure_and_write, report
    from environments.livecode.command import until_signal

    chosen = Split(split, target)

    async def work() -> None:
        manifest = await measure_and_write(config, chosen, samples, leave_out_never)
        write_yaml(config, chosen.work / "config" / "filter.yaml")
        typer.echo("\n".join(report(manifest, chosen)))

    raise typer.Exit(asyncio.run(until_signal(work())))


def _signatures(path: Path) -> list[Signature]:
    import hashlib

    from environments.dataset.deduplicate import Signature, hashed_inputs
    from environments.livecode.problems.load import load_problems
    from environments.livecode.problems.stored_tests import StoredTests
    from verifier_app.judge.store import encode_tests

    found, problems = [], load_problems(path)
    with _progress(f"reading the tests of {path}", len(problems)) as tick:
        for problem in problems:
            tests = problem.tests
            if isinstance(tests, StoredTests):
                plain, sha = tests.plain(), tests.sha256
            else:
                plain = [test.model_dump() for test in tests]
                sha = hashlib.sha256(encode_tests(plain)).hexdigest()
            inputs = hashed_inputs(test["input"] for test in plain)
            found.append(Signature(problem.id, problem.statement, sha, inputs))
            tick()
    return found


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Problems: a built split, or a JSONL file.")],
    problem: Annotated[str | None, typer.Option(help="Id of one problem to read.")] = None,
    tests: Annotated[int, typer.Option(help="Tests to show of it.", min=0)] = 2,
) -> None:
    """Show what is in a set of problems, or one of them."""
    from environments.dataset.show import one, table
    from environments.livecode.problems.load import load_problems
    from environments.livecode.problems.problem import ProblemError

    try:
        problems = load_problems(path)
        if problem is None:
            return table(problems, Console())
        chosen = next((one for one in problems if one.id == problem), None)
        if chosen is None:
            near = ", ".join(one.id for one in problems[:5])
            raise ProblemError(f"--problem {problem}: not in {path}. Its first ids: {near}, ...")
        return one(chosen, Console(), tests)
    except ProblemError as error:
        raise _fail(f"data show: {error}") from None


@app.command()
def push(
    problems: Annotated[Path, typer.Option(help="Problems whose large test sets are uploaded.")],
    to: Annotated[str, typer.Option(help="modal, or a folder that the judges share.")] = "modal",
    volume: Annotated[str, typer.Option(help="Modal's volume (VERIFIER_VOLUME at deployment).")] = "livecode-tests",
    environment: Annotated[str | None, typer.Option(help="Modal's environment; none: the profile's own.")] = None,
) -> None:
    """Upload test sets above 1 MiB, each once, to where the judges read them."""
    from environments.dataset.push import push as send
    from environments.dataset.push import report

    folder = None if to == "modal" else Path(to)
    typer.echo(report(send(problems, folder, volume, environment), folder or f"Modal's volume {volume}"))
