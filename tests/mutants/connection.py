"""Mutants of what long connections add: reading what is still being uploaded."""

from __future__ import annotations

from .edits import Mutant

SERVER = ("server",)
FOLLOWING, FETCH = "transfer/follow_upload.py", "serving/handlers/fetch.py"

ALL = [
    Mutant("ranges-of-nobody-knows-what", "FET-016", FOLLOWING,
           "if filesize is None and (message.first or message.length is not None):", "if False:", SERVER),
    Mutant("facts-without-their-time", "FET-016", FOLLOWING,
           "Facts(name, live.facts.filetype, filesize, live.facts.mtime_ns, live.facts.mode)", "Facts(name, live.facts.filetype, filesize)", SERVER),
    Mutant("an-upload-without-its-version", "FET-017", FETCH,
           "if message.version not in (ZERO_ID, file_id):", "if message.version != ZERO_ID:", SERVER),
    Mutant("sent-before-it-is-there", "FET-018", FOLLOWING,
           "return self.stored is not None or self._live.length_of(blockno) is not None", "return True", SERVER),
    Mutant("the-discarded-is-waited-for", "FET-019", FOLLOWING,
           "self._source.ends(error)\n        self.sender.fail(error)", "self._source.ends(error)", SERVER),
    Mutant("the-withdrawn-is-kept", "FET-019", FOLLOWING,
           "self.sender.fail(busy)", "return", SERVER),
]  # fmt: skip
