"""What a template is started with, as its argument's JSON has it."""

from __future__ import annotations

from typing import Any


class Setup:
    """(No dataclass: its imports would make every fork dearer.)

    homes: folders that our own modules are imported from. folders: the interpreter's package folders; packages: the
    names in them that programs see. readable: more folders that the private root has. modules: for the guest's preload.
    one_process: whether one process runs all tests of a rollout. deny: system calls that are refused to the sandbox's
    own setup.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.guest: str = config["guest"]
        self.homes: list[str] = config["homes"]
        self.folders: list[str] = config["folders"]
        self.packages: list[str] = config["packages"]
        self.readable: list[str] = config["readable"]
        self.modules: list[str] = config["modules"]
        self.one_process: bool = config["one_process"]
        self.deny: list[str] = config["deny"]
