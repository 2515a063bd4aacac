"""What is said of entries that a server's listing passed over: a sentence for each, and one for those it did not name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import BlockprotoError, LeftOut
from ..errors import NameRefused, NotPermitted
from ..names import show_name
from .output import explain, say, show_count

_WHY = {"link": "a symbolic link", "special": "a special file"}
_NAME = "its name cannot travel"
_UNREADABLE = "the server cannot read it"
_OTHER = "the server left it out, for a reason that this version does not know"
_ADVICE = {
    "name": "rename it there",
    "unreadable": "let the server's user read it",
    "other": "use a newer version",
}


@dataclass(frozen=True, slots=True)
class Missed:
    """Something that should have come and did not: what it is called for people, what is wrong, and what to do."""

    name: str
    error: BlockprotoError
    advice: str


def tell_left_out(part: LeftOut) -> int:
    """Name links and special files, as ``put`` does; returns how many there were."""
    for name in part.names:
        say(f"{show_name(name)}: {_WHY[part.reason]}, left out")
    more = part.count - len(part.names)
    if more > 0:
        say(f"{show_count(more, 'more ' + _WHY[part.reason].removeprefix('a '))}, left out")
    return part.count


def missed_of(part: LeftOut, above: str) -> Iterator[Missed]:
    """What a listing of ``above`` passed over and should not have: each thing that was named, and the others in one."""
    advice = _ADVICE[part.reason]
    for name in part.names:
        yield Missed(name or above or "/", _error_of(part), advice)
    more = part.count - len(part.names)
    if more > 0:
        yield Missed(f"{more:,} more below '{above or '/'}'", _error_of(part), advice)


def say_missed(missed: Missed) -> None:
    """Say it where it fails nothing."""
    say(explain(missed.error, missed.name, missed.advice))


def _error_of(part: LeftOut) -> BlockprotoError:
    if part.reason == "name":
        return NameRefused(_NAME)
    return NotPermitted(_UNREADABLE if part.reason == "unreadable" else _OTHER)
