"""END for clients: signs of life, GOAWAY, the end of a connection."""

from __future__ import annotations

import time

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..peer import Heard
from ..verdicts import Closed, require
from . import taking
from .trial import Trial
from .visit import Visit

cases = Chapter("client/end", Side.CLIENT)

KEEPALIVE_S = 1


@cases.add("ping/is-answered", "END-002", why="An answer is the only proof that somebody is there.")
def ping_answered(trial: Trial) -> None:
    """PINGs with different opaques are answered in kind; an answer to nothing is ignored, and not answered."""
    visit, upload = trial.uploading()
    for opaque in (b"\xff" * 8, bytes(8), b"blockpro"):
        visit.say(0, wire.Ping(opaque, 0))
        visit.put_back(visit.wait_answer(opaque, among=tuple(wire.MESSAGES.values())))
    visit.say(0, wire.Ping(b"nobodys!", 0, answer=True))
    visit.alive()
    visit.say(upload.stream, upload.opened())
    taking.go_on(visit, trial.shelf, upload)
    require(not any(ping.opaque == b"nobodys!" for ping in visit.pings), "an answer to PING is answered")
    trial.stored(upload.sample)


@cases.add(
    "ping/keeps-an-idle-connection-alive",
    "END-005 END-003",
    why="A line on which nothing is said is forgotten by what lies between.",
    slow=True,
)
def keeps_alive(trial: Trial) -> None:
    """Nothing is said here for a while: PING comes with a next_s, and what it promises is kept."""
    visit, upload = trial.uploading(keepalive_s=KEEPALIVE_S)
    visit.answers = False
    for _ in range(2):
        began = time.monotonic()
        ping = visit.expect(wire.Ping)
        waited = time.monotonic() - began
        require(ping.next_s > 0, "PING promises nothing", got="next_s 0")
        require(
            waited < ping.next_s + trial.patience.answer_s,
            "next_s is not kept",
            expected=f"{ping.next_s} s",
            got=f"{waited:.1f} s",
        )
        visit.say(0, wire.Ping(ping.opaque, 0, answer=True))
    visit.answers = True
    visit.say(upload.stream, upload.opened())
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


@cases.add(
    "goaway/no-block-is-begun-any-more",
    "END-008",
    why="A server that stops waits for what is under way; whoever begins more makes it wait in vain.",
)
def goaway(trial: Trial) -> None:
    """GOAWAY between two blocks: no block begins, no stream opens here; the client goes on at the next server."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.upload(sample, tries=5)
    visit = trial.visit(hello=wire.Hello(undurable_max=0))
    upload = taking.open_upload(visit, trial.shelf, sample)
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    visit.say(0, wire.GoAway(Code.GOING_AWAY, 2_000, 0, "stopping"))
    visit.say(upload.stream, upload.acknowledged(0))
    begun = [
        heard
        for heard in _until_quiet(visit)
        if isinstance(heard.message, (wire.Block, wire.Open, wire.Piece))
    ]
    require(not begun, "a block or a stream begins after GOAWAY", got=", ".join(map(str, begun[:2])))
    visit.close()
    visit = trial.visit()
    again = taking.open_upload(visit, trial.shelf, sample, 0)
    taking.go_on(visit, trial.shelf, again)
    trial.stored(sample)


def _until_quiet(visit: Visit) -> list[Heard]:
    """What comes until the client closes, or says nothing for a moment."""
    try:
        return visit.settled()
    except Closed:
        return []


@cases.add(
    "goaway/a-stream-that-crossed-it",
    "END-009 END-008",
    why="A client that takes it for the end of the file gives up what the next server would take.",
)
def goaway_crossed(trial: Trial) -> None:
    """OPEN is refused with GOING_AWAY, retryable: the client comes back with it."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.upload(sample, tries=5)
    visit = trial.visit()
    upload = taking.begun(visit, trial.shelf, sample)
    visit.say(0, wire.GoAway(Code.GOING_AWAY, 2_000, 0, "stopping"))
    visit.say(upload.stream, wire.Error(Code.GOING_AWAY, Scope.STREAM, True, "stopping"))
    _until_quiet(visit)
    visit.close()
    taking.take_upload(trial.visit(), trial.shelf, sample)
    trial.stored(sample)


@cases.add(
    "error/is-the-last-word-of-both",
    "END-011",
    why="What is said behind an ERROR of the connection is said to nobody.",
)
def last_word(trial: Trial) -> None:
    """ERROR (connection) in the middle of an upload: the client says nothing more and closes."""
    visit, upload = trial.uploading(3 * BLOCK_LENGTH, hello=wire.Hello(undurable_max=0))
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    visit.say(0, wire.Error(Code.STORE_FAILED, Scope.CONNECTION, False, "the disk"))
    more = visit.rest()
    require(not more, "the client says something after ERROR (connection)", got=", ".join(map(str, more[:2])))
    trial.not_done("STORE_FAILED", "CONNECTION_LOST")
