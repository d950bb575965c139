"""Every work-around for atroposlib 0.4.0 (its repository is archived), each with a test that shows the fault.

AtroposError             the API server cannot be used
├── ApiUnreachable       it does not answer
├── Conflict             it refuses this environment beside another side of the run
└── GroupRefused         it, or our own check before sending, refuses a group
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from contextlib import suppress
from typing import Any

import httpx
import msgspec
import numpy as np
from atroposlib.envs.base import BaseEnv, BaseEnvConfig, EvalHandlingEnum
from atroposlib.envs.server_handling.server_baseline import APIServerConfig

from environments.common import group_bytes, worker_threads
from environments.common.errors import LivecodeError
from environments.common.group_bytes import MEDIA_TYPE, GroupBytesError
from environments.common.http_clients import is_busy, pause_s
from environments.common.retry import Failure, Retry, RetryLater
from environments.common.settings import ConfigError
from environments.livecode.config import LivecodeEnvConfig

logger = logging.getLogger(__name__)

_TRIES = 8
_AWAY_S = 600.0  # a server that was reached before may be away for so long, in which it is started again
_LONGEST_PAUSE_S = 10.0
HOLD_S = 60.0
"""Many times the pause between two questions for the served version, at each of which it is posted again."""
_DIGITS = 5  # of a log-probability on the wire: 1e-5 is far below the sampler's own noise


class AtroposError(LivecodeError, RuntimeError):
    """The Atropos API server cannot be used; the message says what to do."""


class ApiServerUnreachable(AtroposError):
    """The API server does not answer."""


class Conflict(AtroposError):
    """This environment does not fit another side of the run; `detail` says in what."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class GroupRefused(AtroposError):
    """A group that the API would lose or choke on."""


def server_configs(urls: list[str], model: str) -> list[APIServerConfig]:
    """Servers in Atropos' form, as a list: a bare config is replaced by localhost:9004-9007 without a word.

    Atropos' own clients are not used for rollouts (they want /generate, which plain vLLM lacks, or text).
    """
    return [APIServerConfig(model_name=model, base_url=f"{url.rstrip('/')}/v1", api_key="x") for url in urls]


def encode_group(group: dict[str, Any], *, packed: bool = False) -> bytes:
    """The group ready to send: as gzipped JSON, or in the binary form of `group_bytes`; the same numbers in both.

    Atropos' own sender runs json.dumps with spaces and 17 digits, then gzip level 9, on the event loop. For 16
    rollouts of 32k tokens that took 4.1 s of CPU and 8.0 MB; compact JSON, 5 digits and level 1, row by row in a
    thread, take 0.2 s and 4.6 MB (random tokens, one run). json.dumps of the whole, in a thread too, would hold the
    interpreter and with it the loop for 0.4 s; here a row takes 4 ms, and gzip lets go of it.

    Raises:
        GroupRefused: lists of unequal length, a number that is not finite (the API accepts NaN, then fails with
            the whole batch), or `group_overrides` None (which crashes Atropos' own check).
    """
    rows = [group[name] for name in ("tokens", "masks", "inference_logprobs")]
    for tokens, masks, logprobs in zip(*rows, strict=True):
        if not len(tokens) == len(masks) == len(logprobs):
            raise GroupRefused("tokens, masks and inference_logprobs of a rollout differ in length")
    if not len(group["tokens"]) == len(group["scores"]) == len(group["overrides"]):
        raise GroupRefused("scores or overrides do not match the number of rollouts")
    if not isinstance(group.get("group_overrides"), dict):
        raise GroupRefused("group_overrides must be a mapping")
    columns = {"tokens": rows[0], "masks": rows[1], "inference_logprobs": [_rounded(row) for row in rows[2]]}
    if not np.isfinite(group["scores"]).all():
        raise GroupRefused("a score or log-probability is not finite")
    if packed:
        try:
            return group_bytes.pack(group | columns)
        except GroupBytesError as error:
            raise GroupRefused(str(error)) from None
    encoded = {name: [msgspec.Raw(msgspec.json.encode(row)) for row in column] for name, column in columns.items()}
    return gzip.compress(msgspec.json.encode(group | encoded), compresslevel=1)


def readdressed(body: bytes, env_id: int) -> bytes:
    """An encoded group as one that the environment registered as `env_id` sends; its numbers are not parsed.

    Raises:
        GroupRefused: not an encoded group.
    """
    try:
        if group_bytes.is_packed(body):
            return group_bytes.readdressed(body, env_id)
        group = msgspec.json.decode(gzip.decompress(body), type=dict[str, msgspec.Raw])
    except (OSError, EOFError, zlib.error, msgspec.DecodeError, GroupBytesError) as error:
        raise GroupRefused(f"not a group ({type(error).__name__}: {error})") from None
    group["env_id"] = msgspec.Raw(msgspec.json.encode(env_id))
    return gzip.compress(msgspec.json.encode(group), compresslevel=1)


