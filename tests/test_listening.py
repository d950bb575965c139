"""Where vLLM listens: IPv6 is served and has an address, what cannot be bound is one error."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from environments.common.settings import ConfigError
from environments.launch.serve_model import ServeConfig, _check_port


def config(host: str, port: int = 8001) -> ServeConfig:
    return ServeConfig(model=Path("m"), host=host, port=port)


@pytest.mark.parametrize(
    ("host", "url", "local"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("::1", "http://[::1]:8001", "http://[::1]:8001"),
        ("[::1]", "http://[::1]:8001", "http://[::1]:8001"),
        ("::", "http://[::]:8001", "http://[::1]:8001"),
        ("0.0.0.0", "http://0.0.0.0:8001", "http://127.0.0.1:8001"),
        ("node-3", "http://node-3:8001", "http://node-3:8001"),
    ],
)
def test_an_address_is_written_as_a_url(host: str, url: str, local: str) -> None:
    assert (config(host).url, config(host).local_url) == (url, local)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "[::1]"])
def test_a_port_that_is_taken_is_found(host: str) -> None:
    family = socket.AF_INET if host == "127.0.0.1" else socket.getaddrinfo(host.strip("[]"), 0)[0][0]
    try:
        taken = socket.socket(family)
        taken.bind((host.strip("[]"), 0))
    except OSError:
        pytest.skip(f"{host} is not there")
    with taken:
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen there"):
            _check_port(config(host, taken.getsockname()[1]))


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "no-such-host.invalid", "a" * 300, "1.2.3.4.5"])
def test_an_address_that_is_not_ours_is_one_error(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^host = .*, port = 8001: cannot listen there \("):
        _check_port(config(host))
