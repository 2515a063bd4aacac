"""Bad lines on purpose: slow, far away, narrow, and broken at the worst moment; every time in the same way.

``pipe`` and ``line`` are the model of a line, ``proxy`` puts one between real sockets. Knows nothing of what passes.
"""

from .line import Amount, Conditions, Ending, How, Line, LineStream
from .pipe import Pipe
from .proxy import ChaosProxy, Report

__all__ = [
    "Amount",
    "ChaosProxy",
    "Conditions",
    "Ending",
    "How",
    "Line",
    "LineStream",
    "Pipe",
    "Report",
]
