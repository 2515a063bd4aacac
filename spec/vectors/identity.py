"""The vectors of profile IDENTITY, apart from those of CORE: a side without the profile needs none of them."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from conversations import Conversation, brief, brief_committed, client, server, stop
from encode import Frame, frame
from frames import EXPIRES_MS, UINT63, ZERO, Vector

ALICE = bytes.fromhex("a11ce000000000000000000000000001")
DEVICE = bytes.fromhex("de71ce00000000000000000000000001")
SERVER_TIME_MS = 1_700_000_000_000
SECRET = bytes(range(32))
TRANSITIONS = [("receiver", ["AUTH"], ["new"], "asked")]


def token_of(secret: bytes) -> str:
    """A token as text (AUT-012)."""
    checked = secret + struct.pack(">I", zlib.crc32(secret))
    return "bp1_" + base64.b32encode(checked).decode().rstrip("=").lower()


def auth(stream: int, credential: str, *, scheme: int = 1, device: bytes = ZERO) -> Frame:
    """AUTH."""
    return frame("AUTH", stream, scheme=scheme, device=device, credential=credential)


def principal(stream: int, **changed: Any) -> Frame:
    """RESULT of kind 0: the answer to AUTH."""
    item: dict[str, Any] = {
        "principal": ALICE, "expires_ms": EXPIRES_MS, "server_time_ms": SERVER_TIME_MS, "quota": 10 << 30, "used": 14,
        "scopes": 3, "name": "alice",
    }  # fmt: skip
    return frame("RESULT", stream, kind=0, items=[item | changed], cursor="")


def identity_vectors() -> Iterator[Vector]:
    """AUTH and its answer."""
    clause = ["BP1-AUT-002", "BP1-AUT-012"]
    yield Vector(
        "auth/token", "A token, and which device it is.", clause, auth(1, token_of(SECRET), device=DEVICE)
    )
    yield Vector("auth/empty", "An empty credential is refused later; the frame is well-formed.", ["BP1-AUT-006"],
                 auth(3, ""))  # fmt: skip
    yield Vector("auth/another-scheme", "A scheme nobody knows is refused later; the frame is well-formed.",
                 ["BP1-AUT-006"], auth(5, "?", scheme=255))  # fmt: skip
    yield Vector("result/principal", "A principal that may read and write, with a quota of 10 GiB.", ["BP1-AUT-002"],
                 principal(1))  # fmt: skip
    yield Vector("result/principal-without-limits", "No end, no quota, nothing known of what is used.", ["BP1-AUT-002"],
                 principal(1, expires_ms=None, quota=None, used=None, scopes=1, name=""))  # fmt: skip
    yield Vector("result/principal-greatest", "The greatest numbers; scopes that nobody knows are ignored.",
                 ["BP1-AUT-002"],
                 principal(1, expires_ms=UINT63, server_time_ms=UINT63, quota=UINT63, used=UINT63,
                           scopes=(1 << 32) - 1, name="n" * 255))  # fmt: skip


def identity_conversations() -> list[Conversation]:
    """Exchanges that begin with AUTH."""
    token = token_of(SECRET)
    chosen = ("principal", "expires_ms", "server_time_ms", "quota", "used", "scopes", "name")
    return [
        Conversation(
            "authenticated-upload", "AUTH and a file at once: one round trip after the connection stands.",
            ["BP1-AUT-002", "BP1-AUT-003"],
            [
                client("a token", auth(1, token)),
                client("hello.txt, all of it, with END and COMMIT", brief(3)),
                server("who that is, until when, and its quota", principal(1), *chosen),
                server("stored as hello.txt in the principal's folder", brief_committed(3), "file_id"),
            ],
        ),
        Conversation(
            "unauthenticated", "A wrong token, and a request behind it that did not wait.",
            ["BP1-AUT-004", "BP1-AUT-006"],
            [
                client("a token that the server does not know", auth(1, token_of(bytes(32)))),
                client("hello.txt, all of it, with END and COMMIT", brief(3)),
                server("UNAUTHENTICATED", stop(1, 40)),
                server("UNAUTHENTICATED; nothing was created", stop(3, 40)),
            ],
        ),
    ]  # fmt: skip


def identity_transitions() -> list[dict[str, Any]]:
    """What the profile adds to the table of chapter STR."""
    return [
        {"speaker": speaker, "messages": messages, "in": states, "next": following}
        for speaker, messages, states, following in TRANSITIONS
    ]
