"""What becomes of the files of one ``put`` or ``get``: counted, said as it happens, and summed up at the end.

A file that is too big for what is free says nothing of the next one: it fails alone. Where there is no room for a few
kilobytes a disk is full, and the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import BlockprotoError, Receipt
from ..client_side.receipts import Arrived
from ..common.names import show_name
from ..errors import StoreFull
from .left_out import LeftOutTeller
from .output import (
    Status,
    ends_run,
    fail,
    print_failure,
    print_receipt,
    say,
    show_count,
    show_size,
    status_of,
)

FULL_LENGTH = 4096
"""Bytes of a file: where there is no room for so few, the disk is full."""
NAMED_MAX = 5
"""So many files for which there is no room are named on stderr; the others are counted."""


def ends_files(error: BaseException, filesize: int | None) -> bool:
    """Whether every other file of the run would be refused for the same reason.

    Args:
        error: why one was refused.
        filesize: how many bytes that one has; None: nobody knows.
    """
    if isinstance(error, StoreFull):
        return filesize is not None and filesize <= FULL_LENGTH
    return ends_run(error)


@dataclass(slots=True)
class Tally:
    """The counts of one command.

    Attributes:
        left_out: tells what does not travel.
        as_json: whether scripts read an object for each file.
        status: the exit code, as it stands.
        files: those that ended well, with those that were there already and those that were left.
        filesize: the bytes of these.
        already: how many of them had the same content there (here) already.
        left: in the way of how many something else was left as it was.
        failed: how many went wrong.
        pending: the names that nothing is known of yet.
        ended: why the run has ended before all files were begun, or None.
        told: how many failures were said.
        without_room: how many failed because there was no room.
        not_begun: how many were not begun when the run ended.
    """

    left_out: LeftOutTeller
    as_json: bool
    status: int = Status.DONE
    files: int = 0
    filesize: int = 0
    already: int = 0
    left: int = 0
    failed: int = 0
    pending: dict[str, None] = field(default_factory=dict)
    ended: BlockprotoError | None = None
    told: int = 0
    without_room: int = 0
    not_begun: int = 0

    def arrived(self, outcome: Arrived | Receipt, size: int) -> None:
        """Count a file of ``size`` bytes that ended well, and print its object."""
        self.files += 1
        self.filesize += size
        self.already += outcome.outcome == "there"
        self.left += outcome.outcome == "left"
        if self.as_json:
            print_receipt(outcome if isinstance(outcome, Receipt) else outcome.receipt())

    def failure(self, what: str, error: BaseException, name: str, advice: str = "") -> None:
        """Count what went wrong, say it of ``what``, and print the object of the file ``name``."""
        self.without_room += isinstance(error, StoreFull)
        if isinstance(error, StoreFull) and self.without_room > NAMED_MAX:
            self.quiet_failure(error, name)
            return
        self.told += 1
        fail(error, what, advice)
        self.quiet_failure(error, name)

    def quiet_failure(self, error: BaseException, name: str) -> None:
        """As ``failure``, where people have been told enough."""
        self.failed += 1
        self.status = max(self.status, status_of(error))
        if self.as_json:
            print_failure(name, error)

    def skipped(self, name: str, why: BaseException) -> None:
        """Count a file that was not begun, and print its object: what ended the run is why."""
        self.not_begun += 1
        if self.as_json:
            print_failure(name, why)

    def sum_up(self, elapsed_s: float, where: str, sent: str, already: str, left: str) -> None:
        """Say it all in one sentence, each count with its words; ``sent`` only beside ``already`` and ``left``.

        ``where`` the files are is said if there are any.
        """
        if self.without_room > NAMED_MAX:
            say(f"there is no room for {show_count(self.without_room - NAMED_MAX, 'more file')} either")
        others = self.already + self.left
        parts = [f"{show_count(self.files, 'file')}, {show_size(self.filesize)} in {elapsed_s:.1f} s"]
        parts[0] += show_name(f", {where}") if self.files else ""
        parts += [f"{self.files - others} {sent}"] if others and sent else []
        counts = {
            already: self.already,
            left: self.left,
            "left out": self.left_out.count,
            "failed": self.failed,
            "not begun": self.not_begun,
        }
        parts += [f"{count} {words}" for words, count in counts.items() if count]
        say("; ".join(parts))
