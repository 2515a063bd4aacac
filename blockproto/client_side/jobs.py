"""The jobs of an upload of many files, page by page, those cut short once more; and the error of one that failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..common.names import show_name
from ..errors import BlockprotoError, ConnectionLost, GoingAway, Refused
from ..results import Job
from .connections import may_pass


class Jobs:
    """The jobs that have not begun, or are to begin again; iterating takes the rest.

    Args:
        jobs: all of them.

    Attributes:
        waits: whether the last page ended because the next job wants a name that is under way.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)
        self._held: list[Job] = []
        self.waits = False

    def page(self, length: int, names: set[str]) -> list[Job]:
        """The next jobs, at most ``length``, until one has a name of ``names``: the second must see what the first has made.

        ``names`` are those under way, and get those of the page.
        """
        page: list[Job] = []
        self.waits = False
        for job in self:
            if job.name in names:
                self._held.append(job)
                self.waits = True
                break
            page.append(job)
            names.add(job.name)
            if len(page) == length:
                break
        return page

    def put_back(self, jobs: Sequence[Job]) -> None:
        """``jobs`` are the next ones, in their order."""
        self._held.extend(reversed(jobs))

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        return self._held.pop() if self._held else next(self._jobs)


def is_for_later(error: BlockprotoError) -> bool:
    """Whether a small file was refused for now, not given back because its connection is gone."""
    return not isinstance(error, ConnectionLost | GoingAway) and may_pass(error)


def as_error(job: Job, error: OSError | BlockprotoError) -> BlockprotoError:
    """The outcome of a job that failed on this machine, or on the other."""
    if isinstance(error, BlockprotoError):
        return error
    refused = Refused(f"{show_name(str(job.path))}: {error.strerror or error}")
    refused.__cause__ = error
    return refused
