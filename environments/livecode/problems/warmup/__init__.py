"""Very easy problems in LiveCodeBench's manner, from a seeded generator: what a small model can solve."""

from environments.livecode.problems.warmup.fewshot import FEWSHOT, FewshotTurn, turns_for
from environments.livecode.problems.warmup.generate import TEMPLATES, UNSEEN, WarmupSets, build, write

__all__ = ["FEWSHOT", "TEMPLATES", "UNSEEN", "FewshotTurn", "WarmupSets", "build", "turns_for", "write"]
