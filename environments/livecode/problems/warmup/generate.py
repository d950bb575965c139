"""The warm-up sets of a seed: training problems, new instances of their templates, and unseen templates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from environments.livecode.problems.load import save_problems
from environments.livecode.problems.problem import Problem, TestCase
from environments.livecode.problems.warmup.calls import CALLS
from environments.livecode.problems.warmup.fewshot import FEWSHOT, FewshotTurn
from environments.livecode.problems.warmup.lists import LISTS
from environments.livecode.problems.warmup.numbers import NUMBERS
from environments.livecode.problems.warmup.reference import Reference, statement
from environments.livecode.problems.warmup.template import Params, ProblemTemplate, Value
from environments.livecode.problems.warmup.words import WORDS

TEMPLATES: tuple[ProblemTemplate, ...] = (*NUMBERS, *WORDS, *LISTS, *CALLS)

# Fixed by name, so that no seed can move a template across the line; every step and both kinds are in it.
UNSEEN = frozenset(
    """
    sub_from_k sum_times_k wrap_word last_of_list sum_of_list_times_k call_multiply_k call_repeat
    at_least_k compare_two drop_k_letters remove_letter min_plus_k call_is_multiple
    word_or_number multiply_each_by_k case_of_word second_largest_plus_k call_keep_less_than_k
    """.split()
)

TRAIN_INSTANCES = 8
NEW_INSTANCES = 1
UNSEEN_INSTANCES = 2
DIFFICULTY = {1: "easy", 2: "medium", 3: "hard"}

_CANDIDATES = 100  # inputs drawn for one problem, from which 8 to 10 with different outputs are kept


@dataclass(frozen=True)
class WarmupSets:
    """Problems, and what never reaches a model: reference programs and parameters by problem id."""

    train: list[Problem]
    new_instances: list[Problem]
    unseen_templates: list[Problem]
    fewshot: list[FewshotTurn]
    references: dict[str, str] = field(repr=False)
    parameters: dict[str, Params] = field(repr=False)


def build(seed: int) -> WarmupSets:
    """The sets of a seed; the same seed gives the same bytes.

    The seed draws the instances, the tests and their order; which templates are trained is fixed (`UNSEEN`).
    Parameters of `new_instances` never occur in `train` with the same template. Templates without parameters
    differ in wording only and are trained, never counted as new instances.
    """
    sets = WarmupSets([], [], [], list(FEWSHOT), {}, {})
    for template in TEMPLATES:
        rng = Random(f"{seed}/{template.id}")
        order = list(range(len(template.space)))
        rng.shuffle(order)
        if template.id in UNSEEN:
            parts = [(sets.unseen_templates, order[:UNSEEN_INSTANCES])]
        else:
            new = NEW_INSTANCES if template.parametrised else 0
            parts = [(sets.new_instances, order[:new]), (sets.train, order[new : new + TRAIN_INSTANCES])]
        for target, chosen in parts:
            for index in sorted(chosen):
                target.append(_instance(template, index, rng, sets))
    return sets


def write(sets: WarmupSets, folder: str | Path, seed: int) -> dict[str, object]:
    """Writes the three sets and manifest.json (seed, counts, sha256), which it returns."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("train", "new_instances", "unseen_templates"):
        problems: list[Problem] = getattr(sets, name)
        path = folder / f"{name}.jsonl"
        save_problems(problems, path)
        files[path.name] = {
            "problems": len(problems),
            "templates": len({problem.template for problem in problems}),
            "tests": sum(len(problem.tests) for problem in problems),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    manifest: dict[str, object] = {"seed": seed, "templates": len(TEMPLATES), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _instance(template: ProblemTemplate, index: int, rng: Random, sets: WarmupSets) -> Problem:
    """One problem; its id holds the place of its parameters in the template's space, whatever the seed."""
    params = template.space[index]
    program = template.program(params)
    reference = Reference(program, template.call)
    drawn = {}
    for _ in range(_CANDIDATES):
        values = template.inputs(rng, params)
        drawn[reference.test(values)] = values
    tests = _spread(list(drawn), rng.randint(8, 10))
    _tell_apart(template, index, drawn, tests)
    name = f"{template.id}_{index:03d}"
    sets.references[name] = program
    sets.parameters[name] = dict(params)
    return Problem(
        id=name,
        source="warmup",
        kind="function" if template.call else "stdin",
        fn_name=template.call.fn_name if template.call else None,
        statement=statement(template, template.sentence(params), drawn[tests[0]], tests[0]),
        starter_code=template.call.starter_code if template.call else "",
        difficulty=DIFFICULTY[template.step],
        template=template.id,
        tests=tests,
    )


def _tell_apart(
    template: ProblemTemplate, index: int, drawn: dict[TestCase, tuple[Value, ...]], tests: list[TestCase]
) -> None:
    """Exchanges tests, never the first, until the program of every other instance fails at least one.

    Raises:
        RuntimeError: the template's inputs cannot tell two of its instances apart; a fault of the template.
    """
    kept = {0}
    for other in range(len(template.space) if template.parametrised else 0):
        if other == index:
            continue
        wrong = Reference(template.program(template.space[other]), template.call)
        if any(_fails(wrong, drawn[test], test) for test in tests):
            continue
        telling = next((test for test in drawn if _fails(wrong, drawn[test], test)), None)
        place = max(set(range(len(tests))) - kept, default=None)
        if telling is None or place is None:
            raise RuntimeError(f"template {template.id}: no test tells instance {index} from {other}")
        tests[place] = telling
        kept.add(place)


def _fails(program: Reference, values: tuple[Value, ...], test: TestCase) -> bool:
    try:
        return program.test(values) != test
    except IndexError:  # an index of another instance, beyond the end of this one's inputs
        return True


def _spread(candidates: Sequence[TestCase], count: int) -> list[TestCase]:
    """`count` tests that take turns over the outputs, so that no constant answer passes many of them.

    The first one is the statement's sample and has an output that can be seen.
    """
    by_output: dict[str, list[TestCase]] = {}
    for test in candidates:
        by_output.setdefault(test.output, []).append(test)
    queues = sorted(by_output.values(), key=lambda tests: not tests[0].output.strip())  # stable
    spread = [tests[turn] for turn in range(max(map(len, queues))) for tests in queues if turn < len(tests)]
    return spread[:count]
