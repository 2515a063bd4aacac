"""``--range``: some bytes of one file, ``FIRST-LAST``, ``FIRST-`` to its end, or the last ``-COUNT`` of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

FORMS = "FIRST-LAST|FIRST-|-COUNT"


@dataclass(frozen=True, slots=True)
class Span:
    """A range as it was typed.

    Attributes:
        first: position of the first byte; None: the last ``last`` bytes are meant.
        last: position of the last byte; None: to the end.
    """

    first: int | None
    last: int | None

    def of(self, filesize: int) -> tuple[int, int]:
        """The first and last positions in a file of so many bytes; the last one may lie behind its end."""
        end = max(filesize - 1, 0)
        if self.first is None:
            return max(filesize - (self.last or 0), 0), end
        return self.first, max(self.first, end) if self.last is None else self.last


def parse_span(text: str | None) -> Span | None:
    """The range of a ``--range``, if it was given; raises click.UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{0,18})-([0-9]{0,18})", text)
    first, last = (int(digits) if digits else None for digits in match.groups()) if match else (None, None)
    if (first is None and not last) or (first is not None and last is not None and first > last):
        raise click.UsageError(
            f"--range '{text}': write FIRST-LAST, two byte positions, FIRST not above LAST, as in 0-1023; FIRST- for all "
            "from there on, or -COUNT for the last bytes"
        )
    return Span(first, last)
