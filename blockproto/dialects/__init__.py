"""Dialects: older wire formats that a server answers on the same port, into the same store.

    first bytes → serving.detect_rules → DialectConnection → dialect.serve → SequentialReceiver → LiveUpload → committer

A dialect only uploads files: it cannot list, fetch, remove, encrypt or authenticate. Its files go through the same live
uploads, ledger, committer and name rules as all others, under the anonymous principal and a sourceid that is derived
(``upload_keys``) from what identifies an upload in the dialect. So its uploads are listed, resumed after a restart and
removed when they expire, without any state of their own.

Rules:
    1. A dialect is recognised by at most ``FIRST_LENGTH_MAX`` first bytes, and says NO as soon as it can. No two dialects
       say YES to the same bytes: NUL padding within the first ``TEXT_LENGTH`` bytes tells them apart.
    2. The native protocol knows nothing of dialects: its rooms do not import this one.

Spec: BP1-DIA.
"""

from .dialect import FIRST_LENGTH_MAX as FIRST_LENGTH_MAX
from .dialect import Dialect as Dialect
from .dialect import Recognition as Recognition
