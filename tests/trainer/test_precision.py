"""The gradient of every objective at 40,959 tokens, and k3 next to zero, against float64 computed another way."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from trainer.objective.objectives import OBJECTIVES, Denominators, policy_loss
from trainer.objective.off_policy import sequence_mean

LONGEST = 40_959
CONTEXT = 40_960


def by_hand(name: str, new: torch.Tensor, old: torch.Tensor, weight: float, advantage: float) -> list[float]:
    """In float64, one sequence and one unclipped surrogate: share x w x A x ratio for each token."""
    size = len(new)
    apart = [a - b for a, b in zip(new.double().tolist(), old.double().tolist(), strict=True)]
    share = {"grpo": 1 / size, "dapo": 1 / size, "gspo": 1 / size, "gspo+": 1 / size, "dr_grpo": 1 / CONTEXT}[name]
    whole = math.exp(math.fsum(apart) / size)
    ratios = [whole] * size if name.startswith("gspo") else [math.exp(one) for one in apart]
    return [-share * weight * advantage * ratio for ratio in ratios]


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("length", [200, LONGEST])
def test_the_gradient_keeps_fp32s_precision_at_any_length(name: str, length: int) -> None:
    draw = torch.Generator().manual_seed(length)
    old = -torch.rand(length, generator=draw)
    # the mean stays inside GSPO's clip range, single tokens inside the others'
    new = (old + 1e-4 + 1e-3 * torch.randn(length, generator=draw)).requires_grad_()
    sampler = old + math.log(1.25)
    loss, _ = policy_loss(
        OBJECTIVES[name],
        new,
        old,
        torch.zeros(length, dtype=torch.int64),
        torch.tensor([0.7]),
        torch.tensor([length]),
        Denominators(1, length),
        max_length=CONTEXT,
        sampler_logprob=sampler,
    )
    loss.backward()
    assert new.grad is not None
    # the weight as the mean of what fp32 holds of each token's own
    weight = float((old.double() - sampler.double()).exp().mean())
    wanted = torch.tensor(by_hand(name, new.detach(), old, weight, 0.7), dtype=torch.float64)
    apart = float((new.grad.double() - wanted).norm() / wanted.norm())
    assert apart < 1e-7, f"relative error {apart:.2e}"


def test_a_sequences_mean_is_exact_over_the_longest_sequence() -> None:
    values = torch.rand(LONGEST, generator=torch.Generator().manual_seed(1)) * 1e-3
    exact = sum(map(Fraction, values.tolist()), Fraction(0)) / LONGEST
    found = sequence_mean(values, torch.zeros(LONGEST, dtype=torch.int64), torch.tensor([LONGEST]))
    assert float(found[0]) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("q", [1e-3, 1e-6, -1e-6])
def test_k3_next_to_zero_is_half_the_square(q: float) -> None:
    """exp(q) - q - 1 in fp32 is a multiple of 6e-8 there, or negative."""
    old = torch.tensor([q])
    _, stats = policy_loss(
        OBJECTIVES["dapo"],
        torch.zeros(1),
        old,
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([0.0]),
        torch.tensor([1]),
        Denominators(1, 1),
        sampler_logprob=2 * old,
    )
    single = float(old)
    k3 = single**2 / 2 - single**3 / 6
    assert float(stats["kl_old_k3"][0]) == pytest.approx(k3, rel=1e-5)
    assert float(stats["mismatch_kl"][0]) == pytest.approx(k3, rel=1e-5)


def test_the_kl_term_next_to_zero_is_half_the_square() -> None:
    q = torch.tensor([-1e-6])
    loss, _ = policy_loss(
        OBJECTIVES["dapo"],
        torch.zeros(1, requires_grad=True),
        q,
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([0.0]),
        torch.tensor([1]),
        Denominators(1, 1),
        kl_coefficient=1.0,
    )
    assert loss.item() == pytest.approx(5e-13, rel=1e-3)
