"""The sourceids of uploads in a dialect: derived, so that nothing has to be stored besides the upload.

Spec: BP1-DIA-009.
"""

from __future__ import annotations

from blake3 import blake3

_CONTEXT = "blockproto 2026-11 the sourceid of an upload in an older dialect"


def derived_sourceid(dialect: str, host: str, *identity: bytes) -> bytes:
    """The sourceid (16 bytes) of the upload of ``host`` that a dialect identifies by ``identity``.

    Args:
        dialect: its name.
        host: the peer's address without its port.
        identity: what identifies an upload in the dialect, in a fixed order.
    """
    hasher = blake3(derive_key_context=_CONTEXT)
    for part in (dialect.encode(), host.encode(), *identity):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest(16)
