"""Bytes that a training step moves beside its matrix products, counted on shapes alone: nothing runs on a GPU.

    python -m benchmarks.bytes_moved [--out FILE.json]

For Qwen3 models with a full pack of one sequence: what one block's forward and backward read and write by class of
operator under each kind of recomputation, the elementwise parts one by one beside what one fused kernel for each would
move (its inputs and outputs, once), and log-probabilities by chunk size. Every operator is taken to read its inputs and
write its outputs once, which is what eager kernels do; those that pass over their input more often are in INSIDE.

The bound is an estimate: useful operations over the H100's peak, against all operations at the peak and all bytes
beside products and attention at its full memory bandwidth, one after the other. A real step is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PretrainedConfig
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from trainer.config import Recompute
from trainer.model.activation_checkpointing import recompute
from trainer.model.layout import AttentionLayout
from trainer.model.logprobs import token_logprobs
from trainer.planning.flops import GPUS, attended_pairs, flops
from trainer.planning.shapes import SHAPES
from trainer.planning.timeline import full_layout
from trainer.planning.trace import block_trace, one_block, tail_trace

MODELS = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B")
CONTEXTS = (8192, 32_768)
CHUNKS = (256, 512, 1024, 2048, 4096)
MODES: tuple[Recompute, ...] = ("full", "selective", "none")
BANDWIDTH = 3.35e12
"""Bytes a second of an H100 SXM's memory (NVIDIA's data sheet)."""
PEAK = GPUS["h100"].bf16_flops
DTYPE = torch.bfloat16
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
INDEXING = ("index", "index_put", "index_add", "gather", "scatter", "cat", "clone", "copy_", "slice_backward", "stack")
INSIDE = {"logsumexp": 20}
"""Bytes for each fp32 entry beyond one read: logsumexp reads for the maximum, subtracts into a copy, exponentiates it
in place and sums it (torch's ReduceOps.cpp)."""
WRITE_ONLY = ("zero_", "fill_", "zeros", "ones", "full", "zeros_like", "ones_like", "new_zeros", "scalar_tensor")
PICKED = ("gather", "index", "index_select")
"""Of their input they read what they give."""


class MovedBytes(TorchDispatchMode):
    """Inside of it, `moved` sums the bytes that operators read and write, by class; views are free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = str(operator).split(".")[1]
        others = [value for key, value in (kwargs or {}).items() if key != "out"]
        given = [value for value in tree_leaves((args, others)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        mutable = operator._schema.is_mutable
        if not made or name.startswith(("empty", "new_empty")) or (not mutable and _shares(given, made)):
            return result
        size = sum(map(_bytes, _read(name, given, made))) + sum(map(_bytes, made))
        if name.startswith("scatter"):  # reads and writes no more of the tensor than there are indices
            size = _bytes(given[1]) + 2 * _bytes(given[-1])
        self.moved[_kind(name)] += size + sum(INSIDE.get(name, 0) * one.numel() for one in given)
        return result

    @property
    def beside(self) -> int:
        """Bytes of everything but products and attention."""
        return sum(size for kind, size in self.moved.items() if kind not in ("products", "attention"))


def _read(name: str, given: list[Tensor], made: list[Tensor]) -> list[Tensor]:
    if name in WRITE_ONLY:
        return []
    if name in PICKED:
        return [*given[1:], *made]
    return given[1:] if name == "copy_" else given


def _shares(given: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    storages = {value.untyped_storage()._cdata for value in given}
    return bool(made) and all(value.untyped_storage()._cdata in storages for value in made)


def _bytes(tensor: Tensor) -> int:
    # An expanded tensor is read from fewer bytes than it has entries.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _kind(name: str) -> str:
    if "attn" in name or "attention" in name:
        return "attention"
    if name in PRODUCTS:
        return "products"
    if name == "_to_copy":
        return "casts"
    return "indexing and copies" if name.startswith(INDEXING) else "elementwise and reductions"


def moved(run: Callable[..., Tensor], *shapes: tuple[int, ...]) -> dict[str, int]:
    """Bytes of a function of fresh tensors, forward and backward, and of a fused kernel for each: called on fakes."""
    given = [torch.empty(shape, dtype=DTYPE, requires_grad=True) for shape in shapes]
    with MovedBytes() as forward:
        out = run(*given)
    grad = torch.empty_like(out)
    with MovedBytes() as backward:
        out.backward(grad)
    inputs, output = sum(map(_bytes, given)), _bytes(out)
    return {
        "forward": forward.beside,
        "backward": backward.beside,
        "fused_forward": inputs + output,
        "fused_backward": 2 * inputs + output,  # inputs and the output's gradient in, the inputs' gradients out
    }


def block(config: PretrainedConfig, layout: AttentionLayout, mode: Recompute) -> dict[str, Counter[str]]:
    """Bytes of a block's forward and backward by class."""
    with _fake_block(config) as model:
        [one] = [part for part in model.modules() if type(part).__name__.endswith("DecoderLayer")]
        recompute(one, mode)
        rotary = _rotary(model, layout)
        hidden = torch.empty(1, layout.total, config.hidden_size, dtype=DTYPE, requires_grad=True)
        with MovedBytes() as forward:
            out = one(hidden, attention_mask=None, position_embeddings=rotary, layout=layout, varlen=True)
        out = out[0] if isinstance(out, tuple) else out
        grad = torch.empty_like(out)
        with MovedBytes() as backward:
            out.backward(grad)
    return {"forward": forward.moved, "backward": backward.moved}


def parts(config: PretrainedConfig, layout: AttentionLayout) -> dict[str, dict[str, int]]:
    """The elementwise parts of a block, each with how often it comes (`times`)."""
    tokens, width, head = layout.total, config.hidden_size, config.head_dim
    queries, keys = (1, tokens, config.num_attention_heads, head), (1, tokens, config.num_key_value_heads, head)
    with _fake_block(config) as model:
        [one] = [part for part in model.modules() if type(part).__name__.endswith("DecoderLayer")]
        cos, sin = _rotary(model, layout)

        def rope(of: Tensor) -> Tensor:
            turned: Tensor = apply_rotary_pos_emb(of.transpose(1, 2), of.transpose(1, 2)[:, :0], cos, sin)[0]
            return turned

        found = {
            "RMSNorm of the hidden state": (2, moved(one.input_layernorm, (1, tokens, width))),
            "RMSNorm of queries": (1, moved(one.self_attn.q_norm, queries)),
            "RMSNorm of keys": (1, moved(one.self_attn.k_norm, keys)),
            "rotary positions of queries": (1, moved(rope, queries)),
            "rotary positions of keys": (1, moved(rope, keys)),
            "SiLU times up": (
                1,
                moved(lambda gate, up: one.mlp.act_fn(gate) * up, *2 * [(1, tokens, config.intermediate_size)]),
            ),
            "residual": (2, moved(lambda before, added: before + added, *2 * [(1, tokens, width)])),
        }
    return {name: {"times": times, **sizes} for name, (times, sizes) in found.items()}


def tail(config: PretrainedConfig, trained: int, chunk: int) -> dict[str, int]:
    """Bytes of log-probabilities, all classes and those beside products: without gradient, forward, backward."""
    with torch.device("meta"):
        hidden = nn.Parameter(torch.empty(trained, config.hidden_size, dtype=DTYPE))
        head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, dtype=DTYPE))
        target, warm = torch.empty(trained, dtype=torch.int64), torch.empty(trained)
        with torch.no_grad(), MovedBytes() as old:
            token_logprobs(hidden, head, target, warm, chunk, entropy=False)
        with MovedBytes() as forward:
            logprob = token_logprobs(hidden, head, target, warm, chunk)[0]
        grad = torch.empty_like(logprob)
        with MovedBytes() as backward:
            logprob.backward(grad)
    phases = {"old": old, "forward": forward, "backward": backward}
    return {name: phase.beside for name, phase in phases.items()} | {
        f"{name}_products": phase.moved["products"] for name, phase in phases.items()
    }


