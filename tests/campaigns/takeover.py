"""Takeover: the old connection hangs in a black hole, and the same command again does not wait for it.

The second command's OPEN is answered in one round trip, also while the server's disk takes seconds for a sync. What the
black hole swallowed is let go later, in the middle of the new attempt and after its end: it changes nothing, and the old
client is told. Attempts that are equal join; a smaller one is refused. The raw cases send bytes that differ, so that one
late byte that was written would be seen.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

from blockproto.errors import Code
from blockproto.wire import Ack, Commit, Committed, Credit, Error, Open, Opened

from .counting_proxy import Line, Proxy, Said
from .raw import Raw, RawFile
from .tools import (
    DONE,
    FAILED,
    MIB,
    Figures,
    Place,
    Running,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
    unfinished,
    wait_until,
)

SYNC_DELAY_S = 2.0


def program_with(sync: str) -> list[str]:
    """The command with another ``fdatasync``, ``fsync`` and ``syncfs``: the code ``sync`` runs before each of them."""
    code = f"""
import os, sys, time
def before(sync):
    def synced(fd):
        {sync}
        return sync(fd)
    return synced
os.fdatasync, os.fsync = before(os.fdatasync), before(os.fsync)
import blockproto.store.folder_io as disk
disk._syncfs = before(disk._syncfs)
from blockproto.cli import main
sys.exit(main())
"""
    return [sys.executable, "-c", code]


def slow_disk(delay_s: float = SYNC_DELAY_S) -> list[str]:
    """The command with a disk that takes ``delay_s`` for every sync."""
    return program_with(f"time.sleep({delay_s})")


def stuck_disk(while_there: Path) -> list[str]:
    """The command with a disk that finishes no sync while the file ``while_there`` is there."""
    return program_with(f"\n        while os.path.exists({str(while_there)!r}): time.sleep(0.01)")


class Takeover:
    """One case: client A in a black hole, client B with the same command.

    Args:
        place: where.
        server: which may have a slow disk.
        proxy: before it.
    """

    def __init__(self, place: Place, server: Server, proxy: Proxy) -> None:
        self._place = place
        self._server = server
        self._proxy = proxy

    def run(
        self, source: Path, swallowed: int, released_in_the_middle: bool, stuck: Path | None = None
    ) -> float:
        """Take over after ``swallowed`` payload bytes; returns the seconds from OPEN to OPENED.

        With ``stuck`` no sync ends while that file is there: until the new attempt has been answered.
        """
        self._proxy.tally.forget()
        if stuck is not None:
            stuck.touch()
        first = self.into_black_hole(source, swallowed)
        lines = len(self._proxy.lines)
        missing = source.stat().st_size - self._proxy.tally.acked_bytes()
        gate = self._proxy.hold(payload_bytes=missing // 2, new_lines=True)
        second = self.start(source)
        wait_until(lambda: gate.reached.is_set() or second.ended, "the new attempt")
        answered_s = answer_s(self._proxy.lines[lines])
        if stuck is not None:
            require(not self._proxy.tally.acked_bytes(), "a block was acknowledged that is not durable")
            stuck.unlink()
        if released_in_the_middle:
            self.let_go(first)
        self._proxy.release()
        second.end().require(DONE)
        require_same(self._place.served / source.name, source)
        if not released_in_the_middle:
            self.let_go(first)
        self._proxy.wait_idle()
        require_same(self._place.served / source.name, source)
        self.require_alone(source.name)
        return answered_s

    def start(self, source: Path) -> Running:
        """The command."""
        return self._place.start("put", source, self._proxy.address, "--json")

    def into_black_hole(self, source: Path, swallowed: int) -> Running:
        """Start the command, and let its connection hang after ``swallowed`` payload bytes, in the middle of a block."""
        gate = self._proxy.hold(payload_bytes=swallowed)
        first = self.start(source)
        gate.wait()
        self._proxy.freeze()
        self._proxy.release()
        return first

    def let_go(self, first: Running) -> None:
        """The old attempt's bytes arrive after all; its client is told that another took over."""
        self._proxy.thaw()
        told = first.end().require(FAILED)
        require("took this upload over" in told.err, f"the old client is told: {told.err}")

    def require_alone(self, name: str) -> None:
        """There is the one file and nothing unfinished."""
        listed = sorted(path.name for path in self._place.served.iterdir())
        require(listed == [".blockproto", name], f"in the served folder: {listed}")
        require(not unfinished(self._server), f"unfinished: {unfinished(self._server)}")
        (self._place.served / name).unlink()


