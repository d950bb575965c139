"""GPU calls fit the installed torch and transformers; one that another version does not take is found without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_calls
from benchmarks.call_forms import misfits
from trainer.model import attention


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's imports
@pytest.mark.parametrize("name", gpu_calls.CHECKS)
def test_every_gpu_call_fits_the_installed_versions(name: str) -> None:
    gpu_calls.CHECKS[name]()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("from torch.nn.attention.varlen import varlen_attn as attend\nattend(1, 2, 3, 4, 5, 6, 7, gqa=True)", "'gqa'"),
        ("import torch.distributed as dist\ndist.new_group(backend='nccl', time=1)", "'time'"),
        ("import torch\ntorch.cuda.set_devices(0)", "set_devices"),
        ("def late():\n    from torch.distributed.fsdp import fully_shards\n    fully_shards(1)", "fully_shards"),
        ("import torch\ntorch.nn.Linear(4)", "out_features"),
    ],
)
def test_a_call_that_does_not_fit_is_named_with_its_line(tmp_path: Path, source: str, why: str) -> None:
    file = tmp_path / "calls.py"
    file.write_text(source + "\nimport torch\ntorch.cuda.set_device(0)\n")
    count, [found] = misfits([file], ["torch"])
    assert count == 2
    assert why in found.why
    assert found.place == f"calls.py:{source.count(chr(10)) + 1}"


def test_heads_that_the_operator_does_not_take_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that ended every varlen call on torch 2.11: here the other way round."""
    from torch.nn.attention import varlen

    real = varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, scale, window_size: real(*args, scale=scale))
    monkeypatch.setattr(attention, "_varlen_takes", lambda option: True)
    assert "enable_gqa" in gpu_calls.check_all()["varlen_forward"]
