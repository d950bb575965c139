"""A list of servers that is read again: what it may hold, and what a fault in mid-run leaves of it."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from environments.common.server_list import ServerList, ServerSource, WatchedServers
from environments.common.settings import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "http://a:1\nhttp://b:2/ leaving\n",
        "# the fleet\nhttp://a:1\n\nhttp://b:2  leaving   # spot\n",
        "- http://a:1\n- {url: http://b:2, leaving: true}\n",
        '["http://a:1", {"url": "http://b:2", "leaving": true}]',
    ],
)
def test_a_file_holds_lines_or_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "servers").write_text(text)
    listed = ServerList(str(tmp_path / "servers"), "servers_from").read()
    assert [(one.url, one.leaving) for one in listed] == [("http://a:1", False), ("http://b:2", True)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty; write the address"),
        ("# nobody\n", "is empty"),
        ("[]", "is empty"),
        ("a: 1\n", "holds a dict; write a list of addresses"),
        ("3\n", "holds a int"),
        ("- [", "not valid YAML"),
        ("http://a:1\nlocalhost:8001\n", r"entry 2, url: 'localhost:8001' is no address.*http://HOST:PORT"),
        ("http://a:1\nhttp://b:1 gone\n", "entry 2, url: .*no address"),
        ("- {url: http://a:1, leave: true}\n", "entry 1, leave: Extra inputs"),
        ("- 8001\n", "entry 1"),
        ("http://a:1\nhttp://a:1/\n", "names http://a:1 twice"),
        ("http://me:secret@a:1\n", "an address with user and password"),
    ],
)
def test_a_file_that_is_no_list_is_one_error_with_option_and_file(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "servers"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"servers_from = {path}: .*{reason}"):
        ServerList(str(path), "servers_from").read()


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; write the servers' addresses"):
        ServerList(str(tmp_path / "none"), "servers_from").read()


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, family: int, kind: int) -> list[Any]:
        if host != "vllm.training":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 6, "", (address, port)) for address in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    listed = ServerList("dns://vllm.training:8001", "weights.servers_from").read()
    assert [one.url for one in listed] == ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]
    with pytest.raises(ConfigError, match=r"dns://other:1: the name does not resolve \(Name or service not known\)"):
        ServerList("dns://other:1", "weights.servers_from").read()


@pytest.mark.parametrize("value", ["dns://vllm", "dns://:8001", "dns://a:b", "dns://a:1/path", "dns://u:p@a:1"])
def test_a_name_needs_a_port_and_nothing_else(value: str) -> None:
    with pytest.raises(ValidationError, match="write it as dns://NAME:PORT"):
        TypeAdapter(ServerSource).validate_python(value)


def test_a_fault_in_mid_run_keeps_the_last_good_list_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "servers"
    path.write_text("http://a:1\nhttp://b:1\n")
    watching = WatchedServers(ServerList(str(path), "servers_from"))
    caplog.set_level(logging.INFO)
    for broken in ("", "- [", None):
        path.unlink() if broken is None else path.write_text(broken)
        assert [one.url for one in watching.look()] == ["http://a:1", "http://b:1"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "The last list is used until that is fixed: http://a:1, http://b:1" in caplog.text
    path.write_text("http://c:1\n")
    assert [one.url for one in watching.look()] == ["http://c:1"]
    assert caplog.records[-1].message == f"{path} can be read again"
    path.write_text("http://c:1 leaving\n")
    watching.look()
    with pytest.raises(ConfigError, match="every server is leaving; list one that stays"):
        watching.staying()
