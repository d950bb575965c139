"""What bf16 does to a sequence's ratio after one small optimizer step, and which part of fp32 fixes it. On a CPU.

    python -m benchmarks.ratio_noise --model models/SmolLM2-135M-Instruct [--lr 1e-6] [--sequences 16] [--tokens 256]

One AdamW step of fp32 masters on a mixed batch; log s = mean over a sequence's tokens of new - old log-probability,
before and after it, in fp32 and in bf16 with parts of the computation in fp32. `--masters trained` spreads the weights
evenly over the interval that rounds to the same bf16 number, as many small updates do; `stored` leaves them where the
file has them, which is a number of few digits in a bf16 or a dequantised checkpoint. Reported for each: the noise,
which is the root mean square over sequences of (its log s - fp32's), beside that of fp32's own log s, and their
correlation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path, this folder would come first: its trainer.py would be taken for the package `trainer`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.workload import command, machine, versions


def half(model: PreTrainedModel) -> PreTrainedModel:
    """Weights and activations in bf16, as under FSDP's param_dtype."""
    copied = deepcopy(model)
    nn.Module.to(copied, torch.bfloat16)
    return copied


def _hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return hidden


def _picked(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]


def all_half(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits rounded to bf16, softmax in fp32."""
    return _picked(_hidden(low, ids) @ low.get_output_embeddings().weight.T, ids)


def half_softmax(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """The softmax in bf16 as well."""
    logits = _hidden(low, ids) @ low.get_output_embeddings().weight.T
    return torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0].float()


def fp32_logits(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """The head's bf16 weights, its product and the logits in fp32."""
    return _picked(_hidden(low, ids).float() @ low.get_output_embeddings().weight.float().T, ids)


def fp32_head(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """The head's fp32 master weights, its product and the logits in fp32."""
    return _picked(_hidden(low, ids).float() @ master.get_output_embeddings().weight.T, ids)


def fp32_activations(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """Only the weights are rounded to bf16; everything is computed in fp32."""
    rounded = deepcopy(low).float()
    return _picked(_hidden(rounded, ids) @ rounded.get_output_embeddings().weight.T, ids)


def fp32(master: PreTrainedModel, low: PreTrainedModel, ids: Tensor) -> Tensor:
    """The reference."""
    return _picked(_hidden(master, ids) @ master.get_output_embeddings().weight.T, ids)


WAYS: dict[str, Callable[[PreTrainedModel, PreTrainedModel, Tensor], Tensor]] = {
    way.__name__: way for way in (fp32, all_half, half_softmax, fp32_logits, fp32_head, fp32_activations)
}


@torch.no_grad()
def spread(model: PreTrainedModel) -> None:
    """Moves each weight by a random part of its bf16 rounding interval."""
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        rounded = weight.bfloat16().float()
        unit = torch.ldexp(torch.ones_like(weight), torch.frexp(rounded).exponent - 8)
        weight.copy_(rounded + unit * (torch.rand(weight.shape, generator=draw) - 0.5))


def batch_of(model: Path, sequences: int, tokens: int, text: Path) -> Tensor:
    """[sequences, tokens] ids of real text, cut where it comes."""
    ids = AutoTokenizer.from_pretrained(model)(text.read_text(encoding="utf-8"))["input_ids"]
    if len(ids) < sequences * tokens:
        raise SystemExit(f"--text {text}: {len(ids)} tokens, {sequences * tokens} needed: give a longer one")
    return torch.tensor(ids[: sequences * tokens]).view(sequences, tokens)


def logprobs(way: str, master: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of all tokens but the first, a few sequences at a time."""
    low = half(master)
    with torch.no_grad():
        return torch.cat([WAYS[way](master, low, part) for part in ids.split(4)])


def update(model: PreTrainedModel, ids: Tensor, lr: float) -> None:
    """One AdamW step on the on-policy gradient, sequences alternately good and bad."""
    model.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    for place, part in enumerate(ids.split(1)):
        advantage = 1.0 if place % 2 == 0 else -1.0
        (-advantage * fp32(model, model, part).mean() / len(ids)).backward()
    optimizer.step()
    model.requires_grad_(False)


def compare(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Noise, size and correlation of each way's log s [sequences] against fp32's."""
    exact = found["fp32"]
    rows = {}
    for way, own in found.items():
        both = torch.stack([own, exact])
        rows[way] = {
            "log_s_rms": float(own.square().mean().sqrt()),
            "noise_rms": float((own - exact).square().mean().sqrt()),
            "correlation": float(torch.corrcoef(both)[0, 1]),
        }
    return rows


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--masters", choices=["trained", "stored"], default="trained")
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    ids = batch_of(options.model, options.sequences, options.tokens, options.text)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().requires_grad_(False)
    if options.masters == "trained":
        spread(model)
    before = {way: logprobs(way, model, ids) for way in WAYS}
    alone = torch.cat([all_half(model, half(model), part) for part in ids.split(1)])
    rounded = [weight.bfloat16() for weight in model.parameters()]
    update(model, ids, options.lr)
    changed = sum(int((w.bfloat16() != old).sum()) for w, old in zip(model.parameters(), rounded, strict=True))
    after = {way: logprobs(way, model, ids) for way in WAYS}
    result: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "command": command("benchmarks.ratio_noise", arguments),
        "served_weights_changed": changed / sum(w.numel() for w in model.parameters()),
        "other_batch_before_update_rms": float((alone - before["all_half"]).mean(1).square().mean().sqrt()),
        "ways": compare({way: (after[way] - before[way]).double().mean(1) for way in WAYS}),
    }
    print("| computed in fp32 | log s, rms | noise, rms | correlation with fp32 |")
    print("|---|---|---|---|")
    for way, row in result["ways"].items():
        print(f"| {way} | {row['log_s_rms']:.2e} | {row['noise_rms']:.2e} | {row['correlation']:.3f} |")
    print(f"weights that change in bf16: {result['served_weights_changed']:.1%}")
    print(f"log s before any update, other batch: {result['other_batch_before_update_rms']:.2e}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
