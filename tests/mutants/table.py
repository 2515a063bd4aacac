"""Every mutant by its name, and the wire clauses that have none, with the reason."""

from __future__ import annotations

from . import connection, frames, identity, many_files, transfers
from .edits import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for mutant in (*frames.ALL, *transfers.ALL, *many_files.ALL, *identity.ALL, *connection.ALL)
}

NONE: dict[str, str] = {
    "BP1-HEL-007": "there is no other version yet whose things a client could use too early",
    "BP1-CRD-003": "ours grant anew as fast as a burst comes: no sender can be sure to exceed what was granted",
    **identity.NONE,
    "BP1-COM-018": "whether CANCEL or the commit was first is not seen on the wire; tests/transfer/test_live_uploads.py looks inside",
}
"""Wire clauses of which a mutant of ours could not be told from the healthy one by a stranger, and why."""
