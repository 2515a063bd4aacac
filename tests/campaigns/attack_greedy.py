"""One greedy principal against fifty polite ones: how long do the polite wait for their files to be durable?

    cd tests; python -m campaigns.attack_greedy [--polite 50] [--seconds 6] [--rounds 3]

Each polite principal sends a small file ten times a second on a connection of its own, and waits for COMMITTED. The greedy
one sends files as fast as four connections take them, four hundred unanswered on each. Rounds take turns: alone, beside a
process that only makes such files and sends them nowhere (what a taken processor costs, whatever the server does), and
beside the greedy one. Kept: nobody is refused or let go, and each polite one has files stored in every round. How long they
wait is a figure: ``python -m benchmarks --only greedy`` judges it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from multiprocessing.synchronize import Event

import trio

from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Auth,
    Committed,
    Error,
    Hello,
    decode_head,
    decode_header,
    encode_frame,
)

from .attack_names import block
from .pipeline import Pipeline
from .tools import DONE, Figures, Place, Server, campaign, parser, require

EVERY_S = 0.1
LENGTH = 4096
GREEDY_CONNECTIONS = 4


class Polite:
    """One polite principal: a file every ``EVERY_S``, and how long each took to be durable."""

    def __init__(self, number: int, port: int, token: str | None) -> None:
        self.took: list[float] = []
        self._number = number
        self._port = port
        self._token = token
        self._heard = b""

    async def run(self, until: float, round_: int) -> None:
        """Send files until then."""
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with stream:
            asked = encode_frame(1, Auth(self._token)) if self._token is not None else b""
            await stream.send_all(PREFACE + encode_frame(0, Hello(agent="polite")) + asked)
            await self._take(stream, len(PREFACE))
            number = 3
            next_s = trio.current_time() + EVERY_S * (self._number % 50) / 50
            while next_s < until:
                await wait_for_turn(timeout_s=next_s - trio.current_time())
                next_s += EVERY_S
                source = (round_ << 32 | self._number << 20 | number) + (1 << 100)
                message, content = block(f"{round_}/{number}", source, bytes(LENGTH))
                begun = trio.current_time()
                await stream.send_all(encode_frame(number, message, LENGTH) + content)
                await self._committed(stream)
                self.took.append(trio.current_time() - begun)
                number += 2

    async def _committed(self, stream: trio.SocketStream) -> None:
        while True:
            header = decode_header(await self._take(stream, HEADER_LENGTH))
            message = decode_head(header, await self._take(stream, header.head_length))
            require(not isinstance(message, Error), str(message))
            if isinstance(message, Committed):
                return

    async def _take(self, stream: trio.SocketStream, length: int) -> bytes:
        while len(self._heard) < length:
            more = await stream.receive_some(65_536)
            require(more, "the server closed a polite connection")
            self._heard += bytes(more)
        taken, self._heard = self._heard[:length], self._heard[length:]
        return taken


async def wait_for_turn(timeout_s: float) -> None:
    """The pace of a polite client."""
    if timeout_s > 0:
        await trio.sleep(timeout_s)


class Beside(Enum):
    """Who else there is in a round."""

    NOBODY = "alone"
    BUSY = "beside_a_busy_process"
    GREEDY = "beside_the_greedy_one"


def be_busy(_port: int, _token: str, begun: Event, round_: int) -> None:
    """Take a processor and nothing else: make the greedy one's files."""
    begun.set()
    for number in itertools.count():
        block(f"{round_}/{number}", number, bytes(LENGTH))


def be_greedy(port: int, token: str, begun: Event, round_: int) -> None:
    """Send as fast as four connections take it, until this process is ended."""

    def one(hand: int) -> None:
        with Pipeline(port, token) as pipeline, suppress(ConnectionError):
            number = 0
            while True:
                first = (round_ << 40 | hand << 32) + number
                asked = (
                    block(f"{round_}/{hand}/{first + at}", first + at, bytes(LENGTH)) for at in range(1200)
                )
                for answer in pipeline.ask(asked):
                    require(isinstance(answer, Committed), str(answer))
                number += 1200
                begun.set()

    hands = [threading.Thread(target=one, args=(hand,), daemon=True) for hand in range(GREEDY_CONNECTIONS)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()


@contextmanager
def running(beside: Beside, port: int, token: str, round_: int) -> Iterator[None]:
    """While inside, whoever else there is has begun and goes on."""
    if beside is Beside.NOBODY:
        yield
        return
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    target = be_busy if beside is Beside.BUSY else be_greedy
    process = context.Process(target=target, args=(port, token, begun, round_), daemon=True)
    process.start()
    try:
        require(begun.wait(30), f"who is {beside.value} does not begin")
        yield
    finally:
        process.kill()
        process.join()


def round_of(port: int, tokens: list[str], seconds: float, round_: int) -> float:
    """What 99 of 100 files of the polite ones waited at most in one round, in seconds."""
    polite = [Polite(number, port, token) for number, token in enumerate(tokens)]

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for one in polite:
                nursery.start_soon(one.run, trio.current_time() + seconds, round_)

    trio.run(all_of_them)
    for one in polite:
        require(one.took, "a polite principal had nothing stored in a whole round")
    return statistics.quantiles((took for one in polite for took in one.took), n=100)[98]


def run(place: Place, polite: int, seconds: float, rounds: int) -> Figures:
    """Rounds alone, beside a busy process and beside the greedy one, in turn."""
    state = place.served / ".blockproto"
    tokens = [
        place.run("token", "add", f"p{number}", "--state", state, "--folder", f"p{number}")
        .require(DONE)
        .out.strip()
        for number in range(polite)
    ]
    greedy = (
        place.run("token", "add", "greedy", "--state", state, "--folder", "greedy").require(DONE).out.strip()
    )
    p99: dict[Beside, list[float]] = {beside: [] for beside in Beside}
    with Server(place) as server:
        for round_ in range(rounds):
            for kind, beside in enumerate(Beside):
                number = len(Beside) * round_ + kind
                with running(beside, server.port, greedy, number):
                    p99[beside].append(round_of(server.port, tokens, seconds, number))
        require(server.stop() == DONE, "the server did not end in order")
    place.require_quiet_log()
    return {
        "campaign": "one greedy principal",
        "polite": polite,
        **{f"p99_ms_{beside.value}": [round(1e3 * one, 1) for one in p99[beside]] for beside in Beside},
        **{
            f"ratio_{beside.value}": round(_ratio(p99[beside], p99[Beside.NOBODY]), 2)
            for beside in (Beside.BUSY, Beside.GREEDY)
        },
    }


def _ratio(there: list[float], alone: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(there, alone, strict=True))


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--polite", type=int, default=50)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.polite, given.seconds, given.rounds))


if __name__ == "__main__":
    sys.exit(main())
