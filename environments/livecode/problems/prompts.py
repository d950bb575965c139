"""Prompts as token ids: LiveCodeBench's standard format, with few-shot turns before it where asked for.

The strings are the benchmark's interface and stay byte for byte as they are
(LiveCodeBench, arXiv 2403.07974, generic chat format).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from environments.common.errors import ConfigError
from environments.common.http_clients import whole
from environments.livecode.problems.problem import Problem
from environments.livecode.problems.warmup import turns_for

if TYPE_CHECKING:
    from environments.livecode.config import LivecodeEnvConfig

SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will "
    "generate a correct Python program that matches the specification and passes all tests."
)
WITH_STARTER_CODE = (
    "You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters."
)
WITHOUT_STARTER_CODE = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on "
    "the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program "
    "runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
# Not LiveCodeBench's: all its functions come with starter code, those of TACO and PrimeIntellect do not.
FUNCTION_BY_NAME = (
    "You will write a Python function named `{name}` that takes the inputs as its arguments and returns the answer, "
    "and enclose your code within delimiters. The function is called directly: do not read from stdin."
)

# NousCoder's own, byte for byte too (Atropos' environments/code_execution_server/coding_server.py at commit 69d15a02).
NOUSCODER_WITHOUT_STARTER_CODE = (
    "Read the inputs from stdin, solve the problem, and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs it reads the "
    "inputs runs the algorithm and writes output to STDOUT."
)
RESERVE = 32
"""Tokens of the context that an answer leaves free where its length is what the prompt leaves: the recipe's number."""

Style = Literal["livecodebench", "nouscoder", "fewshot"]
Scaffold = Literal["livecodebench", "nouscoder", "plain"]
Message = dict[str, str]


class PromptError(ConfigError):
    """A prompt that cannot be made; the message names the problem or the file and the fix."""


class PromptTooLong(PromptError):
    """A prompt that leaves no room for the answer.

    Args:
        tokens: its length.
        limit: the most that it may have.
        fixed: whether the answer's length is fixed (env.max_new_tokens); else it is what the prompt leaves.
    """

    def __init__(self, problem: Problem, tokens: int, limit: int, fixed: bool = True) -> None:
        room, fix = ("env.max_new_tokens", " or lower env.max_new_tokens") if fixed else (f"{RESERVE + 1}", "")
        super().__init__(
            f"problem {problem.id}: its prompt has {tokens} tokens, room is {limit} "
            f"(env.context - {room}). Raise env.context{fix}."
        )
        self.problem, self.tokens, self.limit = problem, tokens, limit


