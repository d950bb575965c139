"""`python -m environments.livecode.problems.warmup --seed 0 --out DIR`: the warm-up sets as JSONL files."""

from __future__ import annotations

import argparse
import json
import sys

from environments.livecode.problems.warmup.generate import build, write


def main(argv: list[str] | None = None) -> int:
    """Writes train.jsonl, new_instances.jsonl, unseen_templates.jsonl and manifest.json."""
    parser = argparse.ArgumentParser(prog="python -m environments.livecode.problems.warmup", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws instances and tests (default 0)")
    parser.add_argument("--out", required=True, help="folder for the files, made where missing")
    options = parser.parse_args(argv)
    try:
        manifest = write(build(options.seed), options.out, options.seed)
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written ({error.strerror}). Give a folder you may write to.")
    sys.stdout.write(json.dumps(manifest, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
