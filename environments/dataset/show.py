"""What is in a set of problems: a table of all, or one problem to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.table import Table

from environments.livecode.problems.problem import Problem


def table(problems: Sequence[Problem], console: Console) -> None:
    """A row for each source: kinds, difficulties, dates, tests per problem."""
    grid = Table(box=None)
    for name in ("source", "problems", "stdin", "function"):
        grid.add_column(name, no_wrap=True, justify="left" if name == "source" else "right")
    for name in ("difficulty", "dates", "tests: median (most)"):
        grid.add_column(name)
    by_source: dict[str, list[Problem]] = {}
    for problem in problems:
        by_source.setdefault(problem.source, []).append(problem)
    for source, rows in [*sorted(by_source.items()), ("all", list(problems))]:
        kinds = Counter(problem.kind for problem in rows)
        levels = Counter(problem.difficulty or "-" for problem in rows)
        dates = sorted(problem.date[:10] for problem in rows if problem.date)
        counts = sorted(len(problem.tests) for problem in rows)
        grid.add_row(
            source,
            str(len(rows)),
            str(kinds["stdin"]),
            str(kinds["function"]),
            ", ".join(f"{level} {count}" for level, count in sorted(levels.items())),
            f"{dates[0]} to {dates[-1]}" if dates else "-",
            f"{counts[len(counts) // 2]} ({counts[-1]})",
        )
    console.print(grid)


def one(problem: Problem, console: Console, tests: int = 2) -> None:
    """A problem: its facts, statement, starter code and first tests."""
    facts = Table(show_header=False, box=None)
    for name in ("id", "source", "kind", "fn_name", "difficulty", "date", "platform"):
        if getattr(problem, name) is not None:
            facts.add_row(name, str(getattr(problem, name)))
    facts.add_row("tests", str(len(problem.tests)))
    console.print(facts)
    console.rule("statement")
    console.print(Markdown(problem.statement))
    if problem.starter_code:
        console.rule("starter code")
        console.print(Syntax(problem.starter_code, "python"))
    for number, test in zip(range(tests), problem.tests, strict=False):
        console.rule(f"test {number}")
        console.print(Syntax(test.input[:2000], "text"), Syntax(test.output[:2000], "text"))