class Turn(Protocol):
    """One worked example of a few-shot prompt: a question with its answer as the model should give it."""

    @property
    def question(self) -> str: ...
    @property
    def starter_code(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class FileTurn:
    """A few-shot turn that was read from a JSON file."""

    question: str
    starter_code: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as the server gets it."""

    ids: list[int]
    text: str
    reasoning_open: bool  # the template itself opened <think>, so the completion starts inside it
    messages: list[Message] = field(default_factory=list)  # what the text was made from
    room: int | None = None  # tokens that it leaves for the answer; None: the answer's length is fixed


def _form(without_starter_code: str, starter_code: str, fn_name: str | None) -> str:
    """What the answer has to look like. A function without starter code is named: no other line would tell its name."""
    if starter_code:
        return WITH_STARTER_CODE
    return FUNCTION_BY_NAME.format(name=fn_name) if fn_name else without_starter_code


def _fence(starter_code: str) -> str:
    code = starter_code or "# YOUR CODE HERE"
    return f"```python\n{code}\n```\n\n### Answer: (use the provided format with backticks)\n\n"


def user_message(question: str, starter_code: str = "", fn_name: str | None = None) -> str:
    """LiveCodeBench's user message for one problem, byte for byte; all its functions have starter code."""
    form = _form(WITHOUT_STARTER_CODE, starter_code, fn_name)
    return f"### Question:\n{question}\n\n### Format: {form}\n{_fence(starter_code)}"


def nouscoder_message(question: str, starter_code: str = "", fn_name: str | None = None) -> str:
    """The user message that NousCoder was trained on, byte for byte; all its functions have starter code."""
    form = _form(NOUSCODER_WITHOUT_STARTER_CODE, starter_code, fn_name)
    return f"Question: {question}\n\n{form}\n{_fence(starter_code)}"


def plain_message(question: str, starter_code: str = "", fn_name: str | None = None) -> str:
    """The question alone, with the starter code in a fence where there is one, or the name of the function to write."""
    if starter_code:
        return f"{question}\n\n```python\n{starter_code}\n```"
    return f"{question}\n\nWrite the function `{fn_name}`." if fn_name else question


_ASK: dict[Scaffold, Callable[[str, str, str | None], str]] = {
    "livecodebench": user_message,
    "nouscoder": nouscoder_message,
    "plain": plain_message,
}


def messages(problem: Problem, turns: Sequence[Turn] = (), scaffold: Scaffold = "livecodebench") -> list[Message]:
    """The chat: system, then each worked turn, then the problem; all questions in the same scaffold."""
    ask = _ASK[scaffold]
    chat = [{"role": "system", "content": SYSTEM}]
    for turn in turns:
        chat.append({"role": "user", "content": ask(turn.question, turn.starter_code, None)})
        chat.append({"role": "assistant", "content": turn.answer})
    chat.append({"role": "user", "content": ask(problem.statement, problem.starter_code, problem.fn_name)})
    return chat


def read_turns(path: str | Path) -> list[FileTurn]:
    """Few-shot turns of a JSON file: a list of {question | question_content, starter_code?, answer}.

    Raises:
        PromptError: a missing or broken file, an entry without question or answer.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"env.fewshot_path = {path}: cannot be read ({error.strerror}). Give a JSON file.") from None
    except ValueError as error:
        raise PromptError(f"env.fewshot_path = {path}: not JSON ({error}).") from None
    turns = []
    for index, row in enumerate(rows if isinstance(rows, list) else [rows]):
        fields = row if isinstance(row, dict) else {}
        question = fields.get("question", fields.get("question_content"))
        if not isinstance(question, str) or not isinstance(fields.get("answer"), str):
            raise PromptError(
                f"env.fewshot_path = {path}: entry {index} has no question or no answer. "
                'Need [{"question": ..., "answer": ...}, ...].'
            )
        turns.append(FileTurn(whole(question), whole(str(fields.get("starter_code") or "")), whole(fields["answer"])))
    return turns


class PromptBuilder:
    """Makes and keeps the prompt of each problem, with the model's own chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        turns: gives the worked examples before a problem's question; none for LiveCodeBench's own prompt.
        thinking: value of the template's `enable_thinking`; None leaves the template's default.
        limit: longest prompt in tokens (context less the tokens to be generated).
        context: where an answer may take what its prompt leaves of it, less `RESERVE`; None: answers have one length.

    Raises:
        PromptError: a tokenizer without chat template, `thinking` set for a template that has no such switch.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        turns: Callable[[Problem], Sequence[Turn]] = lambda problem: (),
        scaffold: Scaffold = "livecodebench",
        thinking: bool | None = None,
        limit: int,
        context: int | None = None,
    ) -> None:
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise PromptError("tokenizer: has no chat template. Use an instruction-tuned model's tokenizer.")
        if thinking is not None and "enable_thinking" not in str(template):
            raise PromptError(
                f"env.thinking = {thinking}: the model's chat template has no enable_thinking. Leave it empty."
            )
        self.tokenizer = tokenizer
        self.turns = turns
        self.scaffold: Scaffold = scaffold
        self.limit = limit
        self.context = context
        self._kwargs = {} if thinking is None else {"enable_thinking": thinking}
        self._made: dict[str, Prompt] = {}

    def __call__(self, problem: Problem) -> Prompt:
        """The problem's prompt; PromptError with its id when it is longer than the limit."""
        prompt = self._made.get(problem.id)
        if prompt is None:
            prompt = self._made[problem.id] = self._make(problem)
        return prompt

    def fitting(self, problems: Sequence[Problem]) -> tuple[list[Problem], list[PromptTooLong]]:
        """Makes every prompt: the problems whose prompt leaves room for the answer, and why each other one does not.

        Raises:
            PromptError: none does, or a prompt cannot be made at all.
        """
        fit, refused = [], []
        for problem in problems:
            try:
                self(problem)
                fit.append(problem)
            except PromptTooLong as error:
                refused.append(error)
        if not fit:
            shown = [str(error) for error in refused[:5]]
            shown += [f"... and {len(refused) - 5} more"] if len(refused) > 5 else []
            raise PromptError("no problem is left:\n  " + "\n  ".join(shown))
        return fit, refused

    def chat(self, problem: Problem) -> list[Message]:
        """The messages that a problem's prompt is made from: what a prompt of another form overrides."""
        return messages(problem, self.turns(problem), self.scaffold)

    def _make(self, problem: Problem) -> Prompt:
        chat = self.chat(problem)
        # transformers 5 returns a BatchEncoding by default; its iteration gives keys where ids belong.
        ids = self._templated(problem, chat, tokenize=True, return_dict=False)
        text = self._templated(problem, chat, tokenize=False)
        if len(ids) > self.limit:
            raise PromptTooLong(problem, len(ids), self.limit, fixed=self.context is None)
        room = None if self.context is None else self.context - len(ids) - RESERVE
        return Prompt([int(token) for token in ids], text, text.rstrip().endswith("<think>"), chat, room)

    def _templated(self, problem: Problem, chat: list[Message], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, **options, **self._kwargs)
        except Exception as error:  # a template is a program of the model's folder: it may raise anything
            roles = ", ".join(dict.fromkeys(message["role"] for message in chat))
            raise PromptError(
                f"tokenizer: its chat template fails on the chat of problem {problem.id} (roles: {roles}): "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. Use a model whose template takes "
                "these roles, or fix chat_template in its tokenizer's folder."
            ) from None


def prompt_builder(
    config: LivecodeEnvConfig, tokenizer: Any, limit: int | None = None, kind: type[PromptBuilder] = PromptBuilder
) -> PromptBuilder:
    """The prompts of an environment's options.

    Args:
        limit: longest one in tokens; None: what leaves room for the answer.
        kind: the class that makes them.

    Raises:
        PromptError: as `PromptBuilder`; a file with fewer worked turns than are asked for.
    """
    answer = RESERVE + 1 if config.max_new_tokens is None else config.max_new_tokens
    return kind(
        tokenizer,
        turns=_turns(config),
        scaffold=config.fewshot_scaffold if config.prompt_style == "fewshot" else config.prompt_style,
        thinking=config.thinking,
        limit=config.context - answer if limit is None else limit,
        context=config.context if config.max_new_tokens is None else None,
    )


def _turns(config: LivecodeEnvConfig) -> Callable[[Problem], Sequence[Turn]]:
    count = config.fewshot_turns
    if config.prompt_style != "fewshot":
        return lambda problem: ()
    if config.fewshot_path is None:
        return lambda problem: turns_for(problem, count)
    turns = read_turns(config.fewshot_path)
    if len(turns) < count:
        raise PromptError(
            f"env.fewshot_turns = {count}: {config.fewshot_path} holds {len(turns)}. Lower it or add turns."
        )
    return lambda problem: turns[:count]