def _gzipped(body: bytes) -> bytes:
    """A group in binary form as gzipped JSON."""
    return gzip.compress(group_bytes.unpack(body).json(), compresslevel=1)


def _rounded(row: list[float]) -> list[float]:
    values = np.asarray(row, dtype=np.float64)
    if not np.isfinite(values).all():
        raise GroupRefused("a score or log-probability is not finite")
    rounded: list[float] = (values.round(_DIGITS) + 0.0).tolist()  # no -0.0: no integer is that
    return rounded


def _detail(response: httpx.Response, otherwise: str) -> str:
    """What the server says; a proxy before it may answer in another form."""
    with suppress(ValueError, TypeError, LookupError):
        return str(response.json()["detail"])
    return otherwise


class ServedConfig(LivecodeEnvConfig, BaseEnvConfig):
    """The environment's options as Atropos' own code takes them."""

    eval_handling: EvalHandlingEnum = EvalHandlingEnum.STOP_TRAIN  # type: ignore[assignment]  # their own enum


def as_atropos(config: LivecodeEnvConfig) -> ServedConfig:
    """Options that were validated already, as a BaseEnvConfig."""
    handling = EvalHandlingEnum(config.eval_handling.value)
    return ServedConfig.model_construct(config.model_fields_set, **{**dict(config), "eval_handling": handling})


