"""`atropos warmup --seed 0 --out DIR`: the warm-up sets as JSONL files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Option(help="Folder for the files, made where missing.")],
    seed: Annotated[int, typer.Option(help="Draws instances and tests.")] = 0,
) -> None:
    """Write the warm-up sets, very easy problems from a seeded generator, as JSONL files with a manifest."""
    from environments.livecode.problems.warmup.generate import build, write

    try:
        manifest = write(build(seed), out, seed)
    except OSError as error:
        typer.echo(
            f"error --out {out}: cannot be written ({error.strerror}). Give a folder you may write to.", err=True
        )
        raise typer.Exit(2) from None
    typer.echo(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    typer.run(main)
