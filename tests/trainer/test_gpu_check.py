"""The GPU check: without a GPU the same code runs and claims nothing about one; a section that fails is said."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_sections, gpu_speed
from benchmarks.gpu_harness import Check, Failed, hold
from benchmarks.kernel_time import kernel_class
from trainer.model.attention import grouped_attention
from trainer.model.layout import AttentionLayout

QUICK = "attention,leak,documents,transformers,chunked,one_rank,moments,turns"
"""What takes a second or two on one core."""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """A CPU with the tiny model."""
    made = Check(torch.device("cpu"), tmp_path, ["tiny"], [256], 320)
    with made.opened:
        yield made


def test_on_a_cpu_the_sections_pass_and_no_gpu_path_counts_as_checked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu_check.json"
    asked = ["--device", "cpu", "--only", f"{QUICK},speed", "--skip", "speed", "--context", "256"]
    assert gpu_check.main([*asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())["sections"]
    assert set(found) == {*QUICK.split(","), "speed"}
    assert {row["status"] for name, row in found.items() if name != "speed"} == {"passed"}
    assert found["speed"]["status"] == "not run"
    assert {row["on_gpu"] for row in found.values()} == {"not run"}
    assert "| leak | passed | documents of a pack under varlen attention | not run |" in capfd.readouterr().out


def test_a_leak_fails_the_leak_section(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(query: Any, key: Any, value: Any, layout: AttentionLayout, scale: float) -> Any:
        out = grouped_attention(query, key, value, layout, scale)
        return out + 0.2 * value[-1].repeat_interleave(2, dim=0)  # the last position is another document's

    monkeypatch.setattr(gpu_sections, "grouped_attention", leaking)
    with pytest.raises(Failed, match="a leak into the output is"):
        gpu_sections.leak(check)


def test_attention_that_misses_its_prompt_fails_the_leak_section(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaks where nothing is seen: the section has to notice that too."""
    monkeypatch.setattr(
        gpu_sections, "grouped_attention", lambda query, key, value, *_: query + (key + value).repeat(1, 2, 1)
    )
    with pytest.raises(Failed, match="own prompt changed: this section sees no leak"):
        gpu_sections.leak(check)


def test_an_error_ends_its_own_section_only(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Check) -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def too_far(_: Check) -> dict[str, Any]:
        return {"value": hold("the value", float("nan"), 0.1)}

    rows = [gpu_check.Section(name, do, "path") for name, do in (("broken", broken), ("too_far", too_far))]
    rows.append(gpu_check.Section("attention", gpu_sections.attention_values, "path"))
    found = gpu_check.run(check, rows, [])
    assert [row["status"] for row in found.values()] == ["failed", "failed", "passed"]
    assert found["broken"]["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found["too_far"]["why"] == "the value is nan, more than 0.1"


def test_what_does_not_fit_into_the_time_is_named_and_the_rows_so_far_are_kept(check: Check) -> None:
    rows = [gpu_check.Section(name, lambda _: {}, "path", least) for name, least in (("short", 0), ("long", 60))]
    check.deadline = time.monotonic() + 30
    kept: list[list[str]] = []
    found = gpu_check.run(check, rows, [], lambda so_far: kept.append(list(so_far)))
    assert {name: row["status"] for name, row in found.items()} == {"short": "passed", "long": "not run"}
    assert found["long"]["why"] == "left out for time: --minutes"
    assert kept == [["short"], ["short", "long"]]
    check.deadline = time.monotonic() - 1
    result: dict[str, Any] = {}
    assert list(gpu_speed.within_time(check, [("a", 1), ("b", 2)], result)) == []
    assert result == {gpu_speed.LEFT_OUT: ["a, 1", "b, 2"]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flash_fwd_kernel<cutlass::bfloat16_t, 128>", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_TNN", "matmul"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, BFloat16>", "elementwise"),
        ("ncclDevKernel_AllGather_RING_LL", "collectives"),
        ("Memcpy DtoD (Device -> Device)", "memory"),
        ("aten::mm", "matmul"),
        ("something_new", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert kernel_class(name) == kind


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about its own parts
@pytest.mark.slow  # two minutes: three recomputation modes, and the packs of the memory section
def test_the_longer_sections_pass_on_a_cpu(check: Check) -> None:
    peaks = {mode: row["peak_gib"] for mode, row in gpu_sections.recomputation(check).items()}
    assert peaks["full"] < peaks["selective"] < peaks["none"]
    check.contexts, check.longest = [1024], 1280
    assert gpu_speed.memory(check)["largest error"] <= 0.2
    row = gpu_speed.speed(check)["tiny, 1024"]
    assert row["outcome"] == "measured"
    assert row["floor_s"] < row["step_s"]
    assert 0.99 < sum(row["share"].values()) < 1.01
    assert {"matmul", "elementwise", "gaps"} <= row["share"].keys()
    assert gpu_speed.packed_against_padded(check)["padded"]["seconds"] > 0
    assert {"full", "selective", "full, compiled"} <= gpu_speed.recomputation_speed(check).keys()


@pytest.mark.slow  # minutes, and only where there is a GPU
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: every GPU path stays 'not run'")
def test_every_gpu_path_on_this_machines_gpu(tmp_path: Path) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "gpu_check.json")]) == 0


def test_a_missing_package_is_named_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu_check.PACKAGES, "no_such_module", "no-such-package")
    assert gpu_check.main(["--device", "cpu"]) == 2
    assert "gpu_check needs no-such-package: pip install no-such-package" in capsys.readouterr().err
