"""Text of the other side is escaped in every format of the log, at every level, wherever in a record it stands."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peers import Sample
from processes import COMMAND, Process

from blockproto.cli.output import ShownFormatter
from blockproto.errors import Code, Scope
from blockproto.serving.logs import FORMATS
from blockproto.watch import Visitor
from blockproto.wire import PREFACE, Error, Hello, encode_frame

EVIL = (
    "\x1b[31mred\x9b2J\r\n2026-01-01 00:00:00,000 CRITICAL forged  peer=you\u202egpj.exe\u2028x\x7f\x00\udc80"
)


def record(**changes: object) -> logging.LogRecord:
    made = logging.LogRecord("blockproto", logging.ERROR, __file__, 1, "%s ends", (EVIL,), None)
    made.__dict__.update(changes)
    return made


def raised() -> logging.LogRecord:
    try:
        raise ValueError(EVIL) from KeyError(EVIL)
    except ValueError:
        return record(exc_info=sys.exc_info(), stack_info=f"Stack:\n{EVIL}")


RECORDS = {
    "the message": record(),
    "facts": record(facts={"name": EVIL, "text": f"two words {EVIL}", "none": None, "path": Path(EVIL)}),
    "the principal and the peer": record(visitor=Visitor(7, EVIL, EVIL), facts={}),
    "a traceback and the stack": raised(),
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("form", [*FORMATS.values(), ShownFormatter])
def test_no_character_that_a_terminal_obeys(form: type[logging.Formatter], what: str) -> None:
    text = form().format(RECORDS[what])
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    _, *below = text.split("\n")
    assert "forged" in text
    assert all(line.startswith("  ") for line in below)
    if form is FORMATS["json"]:
        assert not below
        said = json.loads(text)
        assert "\x1b" not in "".join(map(str, said.values()))
        assert "\n2026" not in "".join(map(str, said.values()))
    assert not any(line.startswith("2026-01-01") for line in below)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("verbose", [["--log-level", "debug"], ["-vv"]])
def test_a_server_that_hears_such_text_logs_it_escaped(form: str, verbose: list[str], tmp_path: Path) -> None:
    evil = EVIL.replace("\udc80", "").replace("\0", "")
    command = [*COMMAND, "serve", str(tmp_path), "--listen", "127.0.0.1:0", "--log-format", form, *verbose]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as line:
            block, _ = Sample(b"x", f"note{evil}").block(0, commit=True)
            line.sendall(PREFACE + encode_frame(0, Hello(agent=evil)) + encode_frame(1, block, 1) + b"x")
            line.sendall(encode_frame(0, Error(int(Code.INTERNAL), int(Scope.CONNECTION), False, evil)))
            line.settimeout(30)
            while line.recv(65_536):
                pass
        process.terminate()
        _, err = process.communicate(timeout=30)
    text = err.decode()
    assert "forged" in text
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert not any(line.startswith("2026-01-01") for line in text.split("\n"))
