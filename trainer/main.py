"""Trains on scored groups from the Atropos API and sends new weights to vLLM: `python -m trainer.launch`, or torchrun.

The loop is `train`; its phases stand in trainer/run.py, the mathematics of a step in trainer/step.py.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

# torchrun puts this file's folder first on the path; the project's root is what imports are relative to.
if __package__ in (None, ""):
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from environments.common.errors import LivecodeError, report
from environments.common.settings import load
from trainer.config import TrainerConfig
from trainer.launch import LAUNCHED

log = logging.getLogger("trainer")


def train(config: TrainerConfig) -> None:
    """Trains until `config.steps` batches are done or it is stopped; weight version n is the policy after n of them."""
    from trainer.run import Run

    with Run(config) as run:
        run.publish(run.step)
        for groups in run.batches():
            batch = run.prepare(groups)
            run.optimize(batch)
            run.step += 1
            run.publish(run.step)
            run.record(batch)
            run.save_if_due()
        run.finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: exit code 2 for what the user has to change, 1 for what was missing or broke later.

    Such an error is raised on every rank, and reported once, by rank 0.
    """
    try:
        config = load(TrainerConfig, sys.argv[1:] if argv is None else argv, "torchrun trainer/main.py")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request buries the steps
        # Imported here: --help and broken settings should not pay for torch.
        from trainer.process.signals import end_with_launcher

        end_with_launcher()
        train(config)
    except LivecodeError as error:
        return report(error, show=os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ)
    except KeyboardInterrupt:  # later it is a request: see trainer/process/signals.py
        print("stopped before the run began", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
