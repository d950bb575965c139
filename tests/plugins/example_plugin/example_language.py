"""A language of another package: programs are scripts of the system's shell."""

from __future__ import annotations

import os

from verifier_app.judge.languages.language import Language, Warm
from verifier_app.judge.protocol import Request


class Shell(Language):
    name = "sh"

    def usual(self) -> Warm:
        return Warm("example_shell_guest", homes=(os.path.dirname(os.path.abspath(__file__)),))

    def warm(self, request: Request) -> Warm:
        return self.usual()
