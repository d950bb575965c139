"""trainer/main.py over the communicator of tests/support/gloo_nccl.py, for torchrun on a machine without a GPU.

While the file of the environment variable HANG_WHEN is there, rank 0's broadcasts never end.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import gloo_nccl
from trainer.main import main
from trainer.weight_sync import nccl as weights_nccl
from trainer.weight_sync import session

gloo_nccl.install()
vars(weights_nccl)["check_machine"] = lambda device: None
session.CATCH_UP_S = 0.2
broadcast = gloo_nccl.GlooCommunicator.broadcast


def hang_when_told(communicator: Any, tensor: Any, src: int, stream: Any = None) -> None:
    if Path(os.environ["HANG_WHEN"]).exists():
        threading.Event().wait()
    broadcast(communicator, tensor, src, stream)


gloo_nccl.GlooCommunicator.broadcast = hang_when_told  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.exit(main())
