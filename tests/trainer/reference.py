"""The objectives once more, in plain Python floats (float64), by case distinction and with gradients by hand.

Nested lists: one list per sequence, one number per token. Shares no code with the trainer.
"""

from __future__ import annotations

import math

Nested = list[list[float]]

CLIP = {
    "grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
    "gspo+": (3e-4, 4e-4),
    "gspo-token": (3e-4, 4e-4),
    "dr_grpo": (0.2, 0.2),
}


def surrogate(w: float, advantage: float, low: float, high: float, dual: float | None) -> tuple[float, float]:
    """l(w, A) and dl/dw."""
    if advantage == 0:
        return 0.0, 0.0
    if advantage > 0:
        return (-w * advantage, -advantage) if w <= 1 + high else (-(1 + high) * advantage, 0.0)
    if w < 1 - low:
        return -(1 - low) * advantage, 0.0
    if dual is not None and w > dual:
        return -dual * advantage, 0.0
    return -w * advantage, -advantage


def loss_and_gradient(
    name: str,
    new: Nested,
    old: Nested,
    advantages: list[float],
    *,
    weights: Nested | None = None,
    dual: float | None = None,
    kl: float = 0.0,
    reference: Nested | None = None,
    max_length: int = 0,
) -> tuple[float, Nested]:
    """Loss of the whole step and its derivative by each log-probability; a sequence without tokens does not count."""
    low, high = CLIP[name]
    rows = [i for i in range(len(new)) if new[i]]
    n = max(len(rows), 1)
    total = max(sum(len(new[i]) for i in rows), 1)
    loss, gradient = 0.0, [[0.0] * len(row) for row in new]
    for i in rows:
        size = len(new[i])
        share = {
            "grpo": 1 / (n * size),
            "gspo": 1 / (n * size),
            "gspo-token": 1 / (n * size),
            "dapo": 1 / total,
            "gspo+": 1 / total,
            "dr_grpo": 1 / (n * max(max_length, 1)),
        }[name]
        differences = [a - b for a, b in zip(new[i], old[i], strict=True)]
        w = [1.0] * size if weights is None else weights[i]
        sequence_ratio = math.exp(math.fsum(differences) / size)
        value, slope = surrogate(sequence_ratio, advantages[i], low, high, dual)
        for t in range(size):
            if name in ("gspo", "gspo+"):
                loss += share * w[t] * value
                # every token of the sequence moves s_i by s_i / |y_i|
                gradient[i][t] += share * math.fsum(w) * slope * sequence_ratio / size
            elif name == "gspo-token":
                loss += share * w[t] * value
                gradient[i][t] += share * w[t] * slope * sequence_ratio
            else:
                ratio = math.exp(differences[t])
                value, slope = surrogate(ratio, advantages[i], low, high, dual)
                loss += share * w[t] * value
                gradient[i][t] += share * w[t] * slope * ratio
            if kl:
                q = (old if reference is None else reference)[i][t] - new[i][t]
                loss += share * kl * (math.exp(q) - q - 1)
                gradient[i][t] += share * kl * (1 - math.exp(q))
    return loss, gradient
