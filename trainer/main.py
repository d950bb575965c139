"""`torchrun trainer/main.py`: takes scored groups from the Atropos API, trains, sends new weights to vLLM.

The loop is `train`; its phases stand in trainer/run.py, the mathematics of a step in trainer/step.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

# torchrun puts this file's folder first on the path; the project's root is what imports are relative to.
if __package__ in (None, ""):
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from environments.settings import ConfigError, load
from trainer.config import TrainerConfig

log = logging.getLogger("trainer")


def train(config: TrainerConfig) -> None:
    """Trains until `config.steps` batches are done; weight version n is the policy after n of them."""
    from trainer.run import Run

    with Run(config) as run:
        run.publish(run.step)
        while run.step < config.steps:
            batch = run.prepare(run.next_groups())
            run.optimize(batch)
            run.step += 1
            run.publish(run.step)
            run.record(batch)
            run.save_if_due()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: exit code 2 for settings that cannot be used, before anything is started."""
    try:
        config = load(TrainerConfig, sys.argv[1:] if argv is None else argv, "torchrun trainer/main.py")
    except ConfigError as error:
        print(f"error {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    train(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
