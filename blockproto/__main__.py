"""The command, as ``blockproto`` and as ``python -m blockproto``."""

from __future__ import annotations

import gc
import os
import signal
import sys

COLLECT_AFTER = (50_000, 20, 20)
"""Thresholds of the garbage collector (Python's own are 700, 10 and 10); ``serve`` has others.

A command makes few cycles, and tens of thousands of objects that stay, imports first: with Python's thresholds, looking at
them took a tenth of the processor time of ``put`` of thousands of small files.
"""


def main() -> int:
    """Run the command; returns its exit code.

    Where the reader of stdout has gone, SIGPIPE ends the process, as it ends others in a pipeline.
    SIGHUP never ends a server, not even one that has not listened yet.
    Ctrl-C before the command can say anything about it ends the process by the signal, not with a traceback of imports.
    """
    if sys.argv[1:2] == ["serve"] and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whoever sends it at once means what is read anyway
    gc.set_threshold(*COLLECT_AFTER)
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = run()
    if hasattr(signal, "SIGPIPE") and status == 128 + signal.SIGPIPE:  # what a shell calls the end by it
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    return status


if __name__ == "__main__":
    sys.exit(main())
