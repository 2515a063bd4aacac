"""Text of the other side is escaped in every format of the log, at every level, wherever in a record it stands."""

from __future__ import annotations

import ast
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peers import Sample
from processes import COMMAND, Process

import blockproto
from blockproto.cli.output import ShownFormatter
from blockproto.errors import Code, Scope
from blockproto.observability.logs import FORMATS
from blockproto.observability.observer import ConnectionLabel
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
    "the principal and the peer": record(visitor=ConnectionLabel(7, EVIL, EVIL), facts={}),
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


def test_a_sentence_has_the_name_of_its_event_and_the_peer_once() -> None:
    """Programs look for a name that stays the same; people read the sentence."""
    named = {
        "event": "upload answered",
        "facts": {"name": "x", "position": 0},
        "connection_label": ConnectionLabel(7, "peer:1"),
    }
    sentence = record(msg="%s: %s is taken from byte 0 on", args=("peer:1", "x"), **named)
    said = json.loads(FORMATS["json"]().format(sentence))
    assert {key: said[key] for key in said if key != "time"} == {
        "level": "error", "event": "upload answered", "connection": 7, "peer": "peer:1", "name": "x", "position": 0,
    }  # fmt: skip
    assert (
        FORMATS["text"]().format(sentence).endswith("ERROR peer:1: x is taken from byte 0 on  connection=7")
    )
    without = json.loads(FORMATS["json"]().format(record(event="store failed")))
    assert (without["event"], without["text"][-4:]) == ("store failed", "ends")
    assert json.loads(FORMATS["json"]().format(record()))["event"] == "message"


SERVING = [
    path
    for path in Path(blockproto.__file__).parent.rglob("*.py")
    if not {"client_side", "cli", "conformance"}
    & set(path.relative_to(Path(blockproto.__file__).parent).parts)
]


LOGGING = {f"log.{name}" for name in ("debug", "info", "warning", "error", "exception", "critical", "log")}


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.name)
def test_every_record_of_a_server_has_the_name_of_its_event(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in LOGGING:
            assert "extra" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


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
