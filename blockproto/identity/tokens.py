"""Tokens: 32 random bytes as text with a checksum, and the hash that a server keeps instead of them.

    bp1_ + base32(32 random bytes + their CRC-32), lower case, no padding: 62 characters

Which principal a token speaks for is decided by ``identity/principals`` (``Register.find``).

The random bytes have the entropy of a key, so one BLAKE3 suffices to make the hash useless to a thief.

Spec: BP1-AUT-011, BP1-AUT-012.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from zlib import crc32

from blake3 import blake3

PREFIX = "bp1_"
"""The beginning of every token, by which people and scanners for leaked secrets recognise it."""

SECRET_LENGTH = 32
"""Random bytes of a token."""

TOKEN_LENGTH = len(PREFIX) + 58
"""Characters of a token: base32 of 36 bytes is 58 of them."""

_CONTEXT = "blockproto 2026-11 token"
_PADDING = "=" * 6


def new_token() -> str:
    """A new random token."""
    secret = secrets.token_bytes(SECRET_LENGTH)
    checked = secret + crc32(secret).to_bytes(4, "big")
    return PREFIX + base64.b32encode(checked).decode().rstrip("=").lower()


def secret_of(token: str) -> bytes:
    """The 32 random bytes of ``token``.

    Raises:
        ValueError: it is not a token; the text says why, and shows nothing of it.
    """
    if not token.startswith(PREFIX):
        raise ValueError(f"it does not begin with {PREFIX}")
    if len(token) != TOKEN_LENGTH:
        raise ValueError(f"it has {len(token)} characters; a token has {TOKEN_LENGTH}")
    if not token.isascii() or token != token.lower():
        raise ValueError("it holds a character that no token has")
    try:
        checked = base64.b32decode(token.removeprefix(PREFIX).upper() + _PADDING)
    except binascii.Error:
        raise ValueError("it holds a character that no token has") from None
    secret, check = checked[:SECRET_LENGTH], checked[SECRET_LENGTH:]
    if crc32(secret).to_bytes(4, "big") != check:
        raise ValueError("a character of it is wrong")
    return secret


def hash_of(secret: bytes) -> bytes:
    """The hash of a token's secret that a server keeps (32 bytes)."""
    return blake3(secret, derive_key_context=_CONTEXT).digest()
