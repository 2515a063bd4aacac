"""Which process writes a small file: a tag in the file's name, by which others know that nobody writes it any more.

    .blockproto-LABEL-TAG.part      TAG: 10 hex digits of where process ids count, 6 of the process id

A small file has no lock while it is written, since there are thousands. What a killed process left is told by its tag: the
process ids count here (the same boot of the same machine, the same namespace), and there is none of that number. Where that
cannot be known (another machine on a shared folder, a system without ``/proc``) the file's age has to decide.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from blake3 import blake3

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/pid"


def tag_of_this_process() -> str:
    """The tag of this process, 16 hex digits; zeros where it cannot be told from those of other machines."""
    scope = _scope()
    return f"{scope}{os.getpid():06x}" if scope else "0" * 16


def is_gone(tag: str) -> bool:
    """Whether the process of a tag has certainly ended; not if a younger one has its number."""
    if tag[:10] != _scope():
        return False
    try:
        os.kill(int(tag[10:], 16), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _scope() -> str:
    """What names the processes that ``os.kill`` can see; empty where that is not known."""
    try:
        text = _BOOT_ID.read_text() + os.readlink(_NAMESPACE)
    except OSError:
        return ""
    return blake3(text.encode()).hexdigest(5)
