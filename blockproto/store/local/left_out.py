"""The names of a folder that its listing passes over.

They are kept rising beside those that are listed, for each reason apart, so that what lies between two names of a page is
counted without looking at each of it.

Spec: BP1-LST-017.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .. import LEFT_OUT_NAMES_MAX, LeftOut, Reason


class LeftOutNames:
    """The names in one folder that are not listed, rising.

    Args:
        found: the names and why; all of them stand in the window of names that is kept.
    """

    __slots__ = ("_of_reason", "count")

    def __init__(self, found: Sequence[tuple[bytes, Reason]]) -> None:
        of_reason: dict[Reason, list[bytes]] = {}
        for name, reason in sorted(found):
            of_reason.setdefault(reason, []).append(name)
        self._of_reason = sorted(of_reason.items())
        self.count = len(found)

    def tell(self, left_out: LeftOut, above: bytes, floor: bytes, end: bytes | None) -> None:
        """Add to ``left_out`` the names from ``floor`` on that are less than ``end``; None: all of them."""
        for reason, names in self._of_reason:
            first = bisect_left(names, floor)
            last = len(names) if end is None else bisect_left(names, end, first)
            if first < last:
                some = [above + name for name in names[first : min(last, first + LEFT_OUT_NAMES_MAX)]]
                left_out.add(reason, last - first, some)


NONE_LEFT_OUT = LeftOutNames(())
"""Of a folder all of whose names are listed: most of them are."""
