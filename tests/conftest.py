"""What several folders of tests share: the real model, and one running vLLM for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from environments.launch.processes import Child, free_port

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class VllmServer:
    """A running vLLM: fp32, eager, prefix cache on, `disk` weight transfer. A test that publishes weights leaves them
    there: begin with a publication where the served weights matter."""

    url: str
    model: Path
    child: Child


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct in fp32; written once when it is not there yet."""
    from trainer.pretrained import write_model

    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The session's vLLM, started when the first test asks for it and stopped at the end."""
    from environments.launch.serve_model import ServeConfig, serve_command

    config = ServeConfig(model=smollm2, port=free_port(), enforce_eager=True, kv_cache_gib=1.0)
    command, env = serve_command(config)
    child = Child("vLLM", command, tmp_path_factory.mktemp("vllm") / "vllm.log", env)
    try:
        child.wait_ready(f"{config.url}/health", 280.0)
        yield VllmServer(config.url, smollm2, child)
    finally:
        child.stop()
