"""How many bytes of whole small files a server holds in memory at once, for each principal and in all.

    held = the payload of every frame of files that is coming, or that was not answered yet and is not written either

A principal may always have one frame. Another begins only while less than ``HELD_EACH`` is held for that principal and less
than ``HELD_MAX`` for all; who comes when there is no room waits in the line of its principal, and the principals are in
turn. So nobody who holds on to memory keeps others from theirs, and what is not taken keeps the credit of its sender
(BP1-FIL-011).

What waits is in memory, too: up to the allowance of a stream. So no more than ``WAITING_EACH`` frames of a principal wait,
each of another stream, and no more than ``WAITING_MAX`` of all; one more is refused with BUSY.

Without a token, whoever has the same address counts as one principal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import Code, Refused

HELD_EACH = 8 << 20
"""Bytes from which on a principal begins no second frame: as much as keeps the committer busy while more comes."""
HELD_MAX = 64 << 20
"""Bytes from which on no principal does."""

WAITING_EACH = 32
"""Streams of one principal that wait at most: a client has four on a connection, if it has so much to do."""
WAITING_MAX = 128
"""Streams that wait at most; above that everybody may have one that does."""
BUSY_AGAIN_MS = 1000
BUSY_TEXT = "too many small files wait to be stored here"

Whose = bytes | str
"""A principal, or an address of those who are none."""
Granted = Callable[[int], None]
"""Hears the length of the frame that is held now."""


@dataclass(slots=True, eq=False)
class _Share:
    """What one principal has.

    Attributes:
        held: in bytes.
        frames: how many frames that is.
        waiting: the length of each frame that waits, and what to call once it is held.
    """

    held: int = 0
    frames: int = 0
    waiting: deque[tuple[int, Granted]] = field(default_factory=deque)


class FrameMemory:
    """What is held of one server."""

    def __init__(self) -> None:
        self.held = 0
        self._shares: dict[Whose, _Share] = {}
        self._turn: deque[_Share] = deque()  # those in which somebody waits
        self._waiting = 0

    def take(self, whose: Whose, length: int, granted: Granted) -> bool:
        """Hold a frame of ``length`` bytes: at once, or, if this returns False, later: then ``granted`` is called.

        ``give`` has to follow in both cases, or ``leave`` before it is granted.

        Raises:
            Refused: too many wait (BUSY).
        """
        share = self._shares.setdefault(whose, _Share())
        if not share.waiting and self._has_room(share):
            self._hold(share, length)
            return True
        waiting = len(share.waiting)
        if waiting >= WAITING_EACH or (waiting and self._waiting >= WAITING_MAX):
            raise Refused(BUSY_TEXT, code=Code.BUSY, retry_after_ms=BUSY_AGAIN_MS)
        if not waiting:
            self._turn.append(share)
        share.waiting.append((length, granted))
        self._waiting += 1
        return False

    def give(self, whose: Whose, length: int) -> None:
        """Hold a frame of ``length`` bytes no more; who waits for that is granted what it asked for."""
        share = self._shares[whose]
        self.held -= length
        share.held -= length
        share.frames -= 1
        self._grant()
        self._forget_if_empty(whose)

    def leave(self, whose: Whose, granted: Granted) -> None:
        """Wait no more. Harmless if nobody waits with ``granted``."""
        share = self._shares.get(whose)
        if share is None or not share.waiting:
            return
        waiting = len(share.waiting)
        share.waiting = deque(one for one in share.waiting if one[1] != granted)
        self._waiting -= waiting - len(share.waiting)
        if not share.waiting:
            self._turn.remove(share)
            self._forget_if_empty(whose)

    def _has_room(self, share: _Share) -> bool:
        return not share.frames or (share.held < HELD_EACH and self.held < HELD_MAX)

    def _hold(self, share: _Share, length: int) -> None:
        self.held += length
        share.held += length
        share.frames += 1

    def _grant(self) -> None:
        """Grant what there is room for, one frame of each principal in turn."""
        passed_over = 0
        while passed_over < len(self._turn):
            share = self._turn.popleft()
            if not self._has_room(share):
                self._turn.append(share)
                passed_over += 1
                continue
            passed_over = 0
            length, granted = share.waiting.popleft()
            self._waiting -= 1
            self._hold(share, length)
            if share.waiting:
                self._turn.append(share)
            granted(length)

    def _forget_if_empty(self, whose: Whose) -> None:
        share = self._shares[whose]
        if not share.frames and not share.waiting:
            del self._shares[whose]
