"""What a dialect is: an older wire format that a server answers on the same port, into the same store.

    first bytes → serving.detect_rules → DialectConnection → dialect.serve → SequentialReceiver → LiveUpload → committer

A dialect brings files and nothing else: it cannot list, fetch or remove, and it can neither encrypt nor say who speaks. What
it brings goes through the same live uploads, ledger, committer and name rules as everything else, under the anonymous
principal and a sourceid that is derived (``upload_keys``) from what identifies an upload in that dialect. So what a dialect
began is seen in listings, resumed after a restart and swept when it expires, with no state of its own.

Rules:
    1. A dialect recognises itself by the first bytes alone, at most ``FIRST_LENGTH_MAX`` of them, and says NO as soon as it
       knows. No two dialects say YES to the same bytes: NUL padding within the first ``TEXT_LENGTH`` bytes tells them apart.
    2. Nothing of a dialect is known to the native protocol: rooms that speak it do not import this one.

Spec: BP1-DIA.
"""

from .dialect import FIRST_LENGTH_MAX as FIRST_LENGTH_MAX
from .dialect import Dialect as Dialect
from .dialect import Recognition as Recognition
