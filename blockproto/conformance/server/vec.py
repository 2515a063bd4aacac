"""L0: the codec vectors of the spec, byte for byte: what a server must refuse right after the greeting, or as a greeting.

The vectors that need a stream or a file name fixed sourceids, which a case must not use twice; the other chapters have
cases for what they show.
"""

from __future__ import annotations

from typing import Any

from ... import wire
from ...errors import Code
from ..case import Chapter, Side
from ..clauses import document
from ..target import Trial
from .hel import GREETING_S, closed_without_greeting

cases = Chapter("vec", Side.SERVER)
LAYERS = {"greeting", "frame"}


def _bytes(parts: list[Any]) -> bytes:
    """Hex, or a stretch of the pattern whose byte i is i mod 251."""
    pattern = bytes(range(251))
    made = b""
    for part in parts:
        if isinstance(part, str):
            made += bytes.fromhex(part)
        else:
            start, length = part["pattern_from"], part["length"]
            made += (pattern * ((start + length) // 251 + 1))[start : start + length]
    return made


def refused(trial: Trial, row: dict[str, Any]) -> None:
    """The bytes of the vector, and the refusal that it names."""
    raw = _bytes(row["bytes"])
    code = Code(row["expect"]["code"])
    if code is Code.NOT_BLOCKPROTO:
        closed_without_greeting(trial, raw, GREETING_S)
        return
    peer = trial.dial(greet=row["layer"] == "frame")
    peer.opened(*range(1, 10))
    peer.send(raw)
    if row["layer"] == "greeting":
        peer.expect_greeting()
    if row["expect"]["scope"] == "connection":
        peer.expect_refusal(code)
        return
    peer.expect_error(code, stream=wire.decode_header(raw).stream)
    peer.ping()


def _register() -> None:
    for row in document("refusals")["vectors"]:
        if row["judge"] != "server" or row["layer"] not in LAYERS or row["limits"] != "usual":
            continue
        cases.table(
            "refused/{}",
            row["clause"].removeprefix("BP1-"),
            {row["name"]: row},
            why=f"The bytes that are wrong: {row['wrong']['why']}.",
            layer=0,
            slow=row["name"] == "greeting/tls",
        )(refused)


_register()
