"""Where the partials of a store are, for tests that look at them or spoil them."""

from __future__ import annotations

from pathlib import Path


def partials_of(state: Path) -> Path:
    """The folder of partials of the only state that ever had ``state`` (a served folder's ``.blockproto``, or --state)."""
    (own,) = (state / "partials").iterdir()
    assert len(own.name) == 32, own
    return own
