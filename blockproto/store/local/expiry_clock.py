"""The clock by which uploads and receipts expire: the wall clock, believed only while it goes on as time does.

A clock that is wrong for an hour must not throw away what people have uploaded for a month. The ledger records the wall time
about hourly. Where it is found more than ``JUMP_MS`` away from the last record, at a start or later, nothing expires until
``HOLD_MS`` have passed on a clock that nobody sets, counted only while a server has the store open: whoever wants to go on
with an upload has that long, or the operator that long to set the clock right. What remains of it is recorded too, so a
restart does not shorten it.

New dates of expiry are counted from the latest time recorded, so a clock that was set back gives nobody less than he had.
Tokens are none of this module's business: they end by the wall clock.

Spec: spec/store.md §2.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

log = logging.getLogger(__name__)

JUMP_MS = 7 * 24 * 3600 * 1000
"""The wall clock is doubted when it is found further than this from where it was last recorded."""

HOLD_MS = 24 * 3600 * 1000
"""How long nothing expires then."""

RECORD_EVERY_MS = 50 * 60 * 1000
"""How old a record becomes: less than the hour between two sweeps, so that each of them makes one."""

_CLOCK = Struct(">QQQ")


def boot_ms() -> int:
    """Milliseconds since this machine booted, sleep included; nobody sets this clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class ClockRecord(NamedTuple):
    """What the ledger has of the clock.

    Attributes:
        wall_ms: the wall time when it was recorded, Unix ms.
        latest_ms: the latest wall time that was recorded and has not been found wrong, Unix ms.
        hold_ms: for how long nothing expires yet; 0: things expire.
    """

    wall_ms: int
    latest_ms: int
    hold_ms: int = 0

    def pack(self) -> bytes:
        """The record."""
        return _CLOCK.pack(*self)

    @classmethod
    def unpack(cls, record: bytes) -> ClockRecord:
        """Parse a record."""
        return cls(*_CLOCK.unpack(record))


class ExpiryClock:
    """The clock of one open store; any thread may use it.

    Args:
        recorded: what the ledger has of it.
        now_ms: the wall clock, Unix ms.
        boot_ms: a clock that nobody sets, ms.
    """

    def __init__(
        self, recorded: ClockRecord, now_ms: Callable[[], int], boot_ms: Callable[[], int] = boot_ms
    ) -> None:
        self._recorded = recorded
        self._now = recorded
        self._now_ms = now_ms
        self._boot_ms = boot_ms
        self._booted = boot_ms()
        self._lock = threading.Lock()
        if recorded.hold_ms:
            log.warning(
                "the clock is not trusted yet: nothing expires for another %s",
                _hours(recorded.hold_ms),
                extra={"event": "clock not trusted"},
            )

    def look(self) -> int:
        """Look at both clocks; returns the wall time, Unix ms."""
        with self._lock:
            wall_ms, booted = max(0, self._now_ms()), self._boot_ms()
            passed, self._booted = max(0, booted - self._booted), booted
            before = self._now
            latest, hold = max(before.latest_ms, wall_ms), max(0, before.hold_ms - passed)
            if before.hold_ms and not hold:
                latest = wall_ms
                log.warning(
                    "the clock has gone on as it should: uploads and receipts expire again",
                    extra={"event": "clock trusted again"},
                )
            jumped = wall_ms - before.wall_ms
            if abs(jumped) > JUMP_MS:
                hold = HOLD_MS
                log.warning(
                    "the clock is %.1f days %s of where it was last: nothing expires for %s; set it right if it is wrong",
                    abs(jumped) / 86_400_000,
                    "ahead" if jumped > 0 else "short",
                    _hours(HOLD_MS),
                    extra={"event": "clock jumped"},
                )
            self._now = ClockRecord(wall_ms, latest, hold)
            return wall_ms

    @property
    def held(self) -> bool:
        """Whether nothing expires for now; as of the last ``look``."""
        return self._now.hold_ms > 0

    def expires_ms(self, after_ms: int) -> int:
        """The date that lies ``after_ms`` ahead, Unix ms; never too early because the clock was set back."""
        return max(self._now.latest_ms, self.look()) + after_ms

    def due(self) -> ClockRecord | None:
        """What is to be recorded now, or None while what is recorded will do; as of the last ``look``."""
        with self._lock:
            now, recorded = self._now, self._recorded
            apart = abs(now.wall_ms - recorded.wall_ms)
            held = recorded.hold_ms - now.hold_ms
            same = (now.hold_ms > 0) is (recorded.hold_ms > 0)
            return None if same and apart < RECORD_EVERY_MS and 0 <= held < RECORD_EVERY_MS else now

    def at_close(self) -> ClockRecord | None:
        """What is to be recorded when the store is closed: how much of a hold has passed."""
        self.look()
        with self._lock:
            return self._now if self._now.hold_ms != self._recorded.hold_ms else None

    def noted(self, record: ClockRecord) -> None:
        """The ledger has ``record`` now, durably."""
        with self._lock:
            self._recorded = record


def _hours(ms: int) -> str:
    return f"{ms / 3_600_000:.1f} hours"
