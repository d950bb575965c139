"""Every call that only a GPU would make, checked without one: traced on fake CUDA tensors, or bound to its signature.

    python -m benchmarks.gpu_calls          # for the torch and transformers of the Python that runs it

Fake tensors have a device, a type and a shape but no memory, and run torch's own checks. Autograd needs a driver, so
backward passes are traced on fake CPU tensors, and the kernels' backward on fake CUDA ones by itself. With a CPU build
of torch whole models are traced on fake CPU tensors too, with the GPU's attention selected: the result says which.
What a kernel computes, and whether it is there at all, only a GPU shows: benchmarks/gpu_check.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:
    # Run by path, this folder would come first: its trainer.py would be taken for the package `trainer`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.call_forms import misfits
from benchmarks.workload import SHAPES, versions
from trainer.config import OptimizerConfig
from trainer.model import attention
from trainer.model.activation_checkpointing import recompute
from trainer.model.attention import varlen_attention
from trainer.model.layout import AttentionLayout, Span
from trainer.model.logprobs import token_logprobs
from trainer.optimizer import PolicyOptimizer

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = AttentionLayout((Span(0, 10, (5, 7, 1)), Span(23, 3, ())))
PLAN = LAYOUT.varlen(torch.device("cpu"))
HEADS, KEY_HEADS, WIDTH = 4, 2, 64
TRACED = "cuda" if torch.backends.cuda.is_built() else "cpu"
"""Where models are traced: Python's indexing asks for a CUDA device's guard, which a CPU build of torch lacks."""


class WrongCall(AssertionError):
    """A GPU call has another form, device, type or shape than it should."""


@contextmanager
def fake(device: str) -> Iterator[torch.device]:
    """Tensors of the block have no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device(device)


