"""EXT for clients: what a later server may say."""

from __future__ import annotations

import random

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import forge
from ..case import Chapter, Side
from ..peer import Heard
from . import giving, taking
from .trial import Trial
from .visit import Visit

cases = Chapter("client/ext", Side.CLIENT)

UNKNOWN_TYPE = 0xEE
CRITICAL_TLV = forge.tlv(0x8FFF, b"x")


def spoilt(message: wire.Message, stream: int, how: str) -> bytes:
    """A frame with something in it that must be understood."""
    raw = forge.frame(stream, message)
    if how == "type":
        return forge.rebuilt(raw, type_=UNKNOWN_TYPE)
    return forge.rebuilt(raw, tail=CRITICAL_TLV) if how == "tlv" else forge.rebuilt(raw, flags=0x8000)


CRITICAL = {"type": "EXT-001", "tlv": "EXT-003", "flag": "EXT-004"}


def critical_on_stream(trial: Trial, how: str) -> None:
    """On a stream: UNSUPPORTED (stream); the upload has failed."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    visit.force(spoilt(wire.Ack(0), upload.stream, how))
    visit.put_back(_until_error(visit))
    visit.expect_error(Code.UNSUPPORTED, stream=upload.stream)
    trial.repeats = True
    trial.not_done()


def _until_error(visit: Visit) -> list[Heard]:
    """Pass over what is under way; returns the ERROR, to be heard again."""
    while True:
        heard = visit.hear("ERROR UNSUPPORTED (stream)")
        if not isinstance(heard.message, (wire.Block, wire.Piece, wire.Commit)):
            return [heard]


def critical_on_connection(trial: Trial, how: str) -> None:
    """On stream 0: UNSUPPORTED (connection)."""
    visit, _ = trial.uploading()
    visit.force(spoilt(wire.Ping(bytes(8), 0), 0, how))
    visit.expect_refusal(Code.UNSUPPORTED)
    trial.not_done()


for _how, _clause in CRITICAL.items():
    _why = "Who acts on what it does not understand does something else than it was told."
    cases.table("must-understand/{}-on-a-stream", _clause, {_how: _how}, why=_why)(critical_on_stream)
    cases.table("must-understand/{}-on-the-connection", _clause, {_how: _how}, why=_why)(
        critical_on_connection
    )


@cases.add(
    "skipped/unknown-types",
    "EXT-002 FRM-011",
    why="That is how a later version adds things for who knows them.",
)
def unknown_types(trial: Trial) -> None:
    """Frames of unknown types below 0x80, with any flags, streams and payloads: nothing changes."""
    visit, upload = trial.uploading()
    for stream in (0, upload.stream, 2, 0xFFFFFFFE, upload.stream + 100):
        for flags in (0, 0xFFFF):
            visit.send(forge.unknown_frame(0x33, stream, b"\xff" * 30, b"payload", flags))
    visit.alive()
    visit.say(upload.stream, upload.opened())
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


SKIPPED = {
    "unknown-tlv": ("EXT-003", {"tail": forge.tlv(0x7FFF, b"later")}),
    "unknown-flags": ("EXT-004", {"flags": 0x0FFE}),
    "tlv-of-another-message": ("EXT-005", {"tail": forge.tlv(1, b"odd")}),
    "flag-of-another-message": ("EXT-005", {"flags": 0x0002}),
}


def skipped(trial: Trial, parts: dict[str, object]) -> None:
    """ACK and OPENED with it: they mean what they meant."""
    visit, upload = trial.uploading()
    visit.force(forge.rebuilt(forge.frame(upload.stream, upload.opened()), **parts))  # type: ignore[arg-type]
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    ack = forge.frame(upload.stream, upload.acknowledged(0))
    visit.force(forge.rebuilt(ack, **parts))  # type: ignore[arg-type]
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


for _name, (_clause, _parts) in SKIPPED.items():
    cases.table(
        f"skipped/{_name}{{}}",
        _clause,
        {"": _parts},
        why="What is not critical changes nothing for who does not know it.",
    )(skipped)


@cases.table(
    "grease/{}",
    "EXT-006 EXT-002 EXT-003 EXT-004",
    {"in-an-upload": False, "in-a-download": True},
    why="Values that nobody ever defines are sent so that everybody learns to skip them.",
)
def grease(trial: Trial, download: bool) -> None:
    """Everything that the server says has reserved flags and TLVs, and reserved messages stand in between."""
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    (trial.download if download else trial.upload)(sample)
    visit = trial.visit(welcome=False)
    visit.grease = random.Random(1)
    visit.welcome()
    if download:
        giving.give_download(visit, trial.shelf, sample, piece_length=300_000)
        trial.fetched(sample)
    else:
        taking.take_upload(visit, trial.shelf, sample)
        trial.stored(sample)