def answer_s(line: Line) -> float:
    """From OPEN to OPENED at the proxy, and that nothing else had to be said between them: one round trip."""
    said = list(line.said)
    opening = next(one for one in said if isinstance(one.message, Open))
    answer = next(one for one in said if isinstance(one.message, Opened))
    between = [one for one in said if one.forth and opening.at_s < one.at_s < answer.at_s]
    require(not between, f"said before the answer: {[_name(one) for one in between]}")
    return answer.at_s - opening.at_s


def _name(said: Said) -> str:
    return type(said.message).__name__


# ---- attempts, by hand ----------------------------------------------------------------------------------------


def equal_attempts_join(port: int, content: bytes) -> None:
    """Two connections with one attempt carry a block each; either's COMMIT is for both."""
    file = RawFile(content, filename="joined.bin", sourceid=b"equal attempts..")
    require(file.blocknum == 2, "a file of two blocks")
    with Raw(port) as one, Raw(port) as other:
        for raw in (one, other):
            opened, _ = raw.say_open(1, file.open(attempt=7), [Opened])
            require(opened.attempt == 7, f"the attempt is {opened.attempt}")
        one.say(1, file.block(0), file.bytes_of(0))
        other.say(1, file.block(1), file.bytes_of(1))
        for raw in (one, other):
            _wait_for_blocks(raw, 2)
        one.say(1, file.commit())
        answers = {(answer.stored_as, answer.root) for answer in (one.hear(Committed), other.hear(Committed))}
        require(answers == {(file.filename, file.root)}, f"both are told the same: {answers}")


def _wait_for_blocks(raw: Raw, count: int) -> None:
    held: set[int] = set()
    while len(held) < count:
        ack = raw.hear(Ack)
        held.update(blockno for first, number in ack.held for blockno in range(first, first + number))


def smaller_attempt_is_told(port: int, content: bytes) -> None:
    """A smaller attempt is refused with the one that owns the upload, which goes on undisturbed."""
    file = RawFile(content, filename="owned.bin", sourceid=b"smaller attempt.")
    with Raw(port) as owner, Raw(port) as late:
        owner.say_open(1, file.open(attempt=9), [Opened])
        refused, _ = late.say_open(1, file.open(attempt=8), [Error])
        require(refused.code == Code.SUPERSEDED, f"refused with {refused.code}")
        require(refused.current == 9, f"the attempt that owns it is {refused.current}")
        require(not refused.retryable, "it may not be retried")
        _send_all(owner, file)


