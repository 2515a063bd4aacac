"""A client with one honest mistake: ``python -m tests.blind_mutants.client --mutant NAME put FILE bp://HOST:PORT/``.

What stands behind the mutant is the ``blockproto`` command as it is: ``put``, ``get``, ``ls`` and the others. ``--mutant
none`` is the healthy one, and ``--list`` as for the servers. The mistakes are in ``client_mistakes.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blockproto.cli import main as blockproto_command

from .client_mistakes import CLIENTS
from .server import parser_for, print_list


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = parser_for(CLIENTS, __doc__)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a blockproto command and its arguments")
    options = parser.parse_args(arguments)
    if options.list:
        print_list(CLIENTS)
        return 0
    if options.mutant != "none":
        CLIENTS[options.mutant].apply(setattr)
    return blockproto_command(options.command)


if __name__ == "__main__":
    sys.exit(main())