def _fake_block(config: PretrainedConfig) -> Any:
    return one_block(config.to_json_string(use_diff=False), DTYPE, FakeTensorMode(allow_non_fake_inputs=True))


def _rotary(model: Any, layout: AttentionLayout) -> tuple[Tensor, Tensor]:
    cos, sin = model.base_model.rotary_emb(torch.empty(1, dtype=DTYPE), torch.zeros(1, layout.total, dtype=torch.int64))
    return cos, sin


def bound(model: PretrainedConfig, layout: AttentionLayout, trained: int, beside: float, *, again: bool) -> float:
    """Highest MFU of forward and backward when so many bytes move beside products and attention; an estimate."""
    counts = (layout.total, attended_pairs(layout), trained)
    useful = flops(model, *counts, backward=True)
    done = flops(model, *counts, backward=True, recompute=again)
    return useful / PEAK / (done / PEAK + beside / BANDWIDTH)


def counted(name: str, context: int) -> dict[str, Any]:
    """Everything of one model at one length; bytes in GB, for a pack."""
    config = AutoConfig.for_model("qwen3", **SHAPES[name])
    layout = full_layout(context, context)
    trained = layout.total - sum(span.prompt for span in layout.spans)
    layout.varlen(torch.device("cpu"))
    layers, elementwise = config.num_hidden_layers, parts(config, layout)
    tails = {chunk: tail(config, trained, chunk) for chunk in CHUNKS}
    logits = tails[1024]["forward"] + tails[1024]["backward"]
    saved = sum(
        one["times"] * (one["forward"] - one["fused_forward"] + one["backward"] - one["fused_backward"])
        for one in elementwise.values()
    )
    forward_saved = sum(one["times"] * (one["forward"] - one["fused_forward"]) for one in elementwise.values())
    row: dict[str, Any] = {"model": name, "tokens": layout.total, "parts": elementwise, "log-probabilities": {}}
    for chunk, sizes in tails.items():
        held = tail_trace(config, layout.total, trained, DTYPE, chunk)
        row["log-probabilities"][chunk] = {
            **{phase: round(size / 1e9, 2) for phase, size in sizes.items()},
            "peak_gib": round(max(held.forward, held.backward) / 2**30, 2),
        }
    row["blocks"] = {}
    for mode in MODES:
        by_phase = block(config, layout, mode)
        beside = sum(
            size for phase in by_phase.values() for kind, size in phase.items() if kind not in ("products", "attention")
        )
        less = saved + (forward_saved if mode != "none" else 0)
        again = mode == "full"
        row["blocks"][mode] = {
            **{phase: {kind: round(size / 1e9, 2) for kind, size in sorted(found.items())}
               for phase, found in by_phase.items()},
            "kept_gib": round(block_trace(config, layout, DTYPE, mode, varlen=True).kept * layers / 2**30, 2),
            "gb_beside_of_all_blocks": round(beside * layers / 1e9, 1),
            "gb_beside_fused": round((beside - less) * layers / 1e9, 1),
            "mfu_bound": round(bound(config, layout, trained, beside * layers + logits, again=again), 3),
            "mfu_bound_fused": round(bound(config, layout, trained, (beside - less) * layers + logits, again=again), 3),
        }  # fmt: skip
    row["entries of logits"] = trained * prod((config.vocab_size,))
    return row


def main() -> None:
    """Count, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = []
    for name in MODELS:
        for context in CONTEXTS:
            rows.append(counted(name, context))
            modes = rows[-1]["blocks"]
            print(
                f"{name}, {context}: "
                + "; ".join(
                    f"{mode}: {one['gb_beside_of_all_blocks']} GB in blocks (fused {one['gb_beside_fused']}), bound of "
                    f"MFU {one['mfu_bound']} (fused {one['mfu_bound_fused']}), {one['kept_gib']} GiB kept"
                    for mode, one in modes.items()
                )
                + f"; log-probabilities {rows[-1]['log-probabilities'][1024]}",
                flush=True,
            )
    result = {
        "what": "counted on shapes, nothing ran on a GPU; bounds are estimates for an H100 SXM",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "torch": torch.__version__,
        "peak_flops": PEAK,
        "bandwidth": BANDWIDTH,
        "rows": rows,
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
