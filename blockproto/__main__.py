"""The command, as ``blockproto`` and as ``python -m blockproto``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command; returns its exit code.

    Ctrl-C before the command can say anything about it ends the process by the signal, not with a traceback of imports.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
