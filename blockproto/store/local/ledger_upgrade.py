"""From a ledger that is new, or of an earlier format, to one of this format.

An upgrade is one transaction, so a crash leaves the one or the other; an older program refuses what came of it. It rewrites
no record of a file or an upload: what a later format adds to these stands behind what an earlier one wrote, and is unknown
where nothing stands there.

    1 -> 2   the state has an id, and its partials a folder of that name (``opening.py`` moves them); the clock is recorded.
             Nothing says how late it was before, so nothing expires for a day, as after a jump of the clock.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from .expiry_clock import HOLD_MS, ClockRecord
from .ledger import Ledger
from .ledger_view import View
from .records import FORMAT, STATE_KEY, State


def begin(ledger: Ledger, state_id: bytes, now_ms: int) -> None:
    """Make ``ledger`` one of this format; harmless when it is.

    Args:
        ledger: the ledger.
        state_id: the id its state gets where it has none (16 bytes); the folder of that name is durable.
        now_ms: the wall clock, Unix ms.

    Durability: durable when this returns.
    """
    now_ms = max(0, now_ms)
    with ledger.write() as view:
        if not any(view.items(STATE_KEY)):
            view.put_state(State(now_ms, secrets.token_bytes(32)))
            view.put_state_id(state_id)
            view.put_clock(ClockRecord(now_ms, now_ms))
            return
        state = view.state()
        if state.format == 1:
            _to_2(view, state_id, now_ms)
        if state.format != FORMAT:
            view.put_state(replace(state, format=FORMAT))


def _to_2(view: View, state_id: bytes, now_ms: int) -> None:
    view.put_state_id(state_id)
    view.put_clock(ClockRecord(now_ms, now_ms, HOLD_MS))
