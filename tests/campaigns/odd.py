"""A server on a folder of odd things that change meanwhile, and messages pipelined in every order: it stays, and answers.

    cd tests; python -m campaigns.odd [--rounds 400] [--triples 2000]

First in memory: every pair of the messages that a client can say on one stream, with threads that come at once and late,
then random triples. After that a real process on a folder of odd things that somebody changes all the time: random
conversations on up to three streams, cut anywhere; after half of them the system starts no more threads. After each five a
good file is uploaded. Kept: the server is there at the end, every good file was committed, and nothing was logged that
nobody expected.
"""

from __future__ import annotations

import logging
import random
import resource
import socket
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from unittest import mock

import trio
from odd_folder import Churn, fill, remove
from peers import Sample
from peers import run as run_quickly
from said_together import FIRST, vocabulary
from test_said_together import answers_a_good_upload, filled, run_slowly, say

from blockproto.wire import PREFACE, Committed, Hello, Result, decode_head, decode_header, encode_frame

from .tools import DONE, Figures, Place, Server, campaign, parser, require

GREETING = PREFACE + encode_frame(0, Hello(agent="odd"))
WORDS = sorted(vocabulary(1))
PATIENCE_S = 60.0


class _Listening(logging.Handler):
    """Counts what nobody expected."""

    def __init__(self) -> None:
        super().__init__()
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.unexpected.append(record.getMessage())


def in_memory(triples: int, seed: int) -> dict[str, int]:
    """Every pair on one stream, and random triples."""
    heard = _Listening()
    logging.getLogger("blockproto").addHandler(heard)
    words = vocabulary(1)
    chosen = random.Random(seed)
    said = [*product(WORDS, repeat=2), *(tuple(chosen.choices(WORDS, k=3)) for _ in range(triples))]

    async def say_all(late: bool) -> None:
        async with filled() as served:
            with mock.patch.object(
                trio.to_thread, "run_sync", run_slowly if late else trio.to_thread.run_sync
            ):
                for together in said:
                    await say(served, [b"".join(words[word] for word in together)])
                    require(not heard.unexpected, f"{together}: {heard.unexpected}")
            require(await answers_a_good_upload(served), "a good upload was not answered")

    for late in (False, True):
        run_quickly(say_all, late)
    logging.getLogger("blockproto").removeHandler(heard)
    return {"pairs": len(WORDS) ** 2, "triples": triples}


def upload(port: int, number: int) -> float:
    """Upload a good file over a connection of its own; returns how long that took, in seconds."""
    sample = Sample(b"good %d" % number, f"good/{number}", sourceid=number.to_bytes(16, "big"))
    message, payload = sample.block(0, commit=True)
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as line:
        line.sendall(GREETING + encode_frame(1, message, len(payload)) + payload)
        with line.makefile("rb") as answers:
            answers.read(len(PREFACE))
            while True:
                header = decode_header(answers.read(16))
                answer = decode_head(header, answers.read(header.head_length))
                if isinstance(answer, Committed):
                    return time.monotonic() - begun
                require(
                    header.stream != 1 or isinstance(answer, Result), f"a good upload was answered {answer}"
                )


def converse(port: int, chosen: random.Random) -> None:
    """Say something random in one segment or two, read what comes for a moment or not at all, and hang up."""
    words = {stream: vocabulary(stream) for stream in (1, 3, 5)}
    said = b"".join(
        words[chosen.choice((1, 3, 5))][chosen.choice(FIRST if chosen.random() < 0.4 else WORDS)]
        for _ in range(chosen.randrange(1, 9))
    )
    cut = chosen.randrange(len(said) + 1) if chosen.random() < 0.3 else len(said)
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as line:
        line.sendall(GREETING + said[:cut])
        line.sendall(said[cut:] if chosen.random() < 0.5 else b"")
        line.settimeout(chosen.choice((0.001, 0.02, 0.1)))
        with suppress(TimeoutError):
            while chosen.random() < 0.8 and line.recv(1 << 16):
                pass


def no_more_threads(pid: int) -> None:
    """Let the process have no memory for one more thread's stack than it has now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    data_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    limit = data_kib * 1024 + (6 << 20)
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


def with_a_process(place: Place, rounds: int, seed: int) -> dict[str, float]:
    """Random conversations with a server whose folder is odd and changes."""
    chosen = random.Random(seed)
    odd = fill(place.served, sparse=1 << 36)
    took_s: list[float] = []
    try:
        with Server(place) as server, Churn(place.served, seed):
            for number in range(rounds):
                if number == rounds // 2:
                    no_more_threads(server.pid)
                converse(server.port, chosen)
                if number % 5 == 0:
                    took_s.append(upload(server.port, number + 1))
            require(server.stop() == DONE, "the server did not end in order")
        place.require_quiet_log()
    finally:
        for folder in (odd.folder, place.served):
            remove(folder)
    return {"conversations": rounds, "good_p99_ms": round(sorted(took_s)[int(len(took_s) * 0.99)] * 1000, 1)}


def run(place: Place, rounds: int, triples: int, seed: int) -> Figures:
    """Both parts."""
    return {"campaign": "odd", **in_memory(triples, seed), **with_a_process(place, rounds, seed)}


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=400)
    options.add_argument("--triples", type=int, default=2000)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.rounds, given.triples, given.seed))


if __name__ == "__main__":
    sys.exit(main())
