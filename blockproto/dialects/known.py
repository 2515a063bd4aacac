"""The dialects this program knows, by name: the only place that picks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import Dialect
from .sourceid import Sourceid

DIALECTS: dict[str, Callable[[], Dialect]] = {
    Sourceid.name: Sourceid,
}


def dialects_of(names: Iterable[str]) -> list[Dialect]:
    """The dialects of these names, each once.

    Raises:
        ValueError: there is none of that name.
    """
    unknown = [name for name in names if name not in DIALECTS]
    if unknown:
        raise ValueError(f"there is no dialect {unknown[0]!r}: choose among {', '.join(DIALECTS)}")
    return [DIALECTS[name]() for name in dict.fromkeys(names)]
