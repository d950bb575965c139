"""What training changes, made from the options: the policy, its optimizer, and the reference that follows it."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoints import Checkpoints, Restored
from trainer.config import TrainerConfig
from trainer.model.policy import Policy
from trainer.model.reference import Reference
from trainer.optimizer import PolicyOptimizer
from trainer.parallel import Parallel, together


class TrainingState:
    """Policy, optimizer and reference of a run; `reference` is None where `objective.reference` is none."""

    def __init__(self, config: TrainerConfig, model: Path, parallel: Parallel) -> None:
        """Reads the model's folder, on every rank. Raises what `Policy` raises."""
        with together(parallel):
            self.policy = Policy(
                model,
                parallel,
                activation_checkpointing=config.activation_checkpointing,
                logprob_chunk=config.logprob_chunk,
                compile_blocks=config.compile,
                context=config.batch.context,
                adapter=config.adapter,
                seed=config.seed,
            )
        self.optimizer = PolicyOptimizer(self.policy, config.optimizer, config.updates)
        self.reference: Reference | None = None
        if config.objective.reference != "none":
            with together(parallel):
                self.reference = Reference(config, self.policy)

    def resume(self, checkpoints: Checkpoints, path: str) -> Restored:
        """The state after a run's step, from its checkpoint. A collective; raises CheckpointError."""
        return checkpoints.load(path, self.policy, self.optimizer, reference=self.reference)

    def begin_with(self, checkpoints: Checkpoints, path: str, optimizer: str) -> None:
        """The weights of another run's checkpoint, with its moments where `optimizer` is "keep": a stage begins.

        A running mean begins there as well; a frozen reference stays the model. Raises CheckpointError.
        """
        checkpoints.load(path, self.policy, self.optimizer if optimizer == "keep" else None)
        if self.reference is not None:
            self.reference.begin()
