"""Batches of scored groups: pulled from the Atropos API by rank 0, received by the others.

    BatchError              a group that cannot be trained on, or a batch that cannot be had
    ├── ApiUnreachable      no connection or server errors, until the attempts were used up
    ├── ApiRefused          a client error or an answer that is none: address, request or contract is wrong
    ├── BatchTimeout        no batch within the deadline
    └── StopWaiting         the process was asked to end while it waited

Nothing is retried into silence: an invalid group stops the trainer with its id, field, value and fix.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx
import torch.distributed as dist

from environments.common.group_bytes import MEDIA_TYPE, GroupBytesError, split
from environments.common.retry import Failure, Retry, RetryLater
from trainer.data.scored_groups import BatchError, Reading, ScoredGroup, parse_group

log = logging.getLogger(__name__)

_ACCEPT = {"Accept": f"{MEDIA_TYPE}, application/json;q=0.5"}
"""Batches come in binary form where the server has it."""
WAITING = "waiting"
"""What rank 0 broadcasts instead of groups while it waits: a collective that lasted as long would time out."""

_ALONE = (1.0, 1.0)  # pauses of one trainer, which nobody else could fall into step with


class ApiUnreachable(BatchError):
    """The API server could not be reached, or kept failing."""


class ApiRefused(BatchError):
    """The API server refused the request, or something else answers at its address."""


class BatchTimeout(BatchError):
    """No batch became ready within the deadline."""


class StopWaiting(BatchError):
    """Raised by `on_wait` of a lease when the process is to end; reaches every rank like the others."""


class AtroposClient:
    """The trainer's side of the API server (`atropos run-api`): register, then lease one batch after the other.

    A leased batch is kept by the server until `acknowledge` says that a checkpoint which includes it is durable, and
    comes again, the same bytes in the same order, after `rollback`. So an answer that gets lost is asked for again.
    Connection failures, missed deadlines of one request and 5xx are tried again with growing pauses: `attempts` times
    while the server was never reached, since its address may be wrong, and later for `away_s` seconds, in which it may
    be started again. Anything else is an error at once. A server that was restarted without its journal has
    forgotten the trainer, which is registered again.
    """

    def __init__(
        self,
        url: str,
        *,
        request_timeout_s: float = 60.0,
        attempts: int = 6,
        away_s: float = 600.0,
        pause_s: float = 0.5,
        poll_s: float = 0.5,
    ) -> None:
        """url: the server's address. request_timeout_s: silence allowed within one request. pause_s: first pause
        after a failure, doubled each time up to 16 times. poll_s: pause between two questions for a batch.
        """
        self._url = url.rstrip("/")
        self._attempts = attempts
        self._away_s = away_s
        self._reached = False
        self._pause_s = pause_s
        self._poll_s = poll_s
        self._registration: dict[str, Any] | None = None
        self._terms: dict[str, Any] | None = None
        self.reading: Reading | None = None
        """What groups may leave out and must fit; None: every field has to be there."""
        self.leave_out = False
        """Whether a group that cannot be trained on is left out of its batch; else it is an error."""
        self.left_out: dict[str, str] = {}
        """Ids of the groups that were left out of the batch leased last, each with the reason."""
        self.held: str | None = None
        """Why an environment keeps groups back, as the last answer has it; None: none does."""
        self.held_s = 0.0
        """Seconds that were waited because of it, in all."""
        # The run's own server, mostly on loopback: a proxy that the machine has for the internet is not asked.
        self._http = httpx.Client(timeout=request_timeout_s, trust_env=False)

    def __enter__(self) -> AtroposClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def register(
        self,
        *,
        batch_size: int,
        max_token_len: int,
        starting_step: int,
        num_steps: int,
        checkpoint_dir: str = "",
        save_checkpoint_interval: int = -1,
        wandb_group: str = "",
        wandb_project: str = "",
    ) -> int:
        """Announces the trainer (POST /register) and returns the id that the server gave it.

        batch_size: rollouts, not groups. max_token_len: above the context or -1, since Atropos drops a whole group
        with one sequence that reaches it.
        """
        self._registration = {
            "wandb_group": wandb_group,
            "wandb_project": wandb_project,
            "batch_size": batch_size,
            "max_token_len": max_token_len,
            "checkpoint_dir": checkpoint_dir,
            "save_checkpoint_interval": save_checkpoint_interval,
            "starting_step": starting_step,
            "num_steps": num_steps,
        }
        answer = self._ask("POST", "/register", self._registration)
        identity = answer.get("uuid")
        if not isinstance(identity, int):
            raise ApiRefused(f"{self._url}/register answered without a uuid: check that it is an Atropos API server")
        return identity

    def agree(self, terms: Mapping[str, Any]) -> None:
        """Says this side's terms (POST /contract); ApiRefused names those in which the environment's differ."""
        self._terms = dict(terms)
        self._ask("POST", "/contract", {"side": "trainer", "terms": self._terms})

    def rollback(self, step: int) -> int:
        """Resumes from `step` (POST /rollback): later batches will come again; how many.

        Raises ApiRefused for a step before the acknowledged one.
        """
        return int(self._ask("POST", "/rollback", {"step": step})["batches"])

    def acknowledge(self, checkpoint_step: int) -> None:
        """A checkpoint after `checkpoint_step` steps is durable (POST /ack): the batches before it may go."""
        self._ask("POST", "/ack", {"checkpoint_step": checkpoint_step})

    def lease(self, step: int, timeout: float, on_wait: Callable[[float], None] | None = None) -> list[ScoredGroup]:
        """Waits for the batch of `step` (POST /lease) and returns its groups, checked.

        timeout: seconds, from now; those in which an environment says that it keeps groups back, as during an
        evaluation, do not count. on_wait: called before each pause with the seconds waited so far, to show progress
        or to raise. Raises BatchTimeout with the server's state, BatchError for an invalid group.
        """
        looked = started = time.monotonic()
        deadline = started + timeout
        while True:
            body = {"trainer": "trainer", "step": step}
            answer = self._ask("POST", "/lease", body, deadline=deadline, on_wait=on_wait)
            if answer.get("status") == "error":
                self._register_again(str(answer.get("message")))
                continue
            if "batch" not in answer:
                raise ApiRefused(f"{self._url}/lease answered without a batch: check that `atropos run-api` runs there")
            if answer["batch"]:
                return self._parsed(answer["batch"])
            looked, before = time.monotonic(), looked
            self.held = answer.get("held")
            if self.held:
                self.held_s += looked - before
                deadline += looked - before
            if on_wait is not None:
                on_wait(looked - started)
            if time.monotonic() + self._poll_s >= deadline:
                raise BatchTimeout(f"no batch from {self._url} within {timeout:g} s: {self._explain()}")
            time.sleep(self._poll_s)

    def _parsed(self, batch: Sequence[Mapping[str, Any]]) -> list[ScoredGroup]:
        groups: list[ScoredGroup] = []
        self.left_out = {}
        for place, wire in enumerate(batch):
            try:
                groups.append(parse_group(wire, self.reading))
            except BatchError as error:
                if not self.leave_out:
                    raise
                named = wire.get("group_overrides") or {}
                group_id = named.get("group_id") or wire.get("api_group_id") or f"at place {place}"
                self.left_out[str(group_id)] = str(error)
                log.warning("left out of the batch: %s", error)
        return groups

    def status(self) -> dict[str, Any]:
        """The server's `current_step` and `queue_size` (groups that wait), GET /status."""
        return self._ask("GET", "/status")

    def _explain(self) -> str:
        """What the server says about why there is no batch."""
        try:
            queued = self.status().get("queue_size")
        except BatchError as error:
            return str(error)
        wanted = self._registration["batch_size"] if self._registration else "?"
        return (
            f"{queued} groups are queued and a batch takes {wanted} rollouts; look into the environment's log, "
            "and into its counts of dropped groups"
        )

    def why_no_batch(self) -> str:
        """What a batch still wants, in words. One request that is not tried again: this is asked for while waiting."""
        try:
            queued = self._http.get(f"{self._url}/status", timeout=5.0).json()["queue_size"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return f"{self._url} does not say its state ({type(error).__name__})"
        wanted = self._registration["batch_size"] if self._registration else "?"
        if self.held:
            return f"the environment keeps groups back: {self.held}"
        if not queued:
            return f"no group waits at {self._url}, and a batch takes {wanted} rollouts: see the environment's log"
        return f"{queued} groups wait at {self._url}, and a batch takes {wanted} rollouts"

    def _register_again(self, message: str) -> None:
        if self._registration is None:
            raise ApiRefused(f"{self._url} says {message!r}: call register() before lease()")
        log.warning("the Atropos API at %s has forgotten this trainer (restarted?): registering again", self._url)
        self._ask("POST", "/register", self._registration)
        if self._terms is not None:
            self.agree(self._terms)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """One request, tried again after connection failures and 5xx; its JSON object."""

        def attempt() -> dict[str, Any]:
            try:
                response = self._http.request(method, self._url + path, json=body, headers=_ACCEPT)
            except httpx.TransportError as error:
                raise RetryLater(f"{type(error).__name__}: {error}") from error
            if response.status_code >= 500:
                raise RetryLater(f"HTTP {response.status_code} {response.text[:200]}".rstrip())
            self._reached = True
            return self._read(response)

        def give_up(failure: Failure) -> bool:
            return failure.tries >= self._attempts and not (self._reached and failure.elapsed_s < self._away_s)

        def waits(failure: Failure) -> None:
            log.warning("%s %s%s: %s; again in %.1f s", method, self._url, path, failure.error, failure.pause_s)
            if on_wait is not None:
                on_wait(failure.elapsed_s)

        left = None if deadline is None else deadline - time.monotonic()
        tries = Retry(self._pause_s, 16 * self._pause_s, _ALONE, give_up=give_up, deadline_s=left, on_retry=waits)
        try:
            return tries.call(attempt)
        except RetryLater as error:
            raise ApiUnreachable(
                f"{method} {self._url}{path} failed {error.tries} times, at last with {error}: check that the Atropos "
                "API server runs there (its log says why it fails)"
            ) from error

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code == 409:  # the two sides do not fit: the server says in what
            raise ApiRefused(f"{response.url} refuses: {response.json()['detail']}")
        if response.status_code != 200:
            raise ApiRefused(
                f"{response.request.method} {response.url} answered HTTP {response.status_code} "
                f"({response.text[:200]}): check the address, and that `atropos run-api` of this version runs there"
            )
        try:
            if response.headers.get("content-type", "") == MEDIA_TYPE:
                return {"batch": split(response.content)}
            answer = response.json()
        except GroupBytesError as error:
            raise ApiRefused(
                f"{response.url}: {error}: check that `atropos run-api` of this version runs there"
            ) from error
        except ValueError as error:
            raise ApiRefused(f"{response.url} did not answer with JSON ({error}): check the address") from error
        if not isinstance(answer, dict):
            raise ApiRefused(f"{response.url} did not answer with a JSON object: check the address")
        return answer


def broadcast_groups(
    groups: Sequence[ScoredGroup] | BatchError | None, group: dist.ProcessGroup | None = None
) -> list[ScoredGroup]:
    """Gives every rank the groups that rank 0 pulled; the other ranks pass None.

    Rank 0 passes the BatchError instead when its pull failed, which is then raised on every rank: else the others
    would wait for a broadcast that never comes. Without torch.distributed it returns what it is given.
    """
    received: Any = groups
    if dist.is_available() and dist.is_initialized():
        received = _broadcast(groups, group)
        while isinstance(received, str):  # WAITING, which rank 0 sends by `still_waiting`
            received = _broadcast(None, group)
    if isinstance(received, BatchError):
        raise received
    if received is None:
        raise BatchError("rank 0 passed no groups to broadcast_groups: pass the batch, or the error of its pull")
    return list(received)


def still_waiting(group: dist.ProcessGroup | None = None) -> None:
    """On rank 0, while the others are in `broadcast_groups`: they begin their wait again."""
    _broadcast(WAITING, group)


def _broadcast(parcel: object, group: dist.ProcessGroup | None) -> Any:
    box = [parcel]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
