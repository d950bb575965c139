"""The demo's processes are those of every run on one machine: see environments/launch/processes.py."""

from environments.launch.processes import RESTARTS, Child, Family, ProcessError, free_port, tail

__all__ = ["RESTARTS", "Child", "Family", "ProcessError", "free_port", "tail"]
