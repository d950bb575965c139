"""What inspect-ai loads by its entry point, to find the task by the package's name."""

from integrations.inspect_task import livecodebench_v6_window

__all__ = ["livecodebench_v6_window"]
