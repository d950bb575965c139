"""Content-addressed test sets: a file DIR/<sha[:2]>/<sha256> holds the set's canonical JSON, whose hash is its name."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from verifier_app.judge.protocol import JudgeError, TestSet

KEPT_SETS = 8  # parsed sets kept in memory: a group's rollouts come one after the other


def encode_tests(tests: list[dict[str, str]]) -> bytes:
    """The canonical bytes of a test set: what is stored and hashed."""
    plain = [{"input": test["input"], "output": test["output"]} for test in tests]
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode()


class TestStore:
    """Test sets below one folder (0700: programs under an unprivileged uid cannot read them)."""

    __test__ = False  # not a pytest class

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._kept: OrderedDict[str, TestSet] = OrderedDict()

    def path(self, sha: str) -> Path:
        """Where the set with this hash is or would be."""
        return self.folder / sha[:2] / sha

    def put(self, tests: list[dict[str, str]]) -> dict[str, Any]:
        """Store a set (atomic, idempotent) and return its tests_ref."""
        TestSet(tests)
        data = encode_tests(tests)
        sha = hashlib.sha256(data).hexdigest()
        self.put_bytes(sha, data)
        return {"sha256": sha, "count": len(tests)}

    def put_bytes(self, sha: str, data: bytes) -> None:
        """Store a set's canonical bytes under their hash (atomic, idempotent)."""
        path = self.path(sha)
        if not path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)

    def get(self, sha: str, count: int) -> TestSet:
        """The checked set. JudgeError test_set_missing or test_set_corrupt."""
        found = self._kept.get(sha)
        if found is None:
            try:
                data = self.path(sha).read_bytes()
            except FileNotFoundError:
                raise JudgeError("test_set_missing", f"{sha}: upload the set and ask again") from None
            except OSError as error:
                raise JudgeError("test_set_missing", f"{sha}: cannot be read: {error.strerror}") from None
            if hashlib.sha256(data).hexdigest() != sha:
                raise JudgeError("test_set_corrupt", f"{self.path(sha)}: its hash differs: remove it and upload again")
            found = self._kept[sha] = self._parsed(sha, data)
            while len(self._kept) > KEPT_SETS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(sha)
        if len(found) != count:
            raise JudgeError("bad_request", f"tests_ref.count: is {count}, the set has {len(found)} tests")
        return found

    def _parsed(self, sha: str, data: bytes) -> TestSet:
        """A stored file may come from elsewhere: that its hash fits does not make it a set."""
        try:
            return TestSet(json.loads(data), "tests")
        except (ValueError, RecursionError):
            reason = "is not JSON"
        except JudgeError as error:
            reason = error.message
        raise JudgeError("test_set_corrupt", f"{self.path(sha)}: no test set ({reason}): remove it and upload the set")
