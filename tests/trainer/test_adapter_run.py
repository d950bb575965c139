"""A run with an adapter as a user starts it: trained, exported at its end, and by the command in both ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from environments.launch.config import load_launch, parts
from environments.launch.demo import flags
from environments.launch.disk import disk_use
from environments.launch.serve_model import ServeConfig, serve_command
from tests.trainer.test_run import api_server, post_groups, start_trainer
from trainer.model.export_command import export


def test_a_run_with_an_adapter_ends_with_it_and_exports_it_in_both_ways(
    models: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(models["llama"], tmp_path / "model")
    (model / "tokenizer_config.json").write_text("{}")
    run = tmp_path / "run"
    with api_server(tmp_path) as url:
        post_groups(url, model, 0, 4)
        options = ("--adapter.rank", "4", "--checkpoint.export", "true", "--steps", "2", "--api.batch_deadline_s", "60")
        trainer = start_trainer(url, model, run, *options, ranks=1)
        errors = trainer.communicate(timeout=200)[1]
    assert trainer.returncode == 0, errors
    at_the_end = load_file(run / "export" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in at_the_end.items() if "lora_B" in name)

    alone, step = export(run, "latest", tmp_path / "alone", adapter=True)
    assert step == 2
    written = load_file(alone / "adapter_model.safetensors")
    assert written.keys() == at_the_end.keys()
    assert all(tensor.equal(at_the_end[name]) for name, tensor in written.items())

    merged, _ = export(run, "latest", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, alone).merge_and_unload().state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_one_file_tells_trainer_and_server_of_the_adapter(smollm2: Path, tmp_path: Path) -> None:
    words = ["--model", str(smollm2), "--problems", "warmup:train", "--run_dir", str(tmp_path)]
    config = load_launch([*words, "--trainer.adapter.rank", "24"])
    found = parts(config, "http://127.0.0.1:1", ["http://127.0.0.1:2"])
    assert found.trainer.adapter.rank == 24
    assert found.server is not None
    command, env = serve_command(found.server)
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert command[command.index("--lora-modules") + 1].startswith("policy-adapter=")
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in serve_command(ServeConfig(model=smollm2))[0]
    # q, o: 576 + 576; k, v: 576 + 192; gate, up, down: 576 + 1536; of 30 layers.
    numbers = 24 * 30 * (2 * 1152 + 2 * 768 + 3 * 2112)
    use = disk_use(found.trainer)
    assert (use.checkpoint, use.export, use.exchange) == (12 * numbers, 4 * numbers, 2 * 4 * numbers)


def test_the_demo_hands_on_its_parts_options() -> None:
    nested = {"adapter": {"rank": 32, "targets": ["q_proj"]}, "compile": True, "model": "m"}
    expected = ["--adapter.rank", "32", "--adapter.targets", '["q_proj"]', "--compile", "true", "--model", "m"]
    assert flags(nested) == expected
