"""The table of a generation server's states: total, connected, and true to what the states mean."""

from __future__ import annotations

import pytest

from environments.livecode.generation.server_state import TRANSITIONS, ServerEvent, ServerState, after

SILENT = {
    *(ServerState.SILENT, ServerState.RESTARTED_SILENT, ServerState.UNCHECKED_SILENT, ServerState.LEAVING_SILENT),
}


def test_every_state_is_reached_from_the_first_and_leads_back_to_it() -> None:
    for start in ServerState:
        reached, ahead = {start}, [start]
        while ahead:
            state = ahead.pop()
            new = {after(state, event) for event in ServerEvent} - reached
            reached |= new
            ahead += new
        assert reached == set(ServerState)


@pytest.mark.parametrize("state", ServerState)
def test_every_event_is_handled_in_every_state_and_none_wavers(state: ServerState) -> None:
    for event in ServerEvent:
        new = after(state, event)
        assert after(new, event) is new  # told twice it is the same
    assert all(new is not state for new in TRANSITIONS[state].values())  # what stays is not in the table


@pytest.mark.parametrize("state", ServerState)
def test_an_event_means_the_same_in_every_state(state: ServerState) -> None:
    assert after(state, ServerEvent.NO_ANSWER) in SILENT
    for event in (ServerEvent.NAMED, ServerEvent.UNNAMED, ServerEvent.NO_LABEL, ServerEvent.HEARD):
        assert after(state, event) not in SILENT
    assert not after(state, ServerEvent.UNNAMED).eligible
    assert not after(state, ServerEvent.FITS).unchecked
    assert after(state, ServerEvent.MISFIT).unchecked or state.leaving
    assert after(state, ServerEvent.LEAVES).leaving
    assert not after(state, ServerEvent.RETURNS).leaving


@pytest.mark.parametrize("state", [state for state in ServerState if state.leaving])
def test_a_server_that_leaves_gets_no_rollouts_whatever_happens_until_it_returns_and_is_checked(
    state: ServerState,
) -> None:
    for event in set(ServerEvent) - {ServerEvent.RETURNS}:
        assert after(state, event).leaving
    assert after(state, ServerEvent.RETURNS).unchecked


@pytest.mark.parametrize("state", [state for state in ServerState if not state.eligible and not state.leaving])
def test_only_a_check_or_a_name_lets_a_server_have_rollouts_again(state: ServerState) -> None:
    letting_in = {ServerEvent.FITS} if state.unchecked else {ServerEvent.NAMED}
    assert {event for event in ServerEvent if after(state, event).eligible} <= letting_in


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ("UNNAMED", ServerState.RESTARTED),
        ("UNNAMED NO_ANSWER", ServerState.RESTARTED_SILENT),
        ("UNNAMED NO_ANSWER HEARD NAMED", ServerState.SERVING),
        ("DIFFERS NAMED DIFFERS", ServerState.APART),
        ("DIFFERS NO_ANSWER NAMED", ServerState.SERVING),
        ("MISFIT UNNAMED FITS", ServerState.RESTARTED),
        ("MISFIT NAMED FITS", ServerState.SERVING),
        ("MISFIT NO_ANSWER FITS", ServerState.SILENT),
        ("LEAVES NO_ANSWER HEARD RETURNS NAMED FITS", ServerState.SERVING),
        ("LEAVES RETURNS FITS", ServerState.RESTARTED),
    ],
)
def test_a_server_s_way(events: str, last: ServerState) -> None:
    state = ServerState.SERVING
    for event in events.split():
        state = after(state, ServerEvent[event])
    assert state is last