class CompatBaseEnv(BaseEnv):
    """BaseEnv with the parts that talk to the API replaced.

    What stays Atropos': the tokenizer, wandb, the names of state and the protocol of the API.
    Its worker loop is not used at all: `add_train_workers` cancels the oldest workers when the queue is long, the
    STOP_TRAIN evaluation and `worker_timeout` cancel all of them, nearly finished rollouts with them; see
    `serving.Serving` for the loop that replaces it.
    """

    env_config_cls = ServedConfig
    config: ServedConfig
    api: httpx.AsyncClient
    packs = False
    """Whether groups are sent in binary form, which the API server has to offer."""
    _reached = False

    def __init__(self, config: Any, servers: list[APIServerConfig], **options: Any) -> None:
        super().__init__(as_atropos(config) if isinstance(config, LivecodeEnvConfig) else config, servers, **options)

    def open_api(self) -> httpx.AsyncClient:
        """One client for all calls; Atropos opens a new session for each.

        Straight to the server, which is the run's own: no proxy of the environment's variables is between.
        """
        url = self.config.rollout_server_url.rstrip("/")
        self.api = httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False)
        return self.api

    async def call_api(self, method: str, path: str, **request: Any) -> Any:
        """One answer of the API as JSON.

        Atropos retries three times and then raises tenacity's RetryError, which names nothing; and any 4xx makes
        it drop a group silently. Here connection faults, 5xx, and what says that a later try may help are retried, and
        the rest stops with the reason. 409 is the server's own word: two sides that differ.

        Raises:
            ApiUnreachable: eight tries failed, and for ten minutes where the server had been reached before.
            AtroposError: a 4xx. Conflict: 409.
        """

        async def attempt() -> Any:
            try:
                response = await self.api.request(method, path, **request)
            except httpx.TransportError as error:
                raise RetryLater(f"{url}: {type(error).__name__} {error}".strip()) from error
            if response.status_code < 400:
                self._reached = True
                return response.json()
            reason = f"status {response.status_code}: {response.text[:500]}"
            if response.status_code == 404:
                reason += "; start the server by `atropos run-api`"
            if response.status_code == httpx.codes.CONFLICT:
                raise Conflict(f"{url} refuses: {reason}", _detail(response, reason))
            if not is_busy(response.status_code):
                raise AtroposError(f"{url} refuses: {reason}")
            raise RetryLater(f"{url}: {reason}", wait_s=pause_s(response.headers, 0.0))

        def give_up(failure: Failure) -> bool:
            return failure.tries >= _TRIES and not (self._reached and failure.elapsed_s < _AWAY_S)

        url = f"{self.config.rollout_server_url}{path}"
        try:
            return await Retry(0.25, _LONGEST_PAUSE_S, give_up=give_up).call_async(attempt)
        except RetryLater as error:
            reason = str(error).removeprefix(f"{url}: ")
            raise ApiServerUnreachable(
                f"env.rollout_server_url = {self.config.rollout_server_url}: {path} failed {error.tries} times, the "
                f"last: {reason}. Is `atropos run-api` running there?"
            ) from error

    async def register_env(self, shard: dict[str, Any] | None = None) -> None:
        """Registers once the trainer is there.

        shard: which part of the run this environment is, where there are several.

        The API takes environments only after the trainer's /register *and* its first /batch. Atropos' own version
        also sends desired_name None by default, which the API refuses (422), logs once a second while it waits,
        and asks load_checkpoint to join a path that may hold None.

        Raises:
            ConfigError: it does not fit the environments that have registered.
        """
        body: dict[str, Any] = {
            "max_token_length": self.config.max_token_length,
            "desired_name": self.config.wandb_name or self.name,
            "weight": self.config.inference_weight,
            "min_batch_allocation": None,
            "group_size": self.config.group_size,
        }
        if shard:
            body |= {"shard": shard, "desired_name": f"{body['desired_name']}_shard{shard['index']}"}
        waited = 0
        while (answer := await self._register(body))["status"] != "success":
            if waited % 120 == 0:
                logger.info("waiting for the trainer to register and to ask for its first batch")
            waited += 1
            await asyncio.sleep(0.5)
        self.env_id = answer["env_id"]
        self.wandb_prepend = answer["wandb_name"]
        self.curr_step = answer["starting_step"]
        self.checkpoint_dir = answer["checkpoint_dir"]
        self.checkpoint_interval = answer["checkpoint_interval"]
        if self.config.total_steps == -1:
            self.config.total_steps = answer["num_steps"]

    async def leave(self) -> None:
        """Says that this environment ends: a shard of which the API has no group may then begin in another folder."""
        with suppress(httpx.HTTPError):
            await self.api.post("/disconnect-env", json={"env_id": self.env_id}, timeout=5.0)

    async def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await self.call_api("POST", "/register-env", json=body)
        except Conflict as error:
            raise ConfigError(error.detail) from None
        if "shard" in body and answer["status"] == "success" and "shard" not in answer:
            raise ConfigError(
                f"env.shard with env.rollout_server_url {self.config.rollout_server_url}: that server knows no shards; "
                "start `atropos run-api` of this version there, or one environment without env.shard"
            )
        return answer

    async def get_server_info(self) -> None:
        """The trainer's batch size (in sequences) and token limit, checked against this environment.

        Atropos drops a whole group when one sequence reaches the trainer's limit, and lets a batch that no whole
        number of groups fills wait forever.

        Raises:
            AtroposError: the two sides do not fit; the message names the field on each side.
        """
        info = await self.call_api("GET", "/info")
        batch, limit, size = info["batch_size"], info["max_token_len"], self.config.group_size
        if batch < size or batch % size:
            raise AtroposError(
                f"the trainer's batch of {batch} rollouts is not a multiple of env.group_size {size}: "
                "set the trainer's batch.rollouts and batch.group_size, or env.group_size"
            )
        if 0 < limit < self.config.context:
            raise AtroposError(
                f"env.context {self.config.context} > the trainer's context {limit}: lower env.context or raise "
                "the trainer's batch.context"
            )
        if self.config.part.count > batch // size:
            raise ConfigError(
                f"env.shard {self.config.shard}: a batch has {batch // size} groups, so that not every environment has "
                f"one of it; start at most {batch // size}"
            )
        self.config.batch_size, self.max_token_len = batch, limit

    async def agree(self, terms: dict[str, Any]) -> dict[str, Any]:
        """States what this side assumes of the run; what the trainer stated, empty where nothing.

        Raises:
            AtroposError: it names what the trainer assumes otherwise.
        """
        answer = await self.call_api("POST", "/contract", json={"side": "environment", "terms": terms})
        self.packs = MEDIA_TYPE in (answer.get("accepts") or ())
        trainer: dict[str, Any] = (answer.get("sides") or {}).get("trainer") or {}
        return trainer

    async def hold(self, why: str) -> None:
        """Has a trainer that waits for a batch continue to wait for HOLD_S from now, beyond its deadline."""
        await self.call_api("POST", "/hold", json={"reason": why, "seconds": HOLD_S})

    async def send_group(self, group: dict[str, Any]) -> None:
        """Sends one group; returns when the API has it.

        Atropos' sender logs a 4xx and continues (the group is gone), gives up after three tries with a log line,
        and skips groups by rules that ignore `overrides` (equal scores, too long a sequence).

        Raises:
            GroupRefused: the API refuses it, or would keep it back because of its size.
            ApiUnreachable: it could not be delivered.
        """
        await self.deliver(await self.encode(group))

    async def encode(self, group: dict[str, Any]) -> bytes:
        """The request body for a group; GroupRefused when it would do damage."""
        return await worker_threads.groups(self.encoded, group)

    def encoded(self, group: dict[str, Any]) -> bytes:
        """As `encode`, on the caller's thread."""
        return encode_group(group | {"env_id": self.env_id}, packed=self.packs)

    async def deliver(self, body: bytes) -> None:
        """Sends an encoded group; returns when the API has it. Raises as `send_group`."""
        packed = group_bytes.is_packed(body)
        if packed and not self.packs:  # kept by an earlier process of the run, for another server
            body, packed = await worker_threads.groups(_gzipped, body), False
        headers = {"Content-Type": MEDIA_TYPE if packed else "application/json"}
        if not packed:
            headers["Content-Encoding"] = "gzip"
        try:
            answer = await self.call_api("POST", "/scored_data", content=body, headers=headers)
        except ApiServerUnreachable:
            raise
        except AtroposError as error:
            raise GroupRefused(str(error)) from error
        if answer.get("status") == "buffered":
            raise GroupRefused("the API buffered a group: its number of rollouts is not the one that was registered")
