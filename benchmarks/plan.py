"""The plan: which scenarios there are, what each needs, and what a run does where and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .arena import Arena
from .commit import commit
from .contest import Options
from .crowded import crowded
from .dialects import dialects
from .figures import Section
from .folder import library, many, small, small_down
from .frames import frames
from .greedy import greedy
from .long import long
from .memory import memory
from .micro import micro
from .resume import resume
from .secured import tls
from .startup import startup
from .store_files import store
from .throughput import download, upload


class Scenario(NamedTuple):
    """Something that is measured.

    Attributes:
        run: measures it.
        peers: whether the peers take part.
        everywhere: whether it is measured at every place; else at the first.
        by_default: whether it is part of a run that names none.
        in_pairs: whether an older command can take part in its pairs; else it is run as a whole by both checkouts.
    """

    run: Callable[[Arena, Options], Iterator[Section]]
    peers: bool = False
    everywhere: bool = False
    by_default: bool = True
    in_pairs: bool = False


def _contest(run: Callable[[Arena, Options], Iterator[Section]], *, by_default: bool = True) -> Scenario:
    return Scenario(run, peers=True, everywhere=True, by_default=by_default, in_pairs=True)


SCENARIOS: dict[str, Scenario] = {
    "upload": _contest(upload),
    "download": _contest(download),
    "small": _contest(small),
    "small-down": _contest(small_down),
    "library": _contest(library),
    "many": _contest(many, by_default=False),
    "startup": Scenario(startup, peers=True, in_pairs=True),
    "memory": Scenario(memory),
    "store": Scenario(store, everywhere=True),
    "frames": Scenario(frames, everywhere=True),
    "commit": Scenario(commit),
    "resume": Scenario(resume),
    "long": Scenario(long),
    "crowded": Scenario(crowded),
    "dialects": Scenario(dialects, in_pairs=True),
    "tls": Scenario(tls, in_pairs=True),
    "greedy": Scenario(greedy),
    "micro": Scenario(micro),
}


class Step(NamedTuple):
    """One scenario at one place."""

    scenario: str
    place: str


def wanted(names: Sequence[str] | None) -> list[str]:
    """The scenarios of a run, in the order in which they are run.

    Args:
        names: what was asked for; None: what is part of a run by default.

    Raises:
        ValueError: there is none of that name; its text is the name.
    """
    for name in names or ():
        if name not in SCENARIOS:
            raise ValueError(name)
    return [name for name, one in SCENARIOS.items() if (one.by_default if names is None else name in names)]


def plan(names: Sequence[str], places: Sequence[str]) -> list[Step]:
    """What a run does, place by place."""
    return [
        Step(name, place)
        for number, place in enumerate(places)
        for name in names
        if number == 0 or SCENARIOS[name].everywhere
    ]
