"""The objectives by value, against an independent float64 reference, and invariant to how a batch is cut."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from reference import Nested, loss_and_gradient
from torch import Tensor

from trainer.metric_table import METRICS
from trainer.objective.objectives import (
    OBJECTIVES,
    ClippedBeforeUpdate,
    Denominators,
    Objective,
    check_before_update,
    denominators,
    divisor,
    objective,
    policy_loss,
)
from trainer.objective.off_policy import OffPolicy

NAMES = ["grpo", "dapo", "gspo", "gspo+", "dr_grpo"]
MAX_LENGTH = 64


def flat(rows: Nested, grad: bool = False) -> Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=torch.float32).requires_grad_(grad)


def nested(values: Tensor, lengths: list[int]) -> Nested:
    return [part.tolist() for part in values.detach().double().split(lengths)]


def loss_of(
    name: str | Objective, new: Nested, old: Nested, advantages: list[float], **options: object
) -> tuple[float, Nested, dict[str, tuple[Any, ...]]]:
    """Loss, gradient per token and statistics of one micro-batch that is the whole step."""
    chosen = OBJECTIVES[name] if isinstance(name, str) else name
    lengths = [len(row) for row in new]
    logprob = flat(new, grad=True)
    counts = options.pop("counts", None) or denominators(lengths, [False] * len(lengths), "include")
    loss, stats = policy_loss(
        chosen,
        logprob,
        flat(old),
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        torch.tensor(advantages, dtype=torch.float32),
        torch.tensor(lengths),
        counts,  # type: ignore[arg-type]
        max_length=MAX_LENGTH,
        **options,  # type: ignore[arg-type]
    )
    loss.backward()
    assert logprob.grad is not None
    return loss.item(), nested(logprob.grad, lengths), stats


def batch(seed: int, spread: float) -> tuple[Nested, Nested, list[float]]:
    """Nine sequences of 1 to 40 tokens, one of them without a token; differences of size `spread` to the old policy."""
    draw = random.Random(seed)
    lengths = [1, 2, 40, 7, 0, 13, 25, 3, 8]
    old = [[-draw.expovariate(1.0) for _ in range(size)] for size in lengths]
    shift = [draw.gauss(0, spread) for _ in lengths]
    new = [[x + shift[i] + draw.gauss(0, spread) for x in row] for i, row in enumerate(old)]
    single = nested(flat(new), lengths), nested(flat(old), lengths)
    return *single, [draw.choice([1.2, -0.8, 0.0, -2.0, 0.5]) for _ in lengths]


def spread_of(name: str) -> float:
    return 1.5e-3 if name.startswith("gspo") else 0.3


def assert_near(found: Nested, wanted: Nested, relative: float = 1e-5) -> None:
    a, b = (torch.tensor([x for row in rows for x in row], dtype=torch.float64) for rows in (found, wanted))
    assert (a - b).norm() <= relative * b.norm(), f"relative error {(a - b).norm() / b.norm():.2e}"
    assert b.norm() > 0


# --- numbers worked out by hand ---

TWO = [[-1.0, -2.0, -0.5], [-3.0]]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # A = (1, -2): on-policy, the gradient is -A_i times the token's weight
        ("grpo", -1 / (2 * 3), 2 / 2),
        ("gspo", -1 / (2 * 3), 2 / 2),
        ("dapo", -1 / 4, 2 / 4),
        ("gspo+", -1 / 4, 2 / 4),
        ("dr_grpo", -1 / (2 * 64), 2 / (2 * 64)),
    ],
)
def test_on_policy_weights_by_hand(name: str, first: float, second: float) -> None:
    _, gradient, _ = loss_of(name, TWO, TWO, [1.0, -2.0])
    assert gradient[0] == pytest.approx([first] * 3)
    assert gradient[1] == pytest.approx([second])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("grpo", -(1 / 2) * (1.0 - 2.0)),
        ("gspo", -(1 / 2) * (1.0 - 2.0)),
        ("dapo", -(1 / 4) * (3 * 1.0 - 2.0)),
        ("gspo+", -(1 / 4) * (3 * 1.0 - 2.0)),
        ("dr_grpo", -(1 / 128) * (3 * 1.0 - 2.0)),
    ],
)
def test_on_policy_loss_by_hand(name: str, wanted: float) -> None:
    assert loss_of(name, TWO, TWO, [1.0, -2.0])[0] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"),
    [
        (0.5, -1.0, 0.0),  # known fault: the clip on the wrong side for A < 0
        (2.0, -1.0, 2.0),
        (0.5, 1.0, -0.5),
        (2.0, 1.0, 0.0),
        (1.1, 1.0, -1.1),
        (0.9, -1.0, 0.9),
        (1.25, 1.0, -1.25),  # inside DAPO's upper bound .28
        (0.79, -1.0, 0.0),
    ],
)
def test_the_clip_stops_the_right_side(ratio: float, advantage: float, wanted: float) -> None:
    _, gradient, _ = loss_of("dapo", [[math.log(ratio)]], [[0.0]], [advantage])
    assert gradient[0] == pytest.approx([wanted])


def test_grpo_clips_where_dapo_does_not() -> None:
    assert loss_of("grpo", [[math.log(1.25)]], [[0.0]], [1.0])[1] == [[0.0]]


@pytest.mark.parametrize("name", ["gspo", "gspo+"])
def test_a_sequence_is_clipped_by_its_geometric_mean(name: str) -> None:
    # token ratios e^.01 and e^-.01: far outside 4e-4 each, their mean is 1
    _, gradient, stats = loss_of(name, [[0.01, -0.01], [0.001, 0.001]], [[0.0, 0.0]] * 2, [1.0, 1.0])
    assert gradient[0] == pytest.approx([-0.25, -0.25])
    assert gradient[1] == [0.0, 0.0]
    assert float(stats["clip_high_sequences"][0]) == 1


@pytest.mark.parametrize(("ratio", "wanted"), [(2.9, 2.9), (3.1, 0.0)])
def test_the_dual_clip_bounds_negative_advantages(ratio: float, wanted: float) -> None:
    chosen = objective("dapo", dual_clip=3)
    loss, gradient, _ = loss_of(chosen, [[math.log(ratio)]], [[0.0]], [-1.0])
    assert gradient[0] == pytest.approx([wanted])
    assert loss == pytest.approx(min(ratio, 3.0))


def test_without_the_dual_clip_a_large_ratio_keeps_its_gradient() -> None:
    assert loss_of("dapo", [[math.log(3.1)]], [[0.0]], [-1.0])[1][0] == pytest.approx([3.1])


def test_k3_by_hand() -> None:
    # new - reference = ln 2: k3 = 1/2 + ln 2 - 1, slope 1 - 1/2
    loss, gradient, _ = loss_of("dapo", [[math.log(2)]], [[0.0]], [0.0], kl_coefficient=0.1)
    assert loss == pytest.approx(0.1 * (math.log(2) - 0.5))
    assert gradient[0] == pytest.approx([0.05])


# --- against the reference ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_equal_the_reference(name: str, seed: int) -> None:
    new, old, advantages = batch(seed, spread_of(name))
    loss, gradient, _ = loss_of(name, new, old, advantages)
    wanted_loss, wanted = loss_and_gradient(name, new, old, advantages, max_length=MAX_LENGTH)
    assert loss == pytest.approx(wanted_loss, rel=1e-5, abs=1e-6)
    # a sequence's mean log-ratio near 4e-4 is a difference of fp32 log-probabilities: 1e-7 of the ratio
    assert_near(gradient, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_batches_are_clipped_in_part(name: str) -> None:
    clipped = []
    for seed in range(5):
        new, old, advantages = batch(seed, spread_of(name))
        _, gradient, _ = loss_of(name, new, old, advantages)
        clipped += [value == 0 for row, a in zip(gradient, advantages, strict=True) if a for value in row]
    assert 0.05 < sum(clipped) / len(clipped) < 0.95


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_the_dual_clip_equals_the_reference(name: str) -> None:
    new, old, advantages = batch(3, 1.0)
    loss, gradient, stats = loss_of(objective(name, dual_clip=3), new, old, advantages)
    wanted_loss, wanted = loss_and_gradient(name, new, old, advantages, dual=3.0)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert_near(gradient, wanted)
    assert float(stats["dual_clip_tokens"][0]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_kl_term_equals_the_reference(name: str) -> None:
    new, old, advantages = batch(1, spread_of(name))
    loss, gradient, _ = loss_of(name, new, old, advantages, kl_coefficient=0.3)
    wanted_loss, wanted = loss_and_gradient(name, new, old, advantages, kl=0.3, reference=old, max_length=64)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert_near(gradient, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_weights_equal_the_reference(name: str) -> None:
    new, old, advantages = batch(2, spread_of(name))
    draw = random.Random(5)
    sampler = [[x + draw.gauss(0, 0.6) for x in row] for row in old]
    sampler = nested(flat(sampler), [len(row) for row in old])
    weights = [
        [min(math.exp(a - b), 2.0) for a, b in zip(*rows, strict=True)] for rows in zip(old, sampler, strict=True)
    ]
    assert any(x == 2.0 for row in weights for x in row)
    loss, gradient, _ = loss_of(name, new, old, advantages, sampler_logprob=flat(sampler))
    wanted_loss, wanted = loss_and_gradient(name, new, old, advantages, weights=weights, max_length=MAX_LENGTH)
    assert loss == pytest.approx(wanted_loss, rel=1e-5, abs=1e-6)
    assert_near(gradient, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_whole_sequences_equal_the_reference(name: str) -> None:
    new, old, advantages = batch(2, spread_of(name))
    draw = random.Random(5)
    sampler = [[x + draw.gauss(0, 0.6) for x in row] for row in old]
    sampler = nested(flat(sampler), [len(row) for row in old])
    pairs = [list(zip(*rows, strict=True)) for rows in zip(old, sampler, strict=True)]
    of_sequence = [min(math.exp(math.fsum(a - b for a, b in pair)), 4.0) for pair in pairs]
    assert 4.0 in of_sequence
    assert min(of_sequence) < 0.5
    weights = [[weight] * len(row) for weight, row in zip(of_sequence, old, strict=True)]
    mismatch = OffPolicy(weight="sequence_tis", cap=4.0)
    loss, gradient, _ = loss_of(name, new, old, advantages, sampler_logprob=flat(sampler), mismatch=mismatch)
    wanted_loss, wanted = loss_and_gradient(name, new, old, advantages, weights=weights, max_length=MAX_LENGTH)
    assert loss == pytest.approx(wanted_loss, rel=1e-5, abs=1e-6)
    assert_near(gradient, wanted)


# --- identities ---


@pytest.mark.parametrize(("token", "sequence"), [("grpo", "gspo"), ("dapo", "gspo+")])
def test_on_policy_the_sequence_ratio_changes_nothing(token: str, sequence: str) -> None:
    _, old, advantages = batch(4, 0.3)
    assert_near(loss_of(sequence, old, old, advantages)[1], loss_of(token, old, old, advantages)[1], 1e-6)


@pytest.mark.parametrize(("token", "sequence"), [("grpo", "gspo"), ("dapo", "gspo+")])
def test_off_policy_it_does(token: str, sequence: str) -> None:
    new, old, advantages = batch(4, 0.3)
    first = torch.tensor([x for row in loss_of(sequence, new, old, advantages)[1] for x in row])
    second = torch.tensor([x for row in loss_of(token, new, old, advantages)[1] for x in row])
    assert (first - second).norm() > 0.1 * second.norm()


def gspo_token(new: Tensor, old: Tensor, lengths: list[int], advantages: list[float]) -> Tensor:
    """GSPO-token (arXiv 2507.18071, eq. 13-14) with sg[s_i] pi / sg[pi], float64."""
    total = new.new_zeros(())
    for new_row, old_row, advantage in zip(new.split(lengths), old.split(lengths), advantages, strict=True):
        if not len(new_row):
            continue
        s = (new_row - old_row).mean().exp().detach() * (new_row - new_row.detach()).exp()
        bounded = torch.minimum(s * advantage, s.clamp(1 - 3e-4, 1 + 4e-4) * advantage)
        total = total - bounded.mean()
    return total / sum(size > 0 for size in lengths)


@pytest.mark.parametrize("seed", range(3))
def test_gspo_equals_gspo_token_for_a_constant_advantage(seed: int) -> None:
    new, old, advantages = batch(seed, 4e-4)
    lengths = [len(row) for row in new]
    logprob = flat(new).double().requires_grad_()
    gspo_token(logprob, flat(old).double(), lengths, advantages).backward()
    assert logprob.grad is not None
    assert_near(loss_of("gspo", new, old, advantages)[1], nested(logprob.grad, lengths))


# --- how the batch is cut does not matter ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pieces", [2, 3, 9])
def test_the_cut_into_micro_batches_changes_nothing(name: str, pieces: int) -> None:
    # known faults: accumulation divided twice, divisors per rank
    new, old, advantages = batch(6, spread_of(name))
    lengths = [len(row) for row in new]
    ranks = [denominators(lengths[k::pieces], [False] * len(lengths[k::pieces]), "include") for k in range(pieces)]
    counts = Denominators(sum(c.sequences for c in ranks), sum(c.tokens for c in ranks))
    whole, gradient, _ = loss_of(name, new, old, advantages)
    total, parts = 0.0, [[0.0] * size for size in lengths]
    for k in range(pieces):
        piece, own, _ = loss_of(name, new[k::pieces], old[k::pieces], advantages[k::pieces], counts=counts)
        total += piece
        parts[k::pieces] = own
    assert total == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert_near(parts, gradient, 1e-6)


def test_the_order_of_packed_sequences_changes_nothing() -> None:
    new, old, advantages = batch(7, 4e-4)
    _, forward, _ = loss_of("gspo+", new, old, advantages)
    _, backward, _ = loss_of("gspo+", new[::-1], old[::-1], advantages[::-1])
    assert_near(backward[::-1], forward, 1e-6)


def test_tokens_of_sequences_may_be_interleaved() -> None:
    # sequence indices decide, not the layout
    logprob = torch.tensor([0.01, 0.001, -0.01, 0.001], requires_grad=True)
    loss, _ = policy_loss(
        OBJECTIVES["gspo"],
        logprob,
        torch.zeros(4),
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([2, 2]),
        Denominators(2, 4),
    )
    loss.backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-0.25, 0.0, -0.25, 0.0])


# --- divisors ---


def test_overlong_sequences_stay_in_the_divisor_under_include() -> None:
    assert denominators([3, 5, 2], [False, True, False], "include") == Denominators(3, 10)


def test_overlong_sequences_are_outside_the_divisor_under_exclude() -> None:
    assert denominators([3, 5, 2], [False, True, False], "exclude") == Denominators(2, 5)


def test_an_overlong_sequence_has_no_gradient_but_weighs_in_the_divisor() -> None:
    _, gradient, _ = loss_of("dapo", [[0.0], [0.0, 0.0, 0.0]], [[0.0], [0.0, 0.0, 0.0]], [1.0, 0.0])
    assert gradient == [[-0.25], [0.0, 0.0, 0.0]]


def test_fully_masked_rows_are_not_counted() -> None:
    # known fault
    assert denominators([3, 0, 2], [False, False, False], "include") == Denominators(2, 5)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_the_divisor_is_at_least_one(name: str) -> None:
    assert divisor(OBJECTIVES[name], Denominators(0, 0)) == 1


def test_a_ranks_own_count_may_be_zero() -> None:
    # "at least one" holds after the sum over ranks: one per empty rank would be a per-rank divisor
    assert denominators([], [], "include") == Denominators(0, 0)


def test_dr_grpo_divides_by_a_constant_length() -> None:
    assert divisor(OBJECTIVES["dr_grpo"], Denominators(3, 10), 100) == 300


def test_dr_grpo_without_its_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length None with dr_grpo"):
        divisor(OBJECTIVES["dr_grpo"], Denominators(3, 10))


# --- numerical traps ---


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_micro_batch_is_a_zero_that_reaches_the_parameters(name: str) -> None:
    parameter = torch.ones(3, requires_grad=True)
    loss, _ = policy_loss(
        OBJECTIVES[name],
        (parameter * 2)[:0],
        torch.zeros(0),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0),
        torch.zeros(0, dtype=torch.long),
        Denominators(4, 9),
        max_length=8,
        sampler_logprob=torch.zeros(0),
        kl_coefficient=0.1,
    )
    loss.backward()
    assert loss.item() == 0.0
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_empty_rows_is_zero_not_nan(name: str) -> None:
    loss, _, _ = loss_of(name, [[], []], [[], []], [1.0, -1.0])
    assert loss == 0.0


@pytest.mark.parametrize("gap", [60.0, -60.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_log_ratios_stay_finite(name: str, gap: float) -> None:
    loss, gradient, _ = loss_of(name, [[0.0, gap]], [[0.0, 0.0]], [-1.0])
    assert math.isfinite(loss)
    assert all(math.isfinite(x) for x in gradient[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_sequence_of_infinities_gives_no_nan(name: str) -> None:
    # `where` before exp: a product with the mask would be inf * 0
    mismatch = OffPolicy(sequence_low=0.9, sequence_high=1.1)
    loss, gradient, stats = loss_of(
        name,
        [[-1.0], [float("-inf")]],
        [[-1.0], [-1.0]],
        [1.0, 1.0],
        sampler_logprob=torch.tensor([-1.0, -9.0]),
        mismatch=mismatch,
        counts=Denominators(1, 1),
        kl_coefficient=0.1,
    )
    assert gradient[1] == [0.0]
    assert gradient[0][0] != 0.0
    assert loss == pytest.approx(gradient[0][0])  # -A_1 / D, without a share of the masked sequence
    assert int(stats["masked_sequences"][0]) == 1
    assert all(math.isfinite(float(x)) for row in stats.values() for x in row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    zeros = torch.zeros(1, dtype=dtype)
    with pytest.raises(ValueError, match="need float32"):
        policy_loss(
            OBJECTIVES["gspo"],
            zeros,
            zeros,
            torch.tensor([0]),
            torch.ones(1),
            torch.tensor([1]),
            Denominators(1, 1),
        )


def test_fp32_resolves_the_sequence_clip() -> None:
    # 1 + 3e-4 would be 1.0 in bf16: just inside and just outside must differ
    inside = loss_of("gspo", [[3.9e-4]], [[0.0]], [1.0])[1][0][0]
    outside = loss_of("gspo", [[4.1e-4]], [[0.0]], [1.0])[1][0][0]
    assert inside == pytest.approx(-1.0, rel=1e-3)
    assert outside == 0.0


def test_a_batch_by_time_matrix_is_refused() -> None:
    # known fault: (B, 1) times (B, T) broadcasts in GSPO
    with pytest.raises(ValueError, match="pass packed"):
        policy_loss(
            OBJECTIVES["gspo"],
            torch.zeros(2, 2),
            torch.zeros(2, 2),
            torch.zeros(2, 2, dtype=torch.long),
            torch.ones(2, 1),
            torch.tensor([2, 2]),
            Denominators(2, 4),
        )


def test_gspos_loss_counts_a_sequence_once_whatever_its_length() -> None:
    # known fault: the same broadcast weighs each sequence by the number of sequences or tokens
    assert loss_of("gspo", [[0.0] * 9, [0.0]], [[0.0] * 9, [0.0]], [1.0, 0.0])[0] == pytest.approx(-0.5)


def test_a_cut_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="pack whole sequences"):
        policy_loss(
            OBJECTIVES["gspo"],
            torch.zeros(2),
            torch.zeros(2),
            torch.tensor([0, 0]),
            torch.ones(1),
            torch.tensor([3]),
            Denominators(1, 3),
        )


# --- the sampler's mismatch ---


def test_old_log_probabilities_of_the_sampler_weigh_one() -> None:
    new, old, advantages = batch(8, 0.3)
    shared = flat(old)
    logprob = flat(new, grad=True)
    lengths = [len(row) for row in new]
    loss, stats = policy_loss(
        OBJECTIVES["dapo"],
        logprob,
        shared,
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        torch.tensor(advantages),
        torch.tensor(lengths),
        denominators(lengths, [False] * len(lengths), "include"),
        sampler_logprob=shared,
    )
    assert loss.item() == pytest.approx(loss_and_gradient("dapo", new, old, advantages)[0], rel=1e-5)
    # the distance to the sampler is then the policy's own, not zero
    assert float(stats["mismatch_abs"][0]) == pytest.approx(float((logprob - shared).detach().abs().sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "rho", "wanted"),
    [
        ("tis", 1.5, 1.5),
        ("tis", 5.0, 2.0),
        ("tis", 0.1, 0.1),
        ("icepop", 1.5, 1.5),
        ("icepop", 0.4, 0.0),
        ("icepop", 5.5, 0.0),
        ("sequence_tis", 1.5, 1.5),
        ("sequence_tis", 5.0, 2.0),
        ("none", 5.0, 1.0),
    ],
)
def test_the_off_policy_weight_by_hand(weight: str, rho: float, wanted: float) -> None:
    _, gradient, _ = loss_of(
        "dapo",
        [[0.0]],
        [[0.0]],
        [-1.0],
        sampler_logprob=torch.tensor([-math.log(rho)]),
        mismatch=OffPolicy(weight=weight),  # type: ignore[arg-type]
    )
    assert gradient[0] == pytest.approx([wanted])


def test_the_weight_of_a_sequence_is_the_product_of_its_tokens_and_stays_finite() -> None:
    _, gradient, _ = loss_of(
        "dapo",
        [[0.0, 0.0], [0.0]],
        [[0.0, 0.0], [0.0]],
        [-3.0, -3.0],
        sampler_logprob=torch.tensor([-math.log(1.5), -math.log(0.5), 300.0]),
        mismatch=OffPolicy(weight="sequence_tis"),
    )
    assert gradient[0] == pytest.approx([0.75, 0.75])
    assert gradient[1] == pytest.approx([math.exp(-20.0)])


@pytest.mark.parametrize("length", [1, 10, 32_000])
def test_the_sequence_mask_does_not_collapse_with_length(length: int) -> None:
    # known fault: a product of weights of 0.99 is 0 after some thousand tokens
    zeros = [[0.0] * length]
    _, gradient, stats = loss_of(
        "dapo",
        zeros,
        zeros,
        [-1.0],
        sampler_logprob=torch.full((length,), -math.log(0.99)),
        mismatch=OffPolicy(sequence_low=0.98, sequence_high=1.02),
    )
    assert int(stats["masked_sequences"][0]) == 0
    assert sum(gradient[0]) == pytest.approx(0.99, rel=1e-4)


def test_the_sequence_mask_leaves_a_sequence_out() -> None:
    _, gradient, _ = loss_of(
        "grpo",
        [[0.0, 0.0], [0.0]],
        [[0.0, 0.0], [0.0]],
        [-1.0, -1.0],
        sampler_logprob=torch.tensor([0.0, 0.0, -0.5]),
        mismatch=OffPolicy(weight="none", sequence_high=1.1),
        counts=Denominators(1, 2),
    )
    assert gradient == [[0.5, 0.5], [0.0]]


def test_an_empty_row_is_not_masked_for_its_mismatch() -> None:
    _, _, stats = loss_of("gspo", [[0.0], []], [[0.0], []], [1.0, 1.0], sampler_logprob=torch.tensor([0.0]))
    assert int(stats["masked_sequences"][0]) == 0


# --- statistics ---


def test_clip_statistics_by_hand() -> None:
    new = [[math.log(r) for r in row] for row in ([0.5, 1.5, 1.0], [0.5, 1.5, 4.0])]
    _, _, stats = loss_of(objective("dapo", dual_clip=3), new, [[0.0] * 3] * 2, [1.0, -1.0])
    numbers = {name: tuple(float(x) for x in row) for name, row in stats.items()}
    assert numbers["clip_high_tokens"] == (1, 6)  # 1.5 of the first sequence
    assert numbers["clip_low_tokens"] == (1, 6)  # 0.5 of the second
    assert numbers["dual_clip_tokens"] == (1, 6)  # 4.0 of the second
    assert numbers["clip_high_sequences"] == (1, 2)
    assert numbers["clip_low_sequences"] == (1, 2)
    assert numbers["outside_clip_sequences"] == (2, 2)
    assert numbers["ratio_mean"] == pytest.approx((9.0, 6))
    assert numbers["ratio_max"][0] == pytest.approx(4.0)


def test_kl_statistics_by_hand() -> None:
    _, _, stats = loss_of("dapo", [[math.log(2), 0.0]], [[0.0, 0.0]], [1.0])
    assert [float(x) for x in stats["kl_old_k1"]] == pytest.approx([-math.log(2), 2])
    assert [float(x) for x in stats["kl_old_k3"]] == pytest.approx([1 - math.log(2), 2])


def test_mismatch_statistics_by_hand() -> None:
    sampler = torch.tensor([-0.5, 0.25])
    _, _, stats = loss_of("dapo", [[0.0, 0.0]], [[0.0, 0.0]], [1.0], sampler_logprob=sampler)
    assert [float(x) for x in stats["mismatch_abs"]] == pytest.approx([0.75, 2])
    assert float(stats["mismatch_abs_max"][0]) == 0.5
    wanted = math.exp(0.5) - 1.5 + math.exp(-0.25) - 0.75
    assert float(stats["mismatch_kl"][0]) == pytest.approx(wanted)


def test_statistics_of_an_empty_row_do_not_count_it() -> None:
    _, _, stats = loss_of("gspo", [[0.0], []], [[0.0], []], [1.0, 1.0])
    assert int(stats["outside_clip_sequences"][1]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_statistic_is_in_the_table_of_metrics(name: str) -> None:
    assert set(loss_of(name, TWO, TWO, [1.0, -1.0])[2]) <= set(METRICS)


# --- the table and its refusals ---


def test_the_table_is_frozen() -> None:
    rows = {
        row.name: (row.ratio, row.reduction, row.denominator, row.clip_low, row.clip_high, row.scale_by_std)
        for row in OBJECTIVES.values()
    }
    assert rows == {
        "grpo": ("token", "sequence_mean", "sequences", 0.2, 0.2, True),
        "dapo": ("token", "token_sum", "tokens", 0.2, 0.28, True),
        "gspo": ("sequence", "sequence_mean", "sequences", 3e-4, 4e-4, True),
        "gspo+": ("sequence", "token_sum", "tokens", 3e-4, 4e-4, True),
        "dr_grpo": ("token", "token_sum", "sequences_times_max_length", 0.2, 0.2, False),
    }


def test_an_unknown_objective_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'ppo' is unknown: choose one of grpo, dapo, gspo, gspo\+, dr_grpo"):
        objective("ppo")


@pytest.mark.parametrize("name", ["gspo", "gspo+", "dr_grpo"])
def test_the_dual_clip_is_refused_where_it_does_not_belong(name: str) -> None:
    with pytest.raises(ValueError, match="use grpo or dapo"):
        objective(name, dual_clip=3)


@pytest.mark.parametrize("options", [{"clip_low": 0}, {"clip_low": 1.5}, {"clip_high": 0}, {"dual_clip": 1}])
def test_bounds_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="set "):
        objective("dapo", **options)


def test_a_reduction_that_does_not_fit_its_denominator_is_refused() -> None:
    with pytest.raises(ValueError, match="pair sequence_mean with sequences"):
        Objective("mine", "token", "token_sum", "sequences", 0.2, 0.2)


def test_only_sequence_ratios_need_the_trainers_old_log_probabilities() -> None:
    assert [name for name, row in OBJECTIVES.items() if row.needs_trainer_old] == ["gspo", "gspo+"]


def test_clipping_before_any_update_is_refused_when_it_dominates() -> None:
    # the sampler's noise of 5.7e-3 on the mean puts most sequences outside 3e-4/4e-4
    draw = random.Random(0)
    old = [[draw.gauss(0, 5.7e-3)] for _ in range(200)]
    _, _, stats = loss_of("gspo", [[0.0]] * 200, old, [1.0] * 200)
    outside, sequences = (float(x) for x in stats["outside_clip_sequences"])
    with pytest.raises(ClippedBeforeUpdate, match="old_logprobs: recompute"):
        check_before_update(OBJECTIVES["gspo"], outside / sequences)


def test_no_clipping_before_the_update_is_fine() -> None:
    check_before_update(OBJECTIVES["gspo"], 0.0)
