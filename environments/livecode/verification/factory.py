"""The table of verifiers: what `env.verifier` can name. Another package adds one; see docs/how-to/verifier.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from environments.common.plugins import check_known, find

if TYPE_CHECKING:
    from environments.livecode.config import LivecodeEnvConfig
    from environments.livecode.verification.base import Verifier

Factory = Callable[["LivecodeEnvConfig"], "Verifier"]
GROUP = "livecode.verifiers"

# What only one kind needs is imported only for it.


def _local(config: LivecodeEnvConfig) -> Verifier:
    from environments.livecode.verification.local import LocalVerifier

    return LocalVerifier(
        workers=config.verifier_workers,
        deadline_s=config.verifier_deadline_s,
        tests_dir=_tests_dir(config),
    )


def _http(config: LivecodeEnvConfig) -> Verifier:
    from environments.livecode.verification.http import HttpVerifier

    return HttpVerifier(
        config.verifier_urls, concurrency=config.verifier_concurrency, deadline_s=config.verifier_deadline_s
    )


def _modal(config: LivecodeEnvConfig) -> Verifier:
    from environments.livecode.verification.modal import ModalVerifier

    return ModalVerifier(
        app=config.modal_app,
        volume=config.modal_volume,
        environment=config.modal_environment,
        concurrency=config.verifier_concurrency,
        starts_per_s=config.verifier_starts_per_s / config.part.count,  # the account's, which all shards share
        deadline_s=config.verifier_deadline_s,
    )


VERIFIERS: dict[str, Factory] = {"local": _local, "http": _http, "modal": _modal}


def check_options(config: LivecodeEnvConfig) -> None:
    """ValueError, with the fix, for options of verifiers that do not fit together; ConfigError for an unknown one."""
    check_known(GROUP, VERIFIERS, config.verifier, "verifier")
    if config.verifier in VERIFIERS and (config.verifier == "http") != bool(config.verifier_urls):
        raise ValueError(
            f"verifier {config.verifier} with verifier_urls {config.verifier_urls}: http needs the addresses of its "
            "services, and nothing else takes them"
        )
    if config.verifier_strategy == "problem" and config.verifier in ("local", "http"):
        raise ValueError(
            f"verifier_strategy problem with verifier {config.verifier}: it is about containers; set verifier modal, "
            "or verifier_strategy rollout"
        )


def build_verifier(config: LivecodeEnvConfig) -> Verifier:
    """The verifier that `env.verifier` names.

    Raises:
        ConfigError: no such verifier is installed, or its package cannot be imported.
    """
    return find(GROUP, VERIFIERS, config.verifier, "env.verifier")(config)


def _tests_dir(config: LivecodeEnvConfig) -> Path:
    """Built problems bring their test sets; other large ones are written into the run's folder."""
    if config.tests_dir:
        return Path(config.tests_dir)
    # Imported here: the options' help, which names the verifiers, should not pay for pyarrow.
    from environments.livecode.problems.stored_tests import TESTS, is_built

    problems = Path(config.problems)
    if is_built(problems):
        return (problems if problems.is_dir() else problems.parent).parent / TESTS
    return Path(config.run_dir) / "tests"
