"""The dialects by name; the only place that picks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from .dialect import Dialect
from .sending import DialectSender
from .sourceid import Sourceid
from .sourceid_client import SourceidSender
from .struct82 import Struct82
from .struct82_client import CONNECTIONS_DEFAULT, Struct82Sender

DIALECTS: dict[str, Callable[[], Dialect]] = {
    Sourceid.name: Sourceid,
    Struct82.name: Struct82,
    f"{Struct82.name}-from-0": partial(Struct82, 0),
    f"{Struct82.name}-from-1": partial(Struct82, 1),
}
"""The last two are for senders whose numbering cannot be detected (BP1-S82-015)."""

SENDERS: dict[str, Callable[[int | None], DialectSender]] = {
    Sourceid.name: lambda connections: SourceidSender(),
    Struct82.name: lambda connections: Struct82Sender(connections or CONNECTIONS_DEFAULT),
}
"""The dialects in which this program can send; called with the number of connections, or None for the default."""

ONE_CONNECTION = {Sourceid.name}
"""Dialects that send a file over one connection only."""


def dialects_of(names: Iterable[str]) -> list[Dialect]:
    """The dialects of these names, each once.

    Raises:
        ValueError: there is no dialect of that name.
    """
    unknown = [name for name in names if name not in DIALECTS]
    if unknown:
        raise ValueError(f"there is no dialect {unknown[0]!r}: choose among {', '.join(DIALECTS)}")
    return [DIALECTS[name]() for name in dict.fromkeys(names)]
