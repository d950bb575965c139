"""What the clients of HTTP servers have in common: proxies, pauses between two tries, and text as it comes in."""

from __future__ import annotations

import email.utils
import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from requests.utils import should_bypass_proxies

from environments.common.errors import ConfigError

BUSY = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which a later try may succeed: too slow, in conflict, too early, too many requests."""

LONGEST_WAIT_S = 300.0
"""The most of what a server's Retry-After asks for that is waited at one go."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_busy(status: int) -> bool:
    """Whether a later try may have another answer."""
    return status >= 500 or status in BUSY


def pause_s(headers: Mapping[str, str], usual: float) -> float:
    """Seconds before the next try: the server's Retry-After where it is longer than the usual pause, within bounds.

    Both forms of RFC 9110, section 10.2.3: seconds and a date.
    """
    told = headers.get("retry-after", "").strip()
    try:
        wanted = float(told)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(told)
        except ValueError:
            return usual
        wanted = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(wanted, usual), LONGEST_WAIT_S) if wanted == wanted else usual


def remote_client(field: str, urls: Sequence[str], **options: Any) -> httpx.AsyncClient:
    """A client of servers that may be far away: by the proxy of the environment's variables, but for the addresses
    that NO_PROXY names (names, suffixes, addresses, networks) and this machine's own.

    Raises:
        ConfigError: the variables name a proxy that cannot be used.
    """
    direct: dict[str, None] = {}
    for url in urls:
        if is_this_machine(urlsplit(url).hostname or "") or should_bypass_proxies(url, None):
            direct[_pattern(url)] = None
    everything = all(_pattern(url) in direct for url in urls)  # then a broken proxy variable does not matter
    try:
        return httpx.AsyncClient(mounts=direct, trust_env=not everything, **options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"{field} = {', '.join(map(shown, urls))}: the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be "
            f"used ({error}). Change the variable, or name the server in NO_PROXY."
        ) from None


def _pattern(url: str) -> str:
    host = urlsplit(url).hostname or ""
    return f"all://[{host}]" if ":" in host else f"all://{host}"


def is_this_machine(host: str) -> bool:
    """Whether a name or address (without brackets) is the loopback's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def shown(url: str) -> str:
    """The address as it may be shown: without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def whole(text: str) -> str:
    """Text that can be written as UTF-8: each surrogate without its other half becomes U+FFFD.

    JSON may hold them (an answer that was cut within an emoji, say); no encoder of UTF-8 takes them.
    """
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
