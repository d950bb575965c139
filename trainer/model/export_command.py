"""`atropos export RUN`: a checkpoint of a run as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from environments.common.hub import model_folder
from environments.common.run_folder import check
from environments.common.settings import ConfigError, load
from trainer.checkpoints import CheckpointError, Checkpoints
from trainer.config import TrainerConfig
from trainer.model.export import ExportError, save_adapter, save_hf
from trainer.model.loading import UnsupportedModel
from trainer.model.policy import Policy
from trainer.parallel import distributed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export(
    run: Path,
    which: str,
    out: Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    model: Path | None = None,
    *,
    adapter: bool = False,
) -> tuple[Path, int]:
    """Writes a checkpoint's weights to `out`; (the folder, the step they were trained for). One process, on the CPU.

    Args:
        which: "latest", "best", a name such as step-00000012, or a checkpoint's folder.
        model: folder of the model that the run began with; None: what the run's configuration names.
        adapter: of a run with an adapter, write that alone, in peft's format; else it is merged into its model.

    Raises:
        ConfigError: no run, no such checkpoint, another model's checkpoint, a folder that cannot be written, or an
            adapter where there is none.
    """
    check(run)
    settings = run / "config" / "trainer.yaml"
    if not settings.is_file():
        raise ConfigError(f"export: {run}: no config/trainer.yaml there. Give the folder that --run_dir named.")
    flags = ["--config", str(settings)] + ([] if model is None else ["--model", str(model)])
    config = load(TrainerConfig, flags, "atropos export")
    config = config.model_copy(update={"model": model_folder(config.model)})
    try:
        with distributed(device="cpu") as parallel:
            if adapter and not config.adapter.rank:
                raise ExportError("--adapter: this run trained all weights; leave the option out")
            policy = Policy(config.model, parallel, activation_checkpointing="none", adapter=config.adapter)
            checkpoints = Checkpoints(run / "checkpoints", parallel)
            try:
                restored = checkpoints.load(which, policy, None)
            finally:
                checkpoints.close()
            if adapter:
                return save_adapter(policy, out, DTYPES[dtype]), restored.step
            return save_hf(policy, out, config.model, DTYPES[dtype]), restored.step
    except (CheckpointError, ExportError, UnsupportedModel, OSError) as error:
        raise ConfigError(f"export: {error}") from None
