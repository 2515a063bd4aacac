"""Targets: the figures to reach on two cores over loopback, verified and durable, as medians of paired ratios.

A ratio is the peer's time divided by ours. Peers that are not named here are reported without a target.
"""

from __future__ import annotations

from .figures import Target, at_least, at_most
from .pairs import FLOOR

MIB = 1 << 20
GIB = 1 << 30

UPLOAD: dict[int, dict[str, Target]] = {
    1 * GIB: {
        FLOOR: at_least(0.9),
        "rsync --fsync": at_least(1.0),
        "nginx PUT": at_least(1.2),
        "scp": at_least(2.0),
    },
    4 * GIB: {"rsync --fsync": at_least(1.2), "nginx PUT": at_least(1.2), "scp": at_least(2.0)},
}
"""By size. The floor: our ``elapsed_s`` beside its time; the others: whole command beside whole command."""

DOWNLOAD: dict[int, dict[str, Target]] = {
    1 * GIB: {"nginx GET": at_least(1.1)},
    4 * GIB: {"nginx GET": at_least(1.1)},
}
"""By size; whole command beside whole command."""

FOLDER_FILES = 20_000
FOLDER_FILE_LENGTH = 4096
FOLDER: dict[str, Target] = {"rsync --fsync": at_least(2.0), "rsync": at_least(0.8)}
"""``put DIR`` of ``FOLDER_FILES`` files of ``FOLDER_FILE_LENGTH`` bytes; whole command beside whole command."""

FOLDER_WAITS = at_most(0.1)
"""Round trips waited for, a file."""

SECOND_RUN_PAYLOAD = at_most(0)
"""Bytes of content that a second run of the same ``put DIR`` sends."""

MEMORY_MIB = at_most(64)
"""Peak resident memory of server and of client, MiB, whatever the size."""

DIALECT = at_least(0.8)
"""An older dialect: the native time divided by its own, for the same file."""

COMMIT_MS = at_most(20)
"""COMMIT to COMMITTED, milliseconds, up to 4 GiB, once the blocks are durable."""

HELD_BLOCKS = 100_000
RESUME_MS = at_most(20)
"""OPEN to OPENED, milliseconds, with ``HELD_BLOCKS`` blocks held."""

RESUME_READ_MIB = at_most(1)
"""MiB the server reads for that OPEN: the ledger and the frames, no content."""

RECOVERY_S = at_most(1.0)
"""Start of a killed server to OPENED, seconds, with ``HELD_BLOCKS`` blocks of partials."""

CODEC_US = at_most(30)
"""Encode or decode one BLOCK, PIECE or ACK, microseconds."""

STARTUP_S = at_most(0.2)
"""``blockproto --version``, seconds."""