def late_pieces_change_nothing(port: int, content: bytes) -> None:
    """The old attempt sends other bytes for the block that the new one is sending, before, between and after its pieces."""
    file = RawFile(content, filename="late.bin", sourceid=b"late pieces.....")
    half = MIB // 2
    wrong = bytes(reversed(file.bytes_of(0)))
    with Raw(port) as old, Raw(port) as new:
        old.say_open(1, file.open(attempt=1), [Opened])
        old.say(1, file.block(0, ends=False), wrong[: half // 2])
        opened, _ = new.say_open(1, file.open(attempt=2), [Opened])
        require(opened.attempt == 2, f"the attempt is {opened.attempt}")
        require(old.hear(Error).code == Code.SUPERSEDED, "the old attempt is told")
        new.say(1, file.block(0, ends=False), file.bytes_of(0)[:half])
        old.say(1, file.piece(0, half // 2), wrong[half // 2 :])
        old.hear(Credit)  # what came late was read, and its credit returned
        new.say(1, file.piece(0, half), file.bytes_of(0)[half:])
        for blockno in range(1, file.blocknum):
            new.say(1, file.block(blockno), file.bytes_of(blockno))
        new.say(1, file.commit())
        committed = new.hear(Committed, Error)
        require(isinstance(committed, Committed), f"the new attempt is done, not {committed}")


def _send_all(raw: Raw, file: RawFile) -> None:
    for blockno in range(file.blocknum):
        raw.say(1, file.block(blockno), file.bytes_of(blockno))
    raw.say(1, file.commit())
    committed = raw.hear(Committed, Error)
    require(isinstance(committed, Committed), f"done, not {committed}")


def raw_cases(place: Place, server: Server, rng: random.Random) -> None:
    """The cases by hand, on a running server, and that the files are what was sent."""
    content = rng.randbytes(2 * MIB)
    equal_attempts_join(server.port, content)
    smaller_attempt_is_told(server.port, content)
    late_pieces_change_nothing(server.port, content)
    for name in ("joined.bin", "owned.bin", "late.bin"):
        require((place.served / name).read_bytes() == content, f"{name} is not what was sent")
        (place.served / name).unlink()


def past_a_commit_under_way(place: Place) -> None:
    """The old attempt's COMMIT is with the disk when the new one begins: it is done, and the new client is told so."""
    stuck = place.folder / "the disk is stuck"
    source = make_file(place.folder / "committing.bin", 20 * MIB, "committing")
    with Server(place, program=stuck_disk(stuck)) as server, Proxy(lambda: server.port) as proxy:
        stuck.touch()
        committing = proxy.observer(message=Commit)
        first = place.start("put", source, proxy.address)
        committing.wait()
        sending = proxy.hold(payload_bytes=5 * MIB + 5, new_lines=True)
        second = place.start("put", source, proxy.address)
        sending.wait()
        told = proxy.lines[-1]
        stuck.unlink()
        wait_until(lambda: any(isinstance(one.message, Committed) for one in told.said), "COMMITTED")
        proxy.release()
        second.end().require(DONE)
        first.end().require(DONE, FAILED)
        require_same(place.served / source.name, source)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    (place.served / source.name).unlink()


def run(place: Place, rng: random.Random, rounds: int, filesize: int) -> Figures:
    """``rounds`` takeovers with a quick disk and as many with a slow one."""
    figures: Figures = {"campaign": "takeover", "rounds": rounds}
    past_a_commit_under_way(place)
    for disk, program in (("quick", None), ("slow", slow_disk())):
        times_s = []
        with _serving(place, program) as server, Proxy(lambda: server.port) as proxy:
            raw_cases(place, server, rng)
            for number in range(rounds):
                source = make_file(place.folder / f"{disk} {number}.bin", filesize, (disk, number))
                takeover = Takeover(place, server, proxy)
                swallowed = rng.randrange(MIB, min(filesize, 24 * MIB))
                times_s.append(takeover.run(source, swallowed, released_in_the_middle=number % 2 == 0))
            require(server.stop(signal.SIGTERM) == DONE, "the server did not end in order")
        place.require_clean()
        figures[f"{disk}_disk_opened_ms"] = [round(1e3 * time_s, 2) for time_s in times_s]
        figures[f"{disk}_disk_opened_ms_most"] = round(1e3 * max(times_s), 2)
    return figures


def _serving(place: Place, program: list[str] | None) -> Server:
    return Server(place) if program is None else Server(place, program=program)


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--mib", type=int, default=96, help="size of each file")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, random.Random(given.seed), given.rounds, given.mib * MIB))


if __name__ == "__main__":
    sys.exit(main())
