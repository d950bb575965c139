"""Which problems are the same: equal statements, shared n-grams, near-duplicates, equal test sets or test inputs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from rensa import RMinHash, RMinHashLSH

SHINGLE = 5  # words
NGRAM = 10  # words
CONTAINED = 0.5  # of a statement's n-grams found in another one's: the same problem reworded
NEAR = 0.75  # estimated Jaccard similarity of shingles
COMMON = 5  # an n-gram of this many statements is boilerplate ("given from standard input in the following format")
PERMUTATIONS, BANDS, SEED = 128, 32, 1
LONG_INPUT = 20  # characters: shorter inputs are shared by problems that have nothing else in common
KEPT_INPUTS = 64  # of a problem, those with the smallest hashes
SHARED_INPUTS = 3  # at least this many, and half of the smaller set: the same problem retold
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Signature:
    """What two problems are compared by."""

    id: str
    statement: str
    tests_sha256: str = ""
    inputs: frozenset[str] = frozenset()  # of its tests, see `hashed_inputs`


@dataclass(frozen=True)
class Match:
    """Two problems that are the same. `how`: exact, tests, ngram, inputs or near; `score` is 1 where it is no estimate,
    for ngram and inputs the share of them that is in both.
    """

    id: str
    other: str
    how: str
    score: float


def words(statement: str) -> list[str]:
    """Lower-case words and numbers: what is left of a statement without its layout."""
    return _WORD.findall(statement.lower())


def fingerprint(statement: str) -> str:
    """Equal for statements that differ in layout, case and punctuation only."""
    return blake2b(" ".join(words(statement)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def sketch(statement: str) -> RMinHash:
    """A MinHash of the statement's shingles (Broder 1997)."""
    parts = words(statement)
    hashed = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    hashed.update(sorted({" ".join(parts[i : i + SHINGLE]) for i in range(max(1, len(parts) - SHINGLE + 1))}))
    return hashed


def hashed_inputs(inputs: Iterable[str]) -> frozenset[str]:
    """Hashes of a problem's long test inputs, the smallest ones of many."""
    long = (text for each in inputs if len(text := each.strip()) >= LONG_INPUT)
    hashed = {blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for text in long}
    return frozenset(sorted(hashed)[:KEPT_INPUTS])


def _ngrams(statement: str) -> set[bytes]:
    parts = words(statement)
    return {
        blake2b(" ".join(parts[i : i + NGRAM]).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for i in range(len(parts) - NGRAM + 1)
    }


def duplicates(problems: Iterable[Signature]) -> dict[str, Match]:
    """Problems that an earlier one of the sequence makes superfluous: {id: the match}."""
    seen: dict[str, str] = {}
    index = RMinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS, num_bands=BANDS)
    kept: list[tuple[str, RMinHash]] = []
    found: dict[str, Match] = {}
    for problem in problems:
        print_ = fingerprint(problem.statement)
        if print_ in seen:
            found[problem.id] = Match(problem.id, seen[print_], "exact", 1.0)
            continue
        hashed = sketch(problem.statement)
        best = _best(hashed, index, kept)
        if best is not None:
            found[problem.id] = Match(problem.id, best[0], "near", best[1])
            continue
        seen[print_] = problem.id
        index.insert(len(kept), hashed)
        kept.append((problem.id, hashed))
    return found


def _best(hashed: RMinHash, index: RMinHashLSH, kept: Sequence[tuple[str, RMinHash]]) -> tuple[str, float] | None:
    scored = [(hashed.jaccard(kept[key][1]), -key) for key in index.query(hashed)]
    best = max(scored, default=(0.0, 0))
    return (kept[-best[1]][0], round(best[0], 3)) if best[0] >= NEAR else None


class Overlap:
    """Finds a problem among known ones: of a test set, say."""

    def __init__(self, known: Sequence[Signature]) -> None:
        self._prints = {fingerprint(problem.statement): problem.id for problem in reversed(known)}
        self._tests = {problem.tests_sha256: problem.id for problem in reversed(known) if problem.tests_sha256}
        self._index = RMinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._sketches = [(problem.id, sketch(problem.statement)) for problem in known]
        for key, (_, hashed) in enumerate(self._sketches):
            self._index.insert(key, hashed)
        grams = {problem.id: _ngrams(problem.statement) for problem in known}
        common = Counter(gram for found in grams.values() for gram in found)
        self._grams: dict[bytes, list[str]] = defaultdict(list)
        self._own: dict[str, int] = {}
        for name, found in grams.items():
            rare = [gram for gram in found if common[gram] < COMMON]
            self._own[name] = len(rare)
            for gram in rare:
                self._grams[gram].append(name)
        frequent = Counter(text for problem in known for text in problem.inputs)
        self._inputs: dict[str, list[str]] = defaultdict(list)
        self._sizes: dict[str, int] = {}
        for problem in known:
            rare_inputs = [text for text in problem.inputs if frequent[text] < COMMON]
            self._sizes[problem.id] = len(rare_inputs)
            for text in rare_inputs:
                self._inputs[text].append(problem.id)

    def match(self, problem: Signature) -> Match | None:
        """The known problem that this one is, by the surest sign first."""
        print_ = fingerprint(problem.statement)
        if print_ in self._prints:
            return Match(problem.id, self._prints[print_], "exact", 1.0)
        if problem.tests_sha256 and problem.tests_sha256 in self._tests:
            return Match(problem.id, self._tests[problem.tests_sha256], "tests", 1.0)
        shared = Counter(name for gram in _ngrams(problem.statement) for name in self._grams.get(gram, ()))
        scored = [(count / self._own[name], name) for name, count in shared.items()]
        share, name = max(scored, default=(0.0, ""))
        if share >= CONTAINED:
            return Match(problem.id, name, "ngram", round(share, 3))
        if (by_inputs := self._by_inputs(problem)) is not None:
            return by_inputs
        best = _best(sketch(problem.statement), self._index, self._sketches)
        return None if best is None else Match(problem.id, best[0], "near", best[1])

    def _by_inputs(self, problem: Signature) -> Match | None:
        shared = Counter(name for text in problem.inputs for name in self._inputs.get(text, ()))
        scored = [
            (count / min(len(problem.inputs), self._sizes[name]), name)
            for name, count in shared.items()
            if count >= SHARED_INPUTS
        ]
        share, name = max(scored, default=(0.0, ""))
        return Match(problem.id, name, "inputs", round(share, 3)) if share >= CONTAINED else None
