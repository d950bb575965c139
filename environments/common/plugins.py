"""Parts that other packages add: a table of our own by name, and entry points of installed packages beside it.

Groups: `livecode.verifiers`, `livecode.objectives`, `livecode.sources`, `livecode.trackers`; docs/how-to has a page for
each. The judge finds its languages (`livecode.languages`) by itself. A name of our own table cannot be taken by another
package.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from environments.common.errors import ConfigError

T = TypeVar("T")


def known(group: str, own: Mapping[str, Any]) -> list[str]:
    """Every name that can be chosen: our own in the table's order, then those of installed packages."""
    return list(dict.fromkeys([*own, *sorted(entry_points(group=group).names)]))


def check_known(group: str, own: Mapping[str, Any], name: str, field: str) -> None:
    """Raises ConfigError for a name that neither the table nor an installed package has."""
    if name not in own and name not in entry_points(group=group).names:
        raise ConfigError(
            f"{field} {name!r} is unknown: choose one of {', '.join(known(group, own))}, or install the package that "
            f"adds it (entry-point group {group})"
        )


def find(group: str, own: Mapping[str, T], name: str, field: str) -> T:
    """The part of that name: our own, or what an installed package's entry point names.

    Raises:
        ConfigError: an unknown name, one that two packages give, or a part that cannot be imported.
    """
    if name in own:
        return own[name]
    check_known(group, own, name, field)
    found = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if len(found) > 1:
        raise ConfigError(f"{field} {name!r}: given by {' and '.join(sorted(found))}; uninstall all but one")
    ((value, entry),) = found.items()
    try:
        part: T = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{field} {name!r}: {value} of group {group} cannot be imported ({error}); fix or uninstall that package"
        ) from error
    return part


def of_kind(part: object, kind: type[T], field: str, name: str) -> T:
    """The part, where it is what its group asks for; ConfigError otherwise."""
    if not isinstance(part, kind):
        raise ConfigError(f"{field} {name!r}: its package gives a {type(part).__name__}, need a {kind.__name__}")
    return part