def expect(name: str, value: Tensor, device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises WrongCall unless the tensor is what it should be."""
    found = (value.device.type, value.dtype, tuple(value.shape))
    if found != (device, dtype, shape):
        raise WrongCall(f"{name}: {found}, expected {(device, dtype, shape)}")


def _heads(device: torch.device, *, grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    query, keys, values = (
        torch.empty(LAYOUT.total, heads, WIDTH, device=device, dtype=torch.bfloat16, requires_grad=grad)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, keys, values


def _layout() -> AttentionLayout:
    """LAYOUT without the index tensors of another block."""
    return AttentionLayout(LAYOUT.spans)


def varlen_forward() -> None:
    """The call on CUDA tensors, grouped heads included."""
    with fake(TRACED) as device, torch.no_grad():
        out = varlen_attention(*_heads(device, grad=False), _layout(), 0.1)
        expect("output", out, TRACED, torch.bfloat16, (LAYOUT.total, HEADS, WIDTH))


def varlen_backward() -> None:
    """Through autograd: what the operator keeps for its backward, and what that returns."""
    with fake("cpu") as device:
        inputs = _heads(device, grad=True)
        out = varlen_attention(*inputs, _layout(), 0.1)
        gradients = torch.autograd.grad(out, inputs, torch.empty_like(out))
        for name, gradient, heads in zip("qkv", gradients, (HEADS, KEY_HEADS, KEY_HEADS), strict=True):
            expect(f"gradient of {name}", gradient, "cpu", torch.bfloat16, (LAYOUT.total, heads, WIDTH))


def kernel_calls() -> None:
    """What torch's operator passes on to the flash-attention kernels, forward and backward."""
    from torch.nn.attention import varlen

    grouped = attention._varlen_takes("enable_gqa")
    with fake("cuda") as device, torch.no_grad():
        query = _heads(device, grad=False)[0]
        heads = KEY_HEADS if grouped else HEADS
        keys, values = (
            torch.empty(len(PLAN.key_index), heads, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(2)
        )
        cu = [torch.empty(len(PLAN.cu_q), dtype=torch.int32, device=device) for _ in range(2)]
        lengths = (*cu, PLAN.max_q, PLAN.max_k)
        forward = [query, keys, values, *lengths, True, 0.1, [-1, 0], *([True] if grouped else [])]
        out, lse, state = varlen._varlen_attn._init_fn(*forward)
        expect("kernel's output", out, "cuda", torch.bfloat16, (LAYOUT.total, HEADS, WIDTH))
        back = varlen._varlen_attn_backward._init_fn(
            out, query, keys, values, out, lse, *lengths, True, state, 0.1, [-1, 0]
        )
        for name, gradient, like in zip("qkv", back, (query, keys, values), strict=True):
            expect(f"kernel's gradient of {name}", gradient, "cuda", torch.bfloat16, tuple(like.shape))


def _model(device: torch.device) -> PreTrainedModel:
    with device, no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            Qwen3Config(**SHAPES["tiny"]), dtype=torch.bfloat16, attn_implementation=attention.NAME
        )
        model.eval()
        return model


def _hidden(model: PreTrainedModel, ids: Tensor, layout: AttentionLayout, **asked: bool) -> Tensor:
    out = model.base_model(input_ids=ids, position_ids=ids, use_cache=False, layout=layout, **asked)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def _asked() -> dict[str, Any]:
    """On CUDA a bf16 model takes varlen attention by itself, which is part of what is checked."""
    return {} if TRACED == "cuda" else {"varlen": True}


def policy_forward() -> None:
    """A whole model on CUDA in bf16: which attention it takes, its hidden states, chunked log-probabilities."""
    with fake(TRACED) as device, torch.no_grad():
        model, layout, asked = _model(device), _layout(), _asked()
        ids = torch.zeros(1, layout.total, dtype=torch.int64, device=device)
        hidden = model.base_model(
            input_ids=ids, position_ids=ids, use_cache=False, layout=layout, **asked
        ).last_hidden_state[0]
        expect("hidden states", hidden, TRACED, torch.bfloat16, (layout.total, SHAPES["tiny"]["hidden_size"]))
        head, temperature = model.get_output_embeddings().weight, torch.ones(layout.total, device=device)
        logprob, entropy = token_logprobs(hidden, head, ids[0], temperature, 7)
        expect("log-probabilities", logprob, TRACED, torch.float32, (layout.total,))
        expect("entropies", entropy, TRACED, torch.float32, (layout.total,))


def recomputed_backward() -> None:
    """Forward and backward of recomputed blocks around varlen attention, each mode."""
    for mode in ("full", "selective", "none"):
        with fake("cpu") as device:
            model = _model(device)
            blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
            for block in blocks:
                recompute(block, mode)
            ids = torch.zeros(1, LAYOUT.total, dtype=torch.int64)
            hidden = _hidden(model, ids, _layout(), varlen=True)
            head = model.get_output_embeddings().weight
            token_logprobs(hidden, head, ids[0], torch.ones(LAYOUT.total), 7)[0].sum().backward()
            missing = [name for name, weight in model.named_parameters() if weight.grad is None]
            if missing:
                raise WrongCall(f"{mode}: no gradient for {missing[:3]}")


def compiled_blocks() -> None:
    """Each block through torch.compile's front end, as the policy compiles it; the code for a GPU is not generated."""
    import torch._dynamo

    torch._dynamo.reset()
    with fake(TRACED) as device, torch.no_grad():
        model, layout, asked = _model(device), _layout(), _asked()
        for block in model.modules():
            if isinstance(block, GradientCheckpointingLayer):
                block.forward = torch.compile(block.forward, dynamic=True, backend="eager")
        ids = torch.zeros(1, layout.total, dtype=torch.int64, device=device)
        hidden = model.base_model(
            input_ids=ids, position_ids=ids, use_cache=False, layout=layout, **asked
        ).last_hidden_state[0]
        expect("hidden states", hidden, TRACED, torch.bfloat16, (layout.total, SHAPES["tiny"]["hidden_size"]))
    captured = torch._dynamo.utils.counters["stats"]["calls_captured"]
    torch._dynamo.reset()
    if not captured:
        raise WrongCall("torch.compile captured nothing")


def fused_adamw() -> None:
    """The optimizer's step on fp32 masters on CUDA, with the norm and its clipping."""
    with fake("cuda") as device:
        weights = torch.nn.Module()
        for name, shape in (("matrix", (8, 4)), ("vector", (4,))):
            # A gradient is set by hand: its check asks for a backward only where one is required.
            weights.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device=device)))
        with torch.no_grad():
            parameters = list(weights.parameters())
            optimizer = PolicyOptimizer(weights, OptimizerConfig())
            for weight in parameters:
                weight.grad = torch.empty_like(weight)
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
            expect("norm", norm, "cuda", torch.float32, ())
            torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
            optimizer.adamw.step()
            for weight in parameters:
                state = optimizer.adamw.state[weight]
                expect("first moment", state["exp_avg"], "cuda", torch.float32, tuple(weight.shape))
                expect("step", state["step"], "cuda", torch.float32, ())


def call_forms() -> None:
    """Names and arguments of every imported call: nccl groups, CUDA's functions, FSDP2, vLLM's transfer."""
    files = [*sorted((ROOT / "trainer").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
    files.remove(ROOT / "trainer" / "local_trackers.py")  # calls no GPU, and what it imports are extras
    count, found = misfits(files)
    if found or count < 100:
        raise WrongCall(f"{len(found)} of {count} calls do not fit: {'; '.join(map(str, found))}")


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        call_forms,
        varlen_forward,
        varlen_backward,
        kernel_calls,
        policy_forward,
        recomputed_backward,
        compiled_blocks,
        fused_adamw,
    )
}


def check_all() -> dict[str, str]:
    """Each check's outcome: "fits", or what is wrong."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check()
            found[name] = "fits"
        except Exception as error:  # whatever a torch of another version raises
            found[name] = f"{type(error).__name__}: {error}"[:1000]
    return found


def main() -> int:
    """Print; exit code 1 when something does not fit."""
    found: dict[str, Any] = check_all()
    print(json.dumps({"versions": versions(), "models_traced_on": TRACED, "calls": found}, indent=1))
    return int(any(outcome != "fits" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
