"""Targets: the figures to reach on two cores over loopback, verified and durable, as medians of paired ratios.

A ratio is the peer's time divided by ours. Peers that are not named here are reported without a target.
"""

from __future__ import annotations

from .figures import Target, at_least, at_most
from .pairs import FLOOR

MIB = 1 << 20
GIB = 1 << 30

NOT_SLOWER = at_least(0.97)
"""Beside an older checkout: its time divided by ours."""

UPLOAD: dict[int, dict[str, Target]] = {
    1 * GIB: {
        FLOOR: at_least(0.95),
        "rsync --fsync": at_least(1.2),
        "nginx PUT": at_least(1.2),
        "scp": at_least(2.0),
    },
    4 * GIB: {"rsync --fsync": at_least(1.2), "nginx PUT": at_least(1.2), "scp": at_least(2.0)},
}
"""By size. The floor: our ``elapsed_s`` beside its time; the others: whole command beside whole command."""

DOWNLOAD: dict[int, dict[str, Target]] = {
    1 * GIB: {"nginx GET": at_least(1.2), "rsync --fsync": at_least(1.2), "rsync": at_least(1.1)},
    4 * GIB: {"nginx GET": at_least(1.1)},
}
"""By size; whole command beside whole command."""

FOLDER_FILES = 20_000
FOLDER_FILE_LENGTH = 4096
FOLDER: dict[str, Target] = {"rsync": at_least(1.0), "rsync --fsync": at_least(4.0), "scp": at_least(8.0)}
"""``put DIR`` of ``FOLDER_FILES`` files of ``FOLDER_FILE_LENGTH`` bytes; whole command beside whole command."""

FOLDER_NEW: dict[str, Target] = {"rsync": at_least(1.2), "rsync --fsync": at_least(4.0)}
"""``get DIR`` of the same, where nothing of it is there."""

FOLDER_EXISTING: dict[str, Target] = {"rsync": at_least(1.1), "rsync --fsync": at_least(4.0)}
"""``get DIR`` of the same, where all its folders are there."""

FOLDER_AGAIN: dict[str, Target] = {"rsync": at_least(1 / 1.2)}
"""``put DIR`` of the same, where all of it is there."""

FOLDER_TLS = at_least(0.8)
"""``put DIR`` of the same over TLS beside the same without."""

LIBRARY_UP: dict[str, Target] = {"rsync": at_least(1.0)}
LIBRARY_DOWN: dict[str, Target] = {"rsync": at_least(1.1)}
"""A real folder of files of all sizes."""

MANY_TIMES = (3, 10)
"""How many times the files of a folder are very many: 60,000 and 200,000."""

MANY_RATE = at_least(0.9)
"""Files a second of ``put DIR`` of very many files, divided by those of a folder."""

FOLDER_WAITS = at_most(0.1)
"""Round trips waited for, a file."""

SECOND_RUN_PAYLOAD = at_most(0)
"""Bytes of content that a second run of the same ``put DIR`` sends."""

MEMORY_MIB = at_most(64)
"""Peak resident memory of server and of client, MiB, whatever the size."""

DIALECT = at_least(0.8)
"""An older dialect: the native time divided by its own, for the same file."""

TLS_UPLOAD: dict[int, dict[str, Target]] = {1 * GIB: {"scp": at_least(1.3)}}
"""Over TLS, by size; whole command beside whole command."""

HANDSHAKES = at_least(0.7)
"""TLS handshakes a second, divided by those of Trio's own TLS stream in a bare server."""

IDLE_TLS_CONNECTIONS = 2_000
IDLE_TLS_KIB = at_most(48)
"""Resident memory of an idle connection over TLS, KiB."""

GREEDY_POLITE = 50
GREEDY = at_most(2)
"""p99 of the waits of ``GREEDY_POLITE`` polite principals, with a greedy one divided by without."""

COMMIT_MS = at_most(20)
"""COMMIT to COMMITTED, milliseconds, up to 4 GiB, once the blocks are durable."""

STORE_FILES = at_least(1.2)
"""The store alone: files without OPEN, divided by the same as whole files, several in a work."""

STORE_CPU_US = at_most(60)
"""CPU of a whole file of ``FOLDER_FILE_LENGTH`` bytes in the store, microseconds."""

STORE_ONE_FILE = at_least(1)
"""The same with one file in each batch."""

FRAMES_CPU_US = at_most(60)
"""CPU of a server for a whole file of ``FOLDER_FILE_LENGTH`` bytes, microseconds; without that of its client."""

FRAMES_WALL_US = at_most(60)
"""Time for the same from a client that takes none, microseconds."""

FRAMES_MIB = at_most(64)
"""Memory of its own that a server has afterwards, MiB."""

HELD_BLOCKS = 100_000
RESUME_MS = at_most(20)
"""OPEN to OPENED, milliseconds, with ``HELD_BLOCKS`` blocks held."""

RESUME_READ_MIB = at_most(1)
"""MiB the server reads for that OPEN: the ledger and the frames, no content."""

RECOVERY_S = at_most(1.0)
"""Start of a killed server to OPENED, seconds, with ``HELD_BLOCKS`` blocks of partials."""

CODEC_US = at_most(30)
"""Encode or decode one BLOCK, PIECE or ACK, microseconds."""

STARTUP_S = at_most(0.08)
"""``blockproto --version``, seconds."""

COMMAND_MS = at_most(50)
"""``put`` or ``get`` of one small file, whole command, beyond what importing its libraries takes, milliseconds."""

IDLE_CONNECTIONS = 9_900
IDLE_KIB = at_most(12)
"""Resident memory of an idle connection, KiB."""

NEW_MS = at_most(50)
"""From connecting to the server's HELLO beside them, milliseconds; 99 of 100."""

UPLOADS_AT_ONCE = 200
UPLOADS_SPREAD = at_most(2)
"""Slowest by fastest of ``UPLOADS_AT_ONCE`` uploads, each over its own connection."""

UPLOADS_MIB = at_most(150)
"""Peak resident memory of the server meanwhile, MiB."""

CROWD = 5_000
WAKE_S = at_most(20)
"""After SIGKILL of the server so many clients are back within so many seconds; 99 of 100."""

CONNECTS = at_most(3)
"""Connects each until then; 99 of 100."""

RESET_TIME = at_most(1.08)
"""Time beside what the line alone needs: 20 MB, 8 Mbit/s, 100 ms, a reset every 3 MB."""

RESET_DELIVERED = at_most(1.01)
"""Bytes delivered beside the file's."""

RESET_TIME_FAR = at_most(1.15)
RESET_DELIVERED_FAR = at_most(1.03)
"""The same for 2 MB, 256 kbit/s, 600 ms, a reset every 300 KB."""

PICTURE = at_most(2)
"""A picture of 100 KB beside a bulk transfer at 5 Mbit/s, by its time alone."""

FIRST_ROUND_TRIPS = at_most(1)
"""Round trips of a small upload over an open connection."""
