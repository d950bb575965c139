"""Log-probabilities as the proof of a sync: what is compared, and what is too far apart."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from trainer.model.policy import Policy
from trainer.parallel import Parallel
from trainer.weight_sync.logprob_check import (
    EXACT,
    ROUNDED,
    Tolerance,
    check_probes,
    compare,
    policy_logprobs,
    probe_prompt,
    tolerance_for,
)
from trainer.weight_sync.vllm_routes import Probe, WeightSyncError

PROMPT = [5, 9, 31, 7, 12]
SAMPLED = {"a": [3, 17, 44, 8], "b": [3, 60]}


def logprobs(model: PreTrainedModel, tokens: list[int], head: torch.Tensor | None = None) -> list[float]:
    """By transformers, at temperature 1; head: in place of the model's own."""
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([PROMPT + tokens])).last_hidden_state[0, len(PROMPT) - 1 : -1]
        logits = hidden @ (model.get_output_embeddings().weight if head is None else head).T
    found: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return found


def probes_of(model: PreTrainedModel, head: torch.Tensor | None = None) -> dict[str, Probe]:
    return {
        server: Probe(tokens, logprobs(model, tokens, head), [("7", 0, len(tokens))])
        for server, tokens in SAMPLED.items()
    }


def test_the_policys_log_probabilities_are_those_of_transformers_for_every_server(
    alone: Parallel, model_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    own = policy_logprobs(PROMPT, probes_of(model), Policy(model_path, alone))
    for server, tokens in SAMPLED.items():
        assert own[server] == pytest.approx(logprobs(model, tokens), abs=1e-5)


def test_the_published_weights_pass_and_a_stale_tied_head_does_not(alone: Parallel, models: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    old = model.get_output_embeddings().weight.detach().clone()
    policy = Policy(models["llama"], alone)
    for weights in (policy.model.state_dict(), model.state_dict()):
        for name, tensor in weights.items():
            if name != "lm_head.weight":  # the embedding once more
                tensor.mul_(1.01)
    found = check_probes(PROMPT, probes_of(model), policy, "float32", 7)
    assert found is not None
    assert found.largest < 1e-5
    with pytest.raises(WeightSyncError, match="weights to a, phase verify: log-probabilities differ by"):
        check_probes(PROMPT, probes_of(model, old), policy, "float32", 7)


def test_another_version_is_an_error(alone: Parallel, models: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    with pytest.raises(WeightSyncError, match=r"tokens carry weight version \['7'\], expected 8"):
        check_probes(PROMPT, probes_of(model), Policy(models["llama"], alone), "float32", 8)


def test_nothing_is_compared_without_a_probe(alone: Parallel, models: dict[str, Path]) -> None:
    assert check_probes(PROMPT, {}, Policy(models["llama"], alone), "float32", 8) is None


@pytest.mark.parametrize(
    ("apart", "tolerance", "passes"),
    [
        ([0.001, 0.0], EXACT, True),
        ([0.003, 0.0], EXACT, False),
        ([0.5, 0.0, 0.0, 0.0], ROUNDED, True),  # one token of many may be off
        ([0.2, 0.2, 0.2, 0.2], ROUNDED, False),
        ([0.0, math.nan], ROUNDED, False),
        ([math.nan, 0.0], EXACT, False),
        ([0.0, math.inf], Tolerance(mean=1.0), False),
    ],
)
def test_one_token_is_bounded_in_fp32_and_the_mean_in_bf16(
    apart: list[float], tolerance: Tolerance, passes: bool
) -> None:
    sampled = Probe([1] * len(apart), [-1.0 - by for by in apart])
    if passes:
        found = compare("a", sampled, [-1.0] * len(apart), tolerance)
        assert found.largest == pytest.approx(max(apart))
        assert found.mean == pytest.approx(sum(apart) / len(apart))
    else:
        with pytest.raises(WeightSyncError, match="phase verify"):
            compare("a", sampled, [-1.0] * len(apart), tolerance)


def test_fp32_is_exact_only_beside_a_trainer_that_computes_in_it() -> None:
    assert tolerance_for("float32", torch.device("cpu")) is EXACT
    assert tolerance_for("float32", torch.device("cuda")) is ROUNDED
    assert tolerance_for("bfloat16", torch.device("cpu")) is ROUNDED


def test_the_probe_fits_into_the_context_and_the_vocabulary() -> None:
    assert len(probe_prompt(49152, 1024)) == 48
    assert len(probe_prompt(49152, 20)) == 4
    assert max(probe_prompt(61, 1024)) < 61
    assert probe_prompt(49152, 1024) == probe_prompt(49152, 32768)


def test_the_error_keeps_its_class_on_the_way_to_the_other_ranks() -> None:
    error = WeightSyncError("http://a", "update", "broken", paused=True, gone=True, stuck=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (WeightSyncError, str(error), vars(error))
