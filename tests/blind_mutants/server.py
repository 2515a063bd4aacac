"""A server with one honest mistake: ``python -m tests.blind_mutants.server --mutant NAME DIR [--listen HOST:PORT]``.

It is ``blockproto serve`` in everything else: it prints ``listening on HOST:PORT`` when it is ready (port 0, the default,
picks a free one) and ends in order on SIGTERM. ``--mutant none`` is the healthy server, for comparison; ``--list`` prints
every name with the clause it violates and the mistake, tab-separated, one a line. The mistakes are in ``mistakes.py`` and
``more_mistakes.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blockproto.cli import main as blockproto_command

from .mistakes import SERVERS, Mutant
from .more_mistakes import MORE_SERVERS

EVERY_SERVER = SERVERS | MORE_SERVERS
"""What ``--mutant`` accepts."""


def print_list(mutants: dict[str, Mutant]) -> None:
    """One line for each."""
    for mutant in mutants.values():
        print(mutant.name, mutant.clause, mutant.mistake, sep="\t")


def parser_for(mutants: dict[str, Mutant], doc: str) -> argparse.ArgumentParser:
    """What both commands take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--mutant", choices=["none", *mutants], default="none", metavar="NAME")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; returns the exit code."""
    parser = parser_for(EVERY_SERVER, __doc__)
    parser.add_argument("folder", nargs="?", default=".", help="what to serve")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    options = parser.parse_args(arguments)
    if options.list:
        print_list(EVERY_SERVER)
        return 0
    if options.mutant != "none":
        EVERY_SERVER[options.mutant].apply(setattr)
    return blockproto_command(["serve", options.folder, "--listen", options.listen])


if __name__ == "__main__":
    sys.exit(main())
