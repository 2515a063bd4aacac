"""What a server says, on a real terminal: names, and texts of errors, that would move its cursor or change what it shows.

The server is the conformance harness's: ours would refuse to keep such names.
"""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain

import pytest
from campaigns.attack_names import hostile_names
from processes import COMMAND, Process

from blockproto import wire
from blockproto.conformance.client.shelf import Shelf
from blockproto.conformance.client.visit import Visit
from blockproto.conformance.sample import Sample
from blockproto.conformance.timing import Patience
from blockproto.conformance.transcript import Transcript
from blockproto.conformance.verdicts import Failed
from blockproto.errors import Code, Scope

CONTROLS = [
    chr(point) for point in chain(range(0x20), range(0x7F, 0xA0), range(0x202A, 0x202F), (0x2028, 0x2029))
]
NASTY = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x1bP1;1|\x1b\\", "\x1b]52;c;cm0gLXJm\x07", "a\r\nb",
    "gnp.\u202eexe", *(f"a{one}b" for one in CONTROLS),
]  # fmt: skip
HARMFUL = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
"""Everything that a terminal obeys, but the ends of our own lines."""


def names() -> list[str]:
    """Names that can be said in UTF-8; as many of the corpus as one answer holds."""
    able = [name for name in hostile_names()[::40] if name.isprintable() or HARMFUL.search(name)]
    return sorted({name for name in (*NASTY, *able) if 0 < len(name) < 200 and max(name) < "\ud800"})


@contextmanager
def nasty_server() -> Iterator[str]:
    """A server that has such names, finished and unfinished, and refuses whatever else is asked in such words."""
    shelf = Shelf()
    for number, name in enumerate(names()):
        shelf.offer(Sample(name, 10, bytes(16)))
        facts = (number.to_bytes(16, "big"), bytes(16), 10, 1, 0, 0, 0, name, name)
        shelf.unfinished.append(wire.UploadItem(*facts))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    visit = Visit(listener.accept()[0], 1, Transcript(), Patience(4), str)
                    with visit, suppress(Failed):
                        visit.welcome()
                        while True:
                            heard = visit.hear()
                            if not shelf.answer(visit, heard) and heard.stream:
                                visit.say(heard.stream, refusal())

        threading.Thread(target=serve, daemon=True).start()
        yield f"bp://127.0.0.1:{listener.getsockname()[1]}/"


def refusal() -> wire.Error:
    return wire.Error(Code.NOT_PERMITTED, Scope.STREAM, False, "".join(NASTY[:8]))


def shown(*words: str) -> str:
    """Everything that a command shows on a terminal of its own, on which it draws nothing itself."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "500"}
    process = Process(
        [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # EIO: nobody has the other end any more
        while more := os.read(ours, 65_536):
            said += more
    os.close(ours)
    process.wait(60)
    return said.decode()


@pytest.mark.parametrize("command", ["ls", "uploads", "get"])
def test_nothing_that_a_server_says_is_obeyed_by_a_terminal(command: str, tmp_path: object) -> None:
    with nasty_server() as address:
        words = {"ls": ["ls", "-r"], "uploads": ["uploads"], "get": ["get"]}[command]
        said = shown(*words, address, *([str(tmp_path)] if command == "get" else []))
    assert "\\x1b" in said, f"nothing of it was shown at all: {said}"
    found = HARMFUL.search(said)
    assert found is None, repr(said[max(0, found.start() - 60) : found.start() + 20])
