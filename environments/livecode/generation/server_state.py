"""What a generation server's state is, and how each event changes it: the table below is all there is to it.

Three things decide: whether the server has this run's weights (it may have been restarted, or not been checked yet),
whether it answers when it is asked what its weights are called, and whether it is about to leave. How long a state
lasts is the server's `since`. A server that joins in mid-run begins as UNCHECKED_RESTARTED.
"""

from __future__ import annotations

from enum import Enum


class ServerState(Enum):
    """State of one vLLM server in this run."""

    SERVING = "serves the weights of most servers"
    SILENT = "does not answer; gets rollouts only where no other server is left"
    APART = "serves other weights than most servers; gets no more rollouts once that has lasted long"
    RESTARTED = "is new or was started again, and waits for the trainer's weights"
    RESTARTED_SILENT = "is new or was started again, and does not answer"
    UNCHECKED = "is not checked yet, or does not fit"
    UNCHECKED_RESTARTED = "is not checked yet and has the weights of its start"
    UNCHECKED_SILENT = "is not checked yet and does not answer"
    LEAVING = "leaves: it finishes its rollouts and gets no new ones"
    LEAVING_SILENT = "leaves and does not answer: its rollouts go to others"

    @property
    def silent(self) -> bool:
        """Whether it did not answer the last time."""
        return self in (
            *(ServerState.SILENT, ServerState.RESTARTED_SILENT),
            *(ServerState.UNCHECKED_SILENT, ServerState.LEAVING_SILENT),
        )

    @property
    def leaving(self) -> bool:
        """Whether it is no longer in the list of servers, or marked there as leaving."""
        return self in (ServerState.LEAVING, ServerState.LEAVING_SILENT)

    @property
    def unchecked(self) -> bool:
        """Whether it has to pass the check of `ServerChecks` first."""
        return self in (ServerState.UNCHECKED, ServerState.UNCHECKED_RESTARTED, ServerState.UNCHECKED_SILENT)

    @property
    def eligible(self) -> bool:
        """Whether it may get rollouts."""
        return self in (ServerState.SERVING, ServerState.SILENT, ServerState.APART)


class ServerEvent(Enum):
    """What may happen to a server."""

    NAMED = "it names weights of this run"
    UNNAMED = "it has the weights of its start, although the trainer has sent others"
    NO_LABEL = "it answers, but does not name its weights"
    NO_ANSWER = "it does not answer"
    HEARD = "it answered a request"
    AGREES = "most servers have its weights"
    DIFFERS = "most servers have other weights"
    FITS = "its check passed"
    MISFIT = "its check failed"
    LEAVES = "it is taken from the list of servers, or marked there"
    RETURNS = "it is in the list again, without a mark"


_S, _E = ServerState, ServerEvent

TRANSITIONS: dict[ServerState, dict[ServerEvent, ServerState]] = {
    _S.SERVING: {
        _E.LEAVES: _S.LEAVING,
        _E.UNNAMED: _S.RESTARTED,
        _E.NO_ANSWER: _S.SILENT,
        _E.DIFFERS: _S.APART,
        _E.MISFIT: _S.UNCHECKED,
    },
    _S.SILENT: {
        _E.LEAVES: _S.LEAVING_SILENT,
        _E.NAMED: _S.SERVING,
        _E.UNNAMED: _S.RESTARTED,
        _E.NO_LABEL: _S.SERVING,
        _E.HEARD: _S.SERVING,
        _E.MISFIT: _S.UNCHECKED_SILENT,
    },
    _S.APART: {
        _E.LEAVES: _S.LEAVING,
        _E.UNNAMED: _S.RESTARTED,
        _E.NO_LABEL: _S.SERVING,
        _E.NO_ANSWER: _S.SILENT,
        _E.AGREES: _S.SERVING,
        _E.MISFIT: _S.UNCHECKED,
    },
    _S.RESTARTED: {
        _E.LEAVES: _S.LEAVING,
        _E.NAMED: _S.SERVING,
        _E.NO_ANSWER: _S.RESTARTED_SILENT,
        _E.MISFIT: _S.UNCHECKED_RESTARTED,
    },
    _S.RESTARTED_SILENT: {
        _E.LEAVES: _S.LEAVING_SILENT,
        _E.NAMED: _S.SERVING,
        _E.UNNAMED: _S.RESTARTED,
        _E.NO_LABEL: _S.RESTARTED,
        _E.HEARD: _S.RESTARTED,
        _E.MISFIT: _S.UNCHECKED_SILENT,
    },
    _S.UNCHECKED: {
        _E.LEAVES: _S.LEAVING,
        _E.UNNAMED: _S.UNCHECKED_RESTARTED,
        _E.NO_ANSWER: _S.UNCHECKED_SILENT,
        _E.FITS: _S.SERVING,
    },
    _S.UNCHECKED_RESTARTED: {
        _E.LEAVES: _S.LEAVING,
        _E.NAMED: _S.UNCHECKED,
        _E.NO_ANSWER: _S.UNCHECKED_SILENT,
        _E.FITS: _S.RESTARTED,
    },
    _S.UNCHECKED_SILENT: {
        _E.LEAVES: _S.LEAVING_SILENT,
        _E.UNNAMED: _S.UNCHECKED_RESTARTED,
        _E.NAMED: _S.UNCHECKED,
        _E.NO_LABEL: _S.UNCHECKED,
        _E.HEARD: _S.UNCHECKED,
        _E.FITS: _S.SILENT,
    },
    _S.LEAVING: {
        _E.NO_ANSWER: _S.LEAVING_SILENT,
        _E.RETURNS: _S.UNCHECKED_RESTARTED,
    },
    _S.LEAVING_SILENT: {
        _E.NAMED: _S.LEAVING,
        _E.UNNAMED: _S.LEAVING,
        _E.NO_LABEL: _S.LEAVING,
        _E.HEARD: _S.LEAVING,
        _E.RETURNS: _S.UNCHECKED_SILENT,
    },
}
"""State -> event -> new state; an event that is not in a state's row leaves the state as it is."""


def after(state: ServerState, event: ServerEvent) -> ServerState:
    """The state after an event."""
    return TRANSITIONS[state].get(event, state)
