"""Models by their name on the hub, wherever a folder is taken: downloaded once, into the hub's own cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

from environments.common.errors import ConfigError

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""Configuration and tokenizer: all that is needed where somebody else has the weights."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ANSWER_S = 10.0  # for the first word of the hub; without an end it tries for a minute


def is_hub_name(model: str | Path) -> bool:
    """Whether a text that names no folder could be a model's name on the hub, OWNER/NAME."""
    text = str(model)
    return bool(_NAME.fullmatch(text)) and not Path(text).exists() and not text.startswith("models/")


def model_folder(model: str | Path, field: str = "model", *, weights: bool = True, instead: str = "") -> Path:
    """The folder of a model: itself, or the hub's copy of what it names, downloaded where this machine lacks it.

    Args:
        field: the option that named it, for messages.
        weights: False for the configuration and the tokenizer alone.
        instead: what else the user can do where it cannot be had.

    Raises:
        ConfigError: neither a folder nor a name on the hub, or the hub does not have it, wants a permission, or cannot
            be reached; one line, in seconds.
    """
    if (Path(model) / "config.json").is_file() or (not weights and (Path(model) / "tokenizer_config.json").is_file()):
        return Path(model)
    if not is_hub_name(model):
        raise ConfigError(
            f"{field} {model}: no model there (no config.json); give a model's folder, or a name on the hub "
            f"(OWNER/NAME){instead}"
        )
    patterns = [*SMALL_FILES, *(WEIGHTS if weights else ())]
    return _cached(str(model), patterns, weights=weights) or _downloaded(str(model), patterns, field, instead)


def _cached(name: str, patterns: list[str], *, weights: bool) -> Path | None:
    """The hub's copy on this machine, where it is whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not there, or not whole: of whichever kind
        return None
    return folder if _is_whole(folder, weights=weights) else None


def _is_whole(folder: Path, *, weights: bool) -> bool:
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return False
    if not weights:
        return True
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / name).is_file() for name in names)


def _downloaded(name: str, patterns: list[str], field: str, instead: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    way_out = f"give a model's folder{instead}"
    try:
        HfApi().model_info(name, timeout=_ANSWER_S)
        # Its progress is on stderr; an interrupted download resumes.
        return Path(snapshot_download(name, allow_patterns=patterns))
    except OfflineModeIsEnabled:
        reason = f"not on this machine, and HF_HUB_OFFLINE forbids to download it: unset it, or {way_out}"
    except GatedRepoError:
        reason = f"its owner wants a permission: ask for it on the hub and set HF_TOKEN, or {way_out}"
    except RepositoryNotFoundError:
        reason = f"neither a folder nor a model on the hub (a private one needs HF_TOKEN): {way_out}"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        reason = f"the hub says {status}: run the command again, or {way_out}"
    except Exception as error:  # of whichever HTTP library the client is built on
        reason = (
            f"no folder, and the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}): run the "
            f"command again to resume, or {way_out}"
        )
    raise ConfigError(f"{field} {name}: {reason}")
