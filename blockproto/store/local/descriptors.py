"""How many files a store keeps open because somebody may read or write them again.

A transfer that stands still needs no open file: what was closed is opened again when the transfer goes on. So a peer with
thousands of streams takes as many descriptors as are in use at one moment, and ``RESTING_MAX`` for all together.
"""

from __future__ import annotations

import resource

RESTING_MAX = 128
"""Open files that nobody uses at this moment, where the system lets us open many."""
RESTING_SHARE = 8
"""Otherwise this fraction (one in N) of them."""


def resting_max() -> int:
    """How many files a store keeps open while nobody uses them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(RESTING_MAX, files // RESTING_SHARE))
