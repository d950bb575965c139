"""Generation servers that come and go: their list in a file, or behind a DNS name, read again while the run goes.

A file holds YAML, a list of addresses or of `{url: ADDRESS, leaving: true}`, or plain lines of `ADDRESS [leaving]`.
`dns://NAME:PORT` means every A record of the name, such as the pods behind a headless Kubernetes service.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from environments.common.option_rules import StrictModel, Url, expanded
from environments.common.settings import ConfigError, without_password

logger = logging.getLogger(__name__)

DNS = "dns://"
WATCH_S = 2.0
"""How often the list is read again, in seconds."""


class ListedServer(StrictModel):
    """A server of the list. leaving: it finishes its rollouts and gets no new ones."""

    url: Url
    leaving: bool = False


def _source(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(DNS):
        return expanded(value)
    try:
        parts = urlsplit(value)
        whole = parts.hostname and parts.port and value == f"{DNS}{parts.netloc}" and "@" not in parts.netloc
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{value!r} is no name with a port: write it as dns://NAME:PORT")
    return value


ServerSource = Annotated[str, BeforeValidator(_source)]
"""An option that names a list of servers: the path of a file, or dns://NAME:PORT."""


class ServerList:
    """The list at one source.

    Args:
        option: whose value the source is, for messages.
    """

    def __init__(self, source: str, option: str) -> None:
        self.source, self.option = source, option

    def read(self) -> tuple[ListedServer, ...]:
        """The servers as they are listed now, at least one.

        Raises:
            ConfigError: no such file or name, or what it holds is no list of servers.
        """
        listed = self._resolved() if self.source.startswith(DNS) else self._parsed(self._text())
        if not listed:
            raise self._wrong("is empty; write the address of one server or more, such as http://HOST:8001")
        try:
            without_password(f"{self.option} = {self.source}", [one.url for one in listed])
        except ValueError as error:
            raise ConfigError(str(error)) from None
        urls = [one.url for one in listed]
        if twice := sorted({url for url in urls if urls.count(url) > 1}):
            raise self._wrong(f"names {twice[0]} twice; leave one out")
        return tuple(listed)

    def _wrong(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.option} = {self.source}: {reason}")

    def _resolved(self) -> list[ListedServer]:
        parts = urlsplit(self.source)
        assert parts.hostname is not None
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port, socket.AF_INET, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._wrong(f"the name does not resolve ({reason}); correct it, or start the servers first") from None
        return [ListedServer(url=f"http://{host}:{parts.port}") for host in sorted({str(one[4][0]) for one in found})]

    def _text(self) -> str:
        try:
            return Path(self.source).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise self._wrong("no such file; write the servers' addresses into it, one a line") from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._wrong(f"cannot be read ({error})") from None

    def _parsed(self, text: str) -> list[ListedServer]:
        try:
            held = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise self._wrong(f"not valid YAML: {' '.join(str(error).split())}") from None
        if isinstance(held, str):
            held = [_from_line(line) for line in text.splitlines() if line.partition("#")[0].strip()]
        if held is None:
            return []
        if not isinstance(held, list):
            raise self._wrong(f"holds a {type(held).__name__}; write a list of addresses, one a line")
        entries = [{"url": entry} if isinstance(entry, str) else entry for entry in held]
        try:
            listed = TypeAdapter(list[ListedServer]).validate_python(entries)
        except ValidationError as error:
            fault = error.errors()[0]
            place, *field = fault["loc"]
            what = f"entry {int(place) + 1}{''.join(f', {name}' for name in field)}"
            raise self._wrong(
                f"{what}: {fault['msg'].removeprefix('Value error, ')}; write ADDRESS, or "
                "{url: ADDRESS, leaving: true}"
            ) from None
        return [one.model_copy(update={"url": one.url.rstrip("/")}) for one in listed]


def _from_line(line: str) -> Any:
    words = line.partition("#")[0].split()
    return {"url": words[0], "leaving": True} if words[1:] == ["leaving"] else " ".join(words)


class WatchedServers:
    """A list that is read again every WATCH_S seconds in a thread of its own, once it is started.

    A list that cannot be read, or that is empty, changes nothing: the last good one counts, and one warning is logged.

    Raises:
        ConfigError: the first read fails.
    """

    def __init__(self, servers: ServerList) -> None:
        self._list = servers
        self.current = servers.read()
        self._broken = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str:
        """Where the list is."""
        return self._list.source

    def staying(self) -> list[str]:
        """The addresses of the servers that do not leave; ConfigError where there is none."""
        urls = [one.url for one in self.current if not one.leaving]
        if not urls:
            raise ConfigError(f"{self._list.option} = {self.source}: every server is leaving; list one that stays")
        return urls

    def look(self) -> tuple[ListedServer, ...]:
        """Reads the list once more; the servers that count now."""
        try:
            found = self._list.read()
        except ConfigError as error:
            if not self._broken:
                logger.warning("%s. The last list is used until that is fixed: %s", error, self._names())
            self._broken = True
            return self.current
        if self._broken:
            logger.info("%s can be read again", self.source)
        self._broken, self.current = False, found
        return found

    def start(self) -> None:
        """Begins to read it again and again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="server list", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread; a look-up that hangs is left behind."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(WATCH_S):
            self.look()

    def _names(self) -> str:
        return ", ".join(one.url for one in self.current)


def watched(source: str | None, option: str) -> WatchedServers | None:
    """The watched list of a source; None where the servers are named one by one.

    Raises:
        ConfigError: the list cannot be read.
    """
    return None if source is None else WatchedServers(ServerList(source, option))


def either(servers: Sequence[str], default: Sequence[str], source: str | None, options: tuple[str, str]) -> None:
    """ValueError where both options name servers. options: of the addresses and of the source."""
    if source is not None and list(servers) != list(default):
        raise ValueError(
            f"{options[0]} names {', '.join(servers)} and {options[1]} names {source}: leave one of them out"
        )
