"""A client command as the runner's subject.

A command cannot be gone as a server can: each case starts it anew. So a crash is the verdict of its own case, and nothing
has to be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..case import Case, Side
from ..timing import Patience
from ..verdicts import Unreachable
from .command import UNKNOWN_JOB, Command
from .trial import Trial

MADE_UP_JOB = "no-such-job"


def sane(trial: Trial) -> None:
    """The client answers a job that nobody knows with 127."""
    trial.start(MADE_UP_JOB)
    trial.expect_unknown()


@dataclass
class ClientSubject:
    """The client that is examined.

    Attributes:
        command: how it is started.
        patience: how long to wait.
        small_segments: whether everything is sent in segments of one byte.
    """

    command: Command
    patience: Patience = field(default_factory=Patience)
    small_segments: bool = False
    sanity: Case = field(
        default_factory=lambda: Case(
            "bp1/sanity/no-such-job",
            ("BP1-HEL-001",),
            "A client that answers every job in the same way would pass cases by accident.",
            sane,
            Side.CLIENT,
        )
    )

    def trial(self, case: Case) -> Trial:
        """A fresh world for one run of a case."""
        return Trial(self.command, case, self.patience, self.small_segments)

    def alive(self) -> bool:
        """A command is always there."""
        return True

    def wait_back(self) -> bool:
        """A command is always there."""
        return True

    def lacks(self, case: Case) -> str:
        """Cases for clients need nothing besides the command; what it cannot do it says by 127."""
        return ""

    def check(self) -> None:
        """Raises Unreachable if it cannot be started, or does not answer a made-up job with 127."""
        try:
            with self.trial(self.sanity) as trial:
                sane(trial)
        except Exception as error:
            raise Unreachable(
                f"the client must answer the job {MADE_UP_JOB!r} with exit code {UNKNOWN_JOB}: {error}"
            ) from error
