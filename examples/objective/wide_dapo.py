"""An objective is one row: ratio, sum over tokens, divisor, clip range below and above 1."""

from __future__ import annotations

from trainer.objective.table import Objective

DAPO_WIDE = Objective("dapo_wide", "token", "token_sum", "tokens", 0.2, 0.5, allows_dual_clip=True)
