"""What people are told when Ctrl-C ends a command: that the same command goes on, only where it does.

Rule: this imports nothing; ``cli/__init__`` needs it before anything else is there.
"""

from __future__ import annotations

_STOPPED = "stopped by Ctrl-C"
_GOES_ON = "run the same command again: it goes on from what was acknowledged"


class Stop:
    """What the command that is running leaves when it is stopped now.

    Attributes:
        resumes: whether some of a transfer is kept that the same command goes on with.
    """

    def __init__(self) -> None:
        self.resumes = False

    def sentence(self) -> str:
        """What to say of it."""
        return f"{_STOPPED}; {_GOES_ON}" if self.resumes else _STOPPED


STOP = Stop()
"""Of the command that this process runs."""
