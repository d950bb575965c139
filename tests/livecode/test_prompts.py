"""Prompts: LiveCodeBench's bytes, the model's template, few-shot turns, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from environments.livecode.config import LivecodeEnvConfig
from environments.livecode.generation.completions import SamplingParams
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.prompts import (
    SYSTEM,
    FileTurn,
    PromptBuilder,
    PromptError,
    PromptTooLong,
    messages,
    nouscoder_message,
    plain_message,
    prompt_builder,
    read_turns,
    user_message,
)

STDIN = Problem(id="s", source="t", kind="stdin", statement="Add one.", tests=[TestCase(input="1\n", output="2\n")])
CALL = Problem(
    id="c",
    source="t",
    kind="function",
    fn_name="f",
    statement="Add one.",
    starter_code="class Solution:\n    def f(self, n):\n        ",
    tests=[TestCase(input="1", output="2")],
)
TURN = FileTurn("Print 3.", "", "```python\nprint(3)\n```")


def test_the_system_message_is_livecodebenchs() -> None:
    assert SYSTEM == (
        "You are an expert Python programmer. You will be given a question (problem specification) and will generate "
        "a correct Python program that matches the specification and passes all tests."
    )


def test_the_stdin_message_is_livecodebenchs_byte_for_byte() -> None:
    assert user_message("Q") == (
        "### Question:\nQ\n\n### Format: Read the inputs from stdin solve the problem and write the answer to stdout "
        "(do not directly test on the sample inputs). Enclose your code within delimiters as follows. Ensure that "
        "when the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT.\n"
        "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )


def test_the_functional_message_is_livecodebenchs_byte_for_byte() -> None:
    assert user_message("Q", "def f():\n    ") == (
        "### Question:\nQ\n\n### Format: You will use the following starter code to write the solution to the problem "
        "and enclose your code within delimiters.\n```python\ndef f():\n    \n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


@pytest.mark.parametrize("ask", [user_message, nouscoder_message, plain_message])
def test_a_function_without_starter_code_is_named_and_not_read_from_stdin(ask: Any) -> None:
    assert "function `f`" in ask("Q", "", "f").replace("function named", "function")
    assert "Read the inputs from stdin" not in ask("Q", "", "f")
    assert ask("Q", "def f():\n", "f") == ask("Q", "def f():\n")
    bare = CALL.model_copy(update={"starter_code": ""})
    assert messages(bare)[-1]["content"] == user_message("Add one.", "", "f")


def test_the_standard_style_is_system_and_one_user_message() -> None:
    assert messages(STDIN) == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": user_message("Add one.")},
    ]


def test_the_nouscoder_prompt_byte_for_byte() -> None:
    # Atropos, environments/code_execution_server/coding_server.py, get_prompt
    assert nouscoder_message("Add one.") == (
        "Question: Add one.\n\n"
        "Read the inputs from stdin, solve the problem, and write the answer to stdout (do not directly test on the "
        "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs it "
        "reads the inputs runs the algorithm and writes output to STDOUT.\n"
        "```python\n# YOUR CODE HERE\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    assert nouscoder_message("Add one.", "def f(n):\n", "f") == (
        "Question: Add one.\n\n"
        "You will use the following starter code to write the solution to the problem and enclose your code within "
        "delimiters.\n"
        "```python\ndef f(n):\n\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    assert messages(STDIN, (), "nouscoder")[0] == {"role": "system", "content": SYSTEM}


def test_an_answer_may_take_what_its_prompt_leaves(tokenizer: Any) -> None:
    size = len(PromptBuilder(tokenizer, limit=4000)(STDIN).ids)
    config = LivecodeEnvConfig(context=size + 33, max_new_tokens=None)
    builder = prompt_builder(config, tokenizer)
    prompt = builder(STDIN)
    assert prompt.room == 1
    assert SamplingParams(None, 1.0).within(prompt.room).as_json()["max_tokens"] == 1
    longer = STDIN.model_copy(update={"id": "longer", "statement": STDIN.statement + " Add one."})
    with pytest.raises(PromptTooLong, match=rf"room is {size} \(env.context - 33\). Raise env.context.$"):
        builder(longer)
    fixed = prompt_builder(LivecodeEnvConfig(context=4096, max_new_tokens=100), tokenizer)(STDIN)
    assert fixed.room is None
    assert SamplingParams(100, 1.0).within(fixed.room).max_new_tokens == 100


def test_the_style_of_the_options_is_the_style_of_the_prompt(tokenizer: Any) -> None:
    for style, ask in (("nouscoder", nouscoder_message), ("livecodebench", user_message)):
        builder = prompt_builder(LivecodeEnvConfig(prompt_style=style), tokenizer)
        assert builder(STDIN).messages[-1]["content"] == ask(STDIN.statement)


def test_fewshot_turns_stand_before_the_question_in_the_same_scaffold() -> None:
    assert messages(CALL, [TURN], "plain") == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Print 3."},
        {"role": "assistant", "content": "```python\nprint(3)\n```"},
        {"role": "user", "content": plain_message(CALL.statement, CALL.starter_code)},
    ]


def test_a_prompt_is_ids_of_the_models_template(tokenizer: Any) -> None:
    prompt = PromptBuilder(tokenizer, limit=4000)(STDIN)
    assert all(type(token) is int for token in prompt.ids)
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert prompt.text.endswith("\n\n<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_with_the_switch_gets_thinking(tokenizer: Any) -> None:
    knows = copy.deepcopy(tokenizer)
    knows.chat_template += "{% if enable_thinking %}<think>\n{% endif %}"
    on = PromptBuilder(knows, thinking=True, limit=4000)(STDIN)
    off = PromptBuilder(knows, thinking=False, limit=4000)(STDIN)
    assert on.text == off.text + "<think>\n"
    assert (on.reasoning_open, off.reasoning_open) == (True, False)


def test_thinking_is_refused_where_the_template_has_no_switch(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match=r"env.thinking = True.*no enable_thinking"):
        PromptBuilder(tokenizer, thinking=True, limit=4000)


def test_prompts_that_leave_no_room_are_left_out_and_refused_where_nothing_is_left(tokenizer: Any) -> None:
    long = STDIN.model_copy(update={"id": "long-one", "statement": "x" * 500})
    room = len(PromptBuilder(tokenizer, limit=4000)(STDIN).ids)
    builder = PromptBuilder(tokenizer, limit=room)
    assert len(builder(STDIN).ids) == room
    fit, refused = builder.fitting([STDIN, long])
    assert fit == [STDIN]
    assert [(error.problem.id, error.limit) for error in refused] == [("long-one", room)]
    assert refused[0].tokens == len(PromptBuilder(tokenizer, limit=4000)(long).ids)
    with pytest.raises(PromptError, match=rf"no problem is left:\n  problem long-one: .* tokens, room is {room}"):
        builder.fitting([long])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "TemplateError: System role not supported"),
        ("{% for message in messages %}{{ message['content'] }}", "TemplateSyntaxError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ missing.attribute }}", "UndefinedError"),
    ],
)
def test_a_chat_template_that_fails_is_an_error_that_names_it(tokenizer: Any, template: str, said: str) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(PromptError, match=rf"chat template fails .*problem s \(roles: system, user\).*{said}"):
        PromptBuilder(broken, limit=4000).fitting([STDIN])


def test_turns_with_half_an_emoji_can_be_encoded(tmp_path: Path) -> None:
    path = tmp_path / "turns.json"
    path.write_text('[{"question": "A\\ud83d", "answer": "\\ude00b \\ud83d\\ude00"}]')
    assert read_turns(path) == [FileTurn("A\ufffd", "", "\ufffdb \U0001f600")]


def test_turns_come_from_a_file_in_either_spelling(tmp_path: Path) -> None:
    path = tmp_path / "turns.json"
    path.write_text(json.dumps([{"question_content": "A", "answer": "a"}, {"question": "B", "answer": "b"}]))
    assert read_turns(path) == [FileTurn("A", "", "a"), FileTurn("B", "", "b")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not JSON"), ('[{"question": "A"}]', "entry 0 has no question or no answer"), (None, "cannot be read")],
)
def test_a_broken_file_of_turns_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "turns.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PromptError, match=rf"fewshot_path = .*turns.json.*{reason}"):
        read_turns(path)
