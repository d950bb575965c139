"""The trainer's benchmark: what its columns say, by hand, and that what it compares is the same computation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from benchmarks import trainer as benchmark
from benchmarks.loops import trainer_config
from benchmarks.workload import (
    SHAPES,
    Lengths,
    draw_lengths,
    make_groups,
    padded_batches,
    padded_share,
    useful,
)
from trainer.parallel import distributed
from trainer.step import prepare

ROOT = Path(__file__).resolve().parents[2]


def test_padding_is_what_rows_lack_of_the_longest_in_their_batch() -> None:
    rows = [3, 5, 2, 8, 1]
    assert padded_batches(rows, 10) == [[0, 1], [2], [3], [4]]
    # 5 + 5, 2, 8, 1 positions for 3 + 5 + 2 + 8 + 1 tokens
    assert padded_share(rows, padded_batches(rows, 10)) == pytest.approx(1 - 19 / 21)
    assert padded_batches(rows, 10, fixed=2) == [[0, 1], [2, 3], [4]]
    assert padded_share(rows, [[0, 1], [2, 3], [4]]) == pytest.approx(1 - 19 / 27)
    assert padded_share(rows, padded_batches(rows, 10, fixed=1)) == 0


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert padded_batches([4, 12, 4], 8) == [[0], [1], [2]]


def test_useful_flops_by_hand() -> None:
    """Prompt of 3 with completions of 2 and 1: 3 + 1 positions, 6 + 4 pairs, 3 trained tokens."""
    lengths = [Lengths(3, (2, 1))]
    layout, trained = useful(lengths)
    assert (layout.total, trained) == (4, 3)
    config = SHAPES["tiny"]
    hidden, heads, width = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    block = hidden * width * (2 * heads + 2 * config["num_key_value_heads"]) + 3 * hidden * config["intermediate_size"]
    layers = config["num_hidden_layers"]
    forward = layers * (2 * block * 4 + 4 * heads * width * 10) + 2 * hidden * config["vocab_size"] * 3
    assert benchmark.useful_flops("tiny", lengths, backward=False) == forward
    assert benchmark.useful_flops("tiny", lengths, backward=True) == 3 * forward


def test_lengths_are_reproducible_within_the_context_and_heavy_tailed() -> None:
    drawn = draw_lengths(400, 8, 32_768, 5)
    assert drawn == draw_lengths(400, 8, 32_768, 5) != draw_lengths(400, 8, 32_768, 6)
    every = sorted(length for group in drawn for length in group.completions)
    assert all(300 <= group.prompt <= 1500 for group in drawn)
    assert all(group.prompt + max(group.completions) <= 32_768 for group in drawn)
    overlong = sum(group.prompt + length == 32_768 for group in drawn for length in group.completions)
    assert 0.01 < overlong / len(every) < 0.08
    median, mean = every[len(every) // 2], sum(every) / len(every)
    assert median == pytest.approx(0.25 * 32_768, rel=0.15)
    assert mean > 1.15 * median


def test_no_group_is_dropped_so_that_both_loops_train_on_all(tmp_path: Path) -> None:
    lengths = [*draw_lengths(20, 4, 256, 0), Lengths(56, (200, 200, 200, 9)), Lengths(56, (200, 10, 200, 9))]
    groups = make_groups(lengths, 256, 512, 0)
    config = trainer_config(tmp_path / "model", 256, 256, 88, 4)
    with distributed(60, "cpu") as parallel:
        batch = prepare(groups, config, parallel)
    assert batch.dropped == {}
    assert batch.tokens == sum(sum(group.completions) for group in lengths)


def test_the_published_shapes_have_the_published_sizes() -> None:
    sizes = {"Qwen3-0.6B": 0.596e9, "Qwen3-1.7B": 1.72e9, "Qwen3-4B": 4.02e9}
    for shape, size in sizes.items():
        with torch.device("meta"):
            counted = sum(weight.numel() for weight in benchmark._on_meta(shape).parameters())
        assert counted == pytest.approx(size, rel=0.01)
        assert Qwen3Config(**SHAPES[shape]).head_dim == 128


def test_the_command_finds_the_same_gradient_and_writes_what_it_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trainer.json"
    asked = ["--device", "cpu", "--shape", "tiny", "--context", "64", "--max-tokens", "128"]
    threads = torch.get_num_threads()
    try:
        assert benchmark.main([*asked, "--groups", "1", "--group-size", "4", "--rounds", "2", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert found["command"].endswith("--group-size 4 --rounds 2")
    assert 0 < found["gradient_error"] < benchmark.SAME
    [case] = found["cases"]
    [[prompt, completions]] = case["groups"]
    assert case["tokens"] == prompt + sum(completions) - 4
    assert set(case["loops"]) == set(benchmark.LOOPS)
    for name, loop in case["loops"].items():
        seconds = loop["seconds"]
        assert loop["outcome"] == "measured"
        assert loop["tokens_per_s"] == pytest.approx(case["tokens"] / seconds["step"])
        assert loop["trained_tokens_per_s"] == pytest.approx(sum(completions) / seconds["step"])
        flops = benchmark.useful_flops("tiny", [Lengths(prompt, tuple(completions))], backward=True)
        assert loop["mfu_gradient"] == pytest.approx(flops / seconds["gradient"] / found["full_rate_flops"])
        assert min(size for size in loop["peak_gib"].values()) > 0
        assert ("padding" in loop) == (name != "packed")
    for ratio in case["padded_over_packed"].values():
        assert len(ratio["by_round"]) == 2
        assert min(ratio["by_round"]) <= ratio["seconds"] <= max(ratio["by_round"])
    printed = capfd.readouterr().out
    assert "| tiny | 64 | packed | 0 % |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "Qwen3-5B"], "--shape Qwen3-5B: choose from tiny"),
        (["--loops", "fast"], "--loops fast: choose from packed"),
        (["--context", "128", "--max-tokens", "64"], "--max-tokens of at least as many"),
        (["--group-size", "1"], "--group-size: 2 or more"),
    ],
)
def test_a_wrong_option_is_one_message(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse(["--device", "cpu", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.slow  # seven seconds of imports for a mistake that can only come with a new file's name
def test_run_by_path_the_benchmark_is_not_taken_for_the_package(tmp_path: Path) -> None:
    """benchmarks/trainer.py has the name of the package that it measures; gpu_check imports both."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--device" in done.stdout
