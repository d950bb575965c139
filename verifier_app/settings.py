"""Settings of the judge as a service: VERIFIER_* variables and flags, checked before anything starts, then frozen."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """`python -m verifier_app serve`. Each field is VERIFIER_NAME in the environment and --name on the command line."""

    model_config = SettingsConfigDict(
        env_prefix="VERIFIER_", extra="forbid", frozen=True, cli_hide_none_type=True, cli_implicit_flags=False,
        cli_kebab_case=True,
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
    tests_dir: Path | None = Field(None, description="Folder of uploaded test sets; empty: none can be uploaded.")
    require_isolation: Literal["any", "strong"] = Field("any", description="strong: refuse a host that offers less.")
    drain_s: float = Field(120.0, gt=0, description="Longest wait for running rollouts after SIGTERM.")

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
