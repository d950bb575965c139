"""Two starts of a trainer in one run folder, as its trackers see them: argv is NAME FOLDER. The second one fails."""

import sys

from environments.common.errors import ConfigError
from environments.common.settings import load
from trainer.config import TrainerConfig
from trainer.tracker_interface import ShowsRollouts
from trainer.tracking import tracking

ROLLOUTS = [
    {"step": 0, "problem": "p", "group": "g", "rollout": 1, "score": -1.0, "overlong": False, "tokens": 2,
     "prompt": "Add.", "completion": "```\n<b>1</b>\n```\nü"},
    {"step": 0, "problem": "q", "group": "h", "rollout": 0, "score": 1.0, "overlong": True, "tokens": 3,
     "prompt": "Multiply.", "completion": ""},
]  # fmt: skip


def main(name: str, folder: str) -> None:
    config = load(TrainerConfig, ["--model", "m", "--run_dir", folder, "--trackers", name])
    for steps, failing in (((1, 2, 3), False), ((3, 4), True)):
        try:
            with tracking(config) as (tracker,):
                for step in steps:
                    assert isinstance(tracker, ShowsRollouts)
                    tracker.rollouts(step, [rollout | {"step": step} for rollout in ROLLOUTS])
                    tracker.log(step, {"step": step, "loss": step / 2 + 10 * failing, "unobserved": None})
                if failing:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            print("failed")
        except ConfigError as error:
            print(error)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
