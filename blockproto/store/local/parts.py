"""Parts: a batch with more whole files than may be open at once is decided in several, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from .. import FileOutcome, Outcome, StoreFiles, Work

Decide = Callable[[Sequence[Work]], Sequence[Outcome]]
_Part = list[tuple[int, Work]]
"""Works, or some files of them, each with its place in the batch."""


def decide_in_parts(works: Sequence[Work], files_max: int, decide: Decide) -> Sequence[Outcome]:
    """Decide ``works`` by calls of ``decide`` with at most ``files_max`` whole files each; most often that is one."""
    if sum(len(work.files) for work in works if isinstance(work, StoreFiles)) <= files_max:
        return decide(works)
    found: list[list[Outcome]] = [[] for _ in works]
    for part in _parts(works, files_max):
        outcomes = decide([work for _, work in part])
        for (at, _), outcome in zip(part, outcomes, strict=True):
            found[at].append(outcome)
    return [_joined(work, outcomes) for work, outcomes in zip(works, found, strict=True)]


def _parts(works: Sequence[Work], files_max: int) -> Iterator[_Part]:
    part: _Part = []
    room = files_max
    for at, work in enumerate(works):
        if not isinstance(work, StoreFiles):
            part.append((at, work))
            continue
        files = work.files
        while len(files) > room:
            part.append((at, replace(work, files=files[:room])))
            yield part
            files, part, room = files[room:], [], files_max
        part.append((at, replace(work, files=files)))
        room -= len(files)
    yield part


def _joined(work: Work, outcomes: list[Outcome]) -> Outcome:
    if not isinstance(work, StoreFiles):
        return outcomes[0]
    each: Iterator[FileOutcome] = chain.from_iterable(one for one in outcomes if isinstance(one, tuple))
    return tuple(each)
