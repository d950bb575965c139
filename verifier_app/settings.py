"""Settings of the judge as a service: VERIFIER_* variables and flags, checked before anything starts, then frozen."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from verifier_app.judge.default_limits import MEMORY_LIMIT_MB
from verifier_app.judge.languages.registry import DEFAULT, LANGUAGES


class ServerSettings(BaseSettings):
    """`atropos verifier serve`. Each field is VERIFIER_NAME in the environment and --name on the command line."""

    model_config = SettingsConfigDict(
        env_prefix="VERIFIER_", extra="forbid", frozen=True, cli_hide_none_type=True, cli_implicit_flags=False,
        cli_kebab_case=True, cli_prog_name="atropos verifier serve",
    )  # fmt: skip

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs a token.")
    port: int = Field(8010, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(
        None, description="Callers send it as `Authorization: Bearer TOKEN`. Better in VERIFIER_TOKEN than as a flag."
    )
    workers: int | None = Field(None, ge=1, description="Judges at the same time; empty: one per core.")
    queue: int | None = Field(
        None, ge=0, description="Rollouts that may wait; more are answered 429. Empty: 16 per judge."
    )
    max_body_mb: int = Field(64, ge=1, le=4000, description="Longest request body in MiB; longer is answered 413.")
    body_s: float = Field(
        30.0, gt=0, le=3600, description="Longest wait for a request's body in seconds; a slower one is answered 408."
    )
    tests_dir: Path | None = Field(None, description="Folder of uploaded test sets; empty: none can be uploaded.")
    require_isolation: Literal["any", "strong"] = Field("any", description="strong: refuse a host that offers less.")
    drain_s: float = Field(120.0, gt=0, le=86400, description="Longest wait for running rollouts after SIGTERM.")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can call."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _guarded(self) -> ServerSettings:
        if self.token is not None and len(self.token.get_secret_value()) < 16:
            raise ValueError("token: shorter than 16 characters; give a long random one (VERIFIER_TOKEN)")
        if self.token is None and not self.loopback:
            raise ValueError(
                f"host {self.host}: others can reach it, and there is no token: set VERIFIER_TOKEN, or host 127.0.0.1"
            )
        return self


class ModalSettings(BaseSettings):
    """`modal deploy -m verifier_app`. Each field is VERIFIER_NAME in the environment of the deploying command.

    They become the function's definition; a container never reads them.
    """

    model_config = SettingsConfigDict(env_prefix="VERIFIER_", extra="ignore", frozen=True)

    app: str = Field("livecode-verifier", pattern=r"^[A-Za-z0-9_.-]{1,63}$", description="Name of the app.")
    volume: str = Field("livecode-tests", pattern=r"^[A-Za-z0-9_.-]{1,63}$", description="Volume of the test sets.")
    languages: str = Field(
        "python", description="Languages that the image can judge, with commas between them: python,cpp adds g++."
    )
    cpu: float = Field(1.0, gt=0, le=16, description="Cores that a container reserves.")
    cpu_limit: float = Field(2.0, gt=0, le=16, description="Cores that a container may use.")
    memory_mb: int = Field(1024, ge=256, description="MiB that a container reserves.")
    memory_limit_mb: int = Field(6144, ge=256, description="MiB at which a container is killed.")
    timeout_s: int = Field(
        7200, ge=60, le=86400, description="Longest judging of one call; a request's own deadline comes first."
    )
    startup_timeout_s: int = Field(300, ge=10, le=3600, description="Longest start of a container.")
    retries: int = Field(
        0,
        ge=0,
        le=10,
        description="New tries by Modal for a call that failed; the caller makes its own, and counts them.",
    )
    min_containers: int = Field(0, ge=0, description="Containers that are always warm.")
    buffer_containers: int = Field(16, ge=0, description="Idle containers kept ready while calls come.")
    max_containers: int = Field(
        256,
        ge=1,
        description="Containers at the same time, idle ones included; a workspace of the Starter plan has 100.",
    )
    scaledown_window_s: int = Field(60, ge=2, le=1200, description="Seconds before an idle container is given back.")

    @property
    def language_names(self) -> list[str]:
        """The languages, each once."""
        return list(dict.fromkeys(name.strip() for name in self.languages.split(",")))

    @field_validator("languages")
    @classmethod
    def _has_languages(cls, given: str) -> str:
        names = [name.strip() for name in given.split(",")]
        unknown = [name for name in names if name not in LANGUAGES]
        if unknown:  # a language of another package is not among the files that travel
            raise ValueError(f"{unknown[0]!r}: an image has {', '.join(LANGUAGES)}; give these with commas")
        if DEFAULT not in names:
            raise ValueError(f"without {DEFAULT}, which checkers and the environment's self-test need; add it")
        return given

    @model_validator(mode="after")
    def _fits(self) -> ModalSettings:
        # At its limit a container is killed and its call starts over elsewhere: the program's limit must come first.
        if self.memory_limit_mb < MEMORY_LIMIT_MB + 1024:
            raise ValueError(
                f"memory_limit_mb {self.memory_limit_mb}: a program may use {MEMORY_LIMIT_MB} MiB, and the container"
                f" must hold more: give at least {MEMORY_LIMIT_MB + 1024}"
            )
        for low, high in (("cpu", "cpu_limit"), ("memory_mb", "memory_limit_mb"), ("min_containers", "max_containers")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low} {getattr(self, low)}: above {high} {getattr(self, high)}; lower it or raise {high}"
                )
        return self


def describe(error: ValidationError) -> list[str]:
    """A line for each wrong setting: variable, value, what is wrong. A token's value is never shown."""
    lines = []
    for one in error.errors():
        name = "_".join(str(part) for part in one["loc"]).upper()
        what = one["msg"].removeprefix("Value error, ")
        given = "" if "token" in name.lower() or not name else f" = {one['input']!r}"
        lines.append(f"error: {f'VERIFIER_{name}{given}: ' if name else ''}{what}")
    return lines


def modal_settings() -> ModalSettings:
    """The deploying command's settings; it ends with a line for each wrong one."""
    try:
        return ModalSettings()
    except ValidationError as error:
        raise SystemExit("\n".join(describe(error))) from None
