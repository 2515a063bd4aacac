"""What becomes of the files of one ``put`` or ``get``: counted, said as it happens, and summed up at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import Receipt
from .left_out import LeftOutTeller
from .output import Status, fail, print_failure, print_receipt, say, show_count, show_size


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

    def arrived(self, receipt: Receipt, size: int) -> None:
        """Count a file of ``size`` bytes that ended well, and print its object."""
        self.files += 1
        self.filesize += size
        self.already += receipt.outcome == "there"
        self.left += receipt.outcome == "left"
        if self.as_json:
            print_receipt(receipt)

    def failure(self, what: str, error: BaseException, name: str, advice: str = "") -> None:
        """Count what went wrong, say it of ``what``, and print the object of the file ``name``."""
        self.failed += 1
        self.status = max(self.status, fail(error, what, advice))
        if self.as_json:
            print_failure(name, error)

    def sum_up(self, elapsed_s: float, sent: str, already: str, left: str) -> None:
        """Say it all in one sentence, each count with its words; ``sent`` only beside ``already`` and ``left``."""
        others = self.already + self.left
        parts = [f"{show_count(self.files, 'file')}, {show_size(self.filesize)} in {elapsed_s:.1f} s"]
        parts += [f"{self.files - others} {sent}"] if others and sent else []
        counts = {
            already: self.already,
            left: self.left,
            "left out": self.left_out.count,
            "failed": self.failed,
        }
        parts += [f"{count} {words}" for words, count in counts.items() if count]
        say("; ".join(parts))
