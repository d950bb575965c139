"""Why a row is left out."""


class Dropped(Exception):
    """A row that is left out. `reason` is counted, `detail` says more about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
