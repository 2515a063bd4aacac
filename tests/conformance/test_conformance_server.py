"""``blockproto conform server`` as people run it: against our own server, against none, against what is no server.

``test_our_server_passes_everything`` is the whole run; the others play with servers of a few lines.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import COMMAND, Ran, Server

from blockproto import wire
from blockproto.cli import main
from blockproto.conformance import timing
from blockproto.conformance.outcome import EXIT_FAILED, EXIT_PASSED, EXIT_UNREACHABLE, EXIT_USAGE, Report
from blockproto.conformance.runner import Runner
from blockproto.conformance.server import ServerSubject, all_cases
from blockproto.conformance.target import Target
from blockproto.conformance.timing import Patience
from blockproto.conformance.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[2]
MUST_CASES = [case for case in all_cases() if case.level == "MUST"]


RUN_S = 180.0
Conform = Callable[..., Ran]


@pytest.fixture
def conform(tmp_path: Path) -> Conform:
    """Run ``blockproto conform server``; what failed is remembered in a folder of the test."""

    def run(*arguments: str | Path) -> Ran:
        ran = subprocess.run(
            [*COMMAND, "conform", "server", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "300"},
            timeout=RUN_S,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def verdicts_of(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["case"]: row["verdict"] for row in rows if "case" in row}


# ---- our own server


@pytest.mark.long
def test_our_server_passes_everything(conform: Conform, tmp_path: Path) -> None:
    """Every case, those of both dialects and the faults included: all required ones pass, and nothing stays behind."""
    folder = tmp_path / "served"
    folder.mkdir()
    port = free_port()
    adapter = f"{sys.executable} {ROOT / 'tests' / 'server_adapter.py'} {folder} {port}"
    adapter += " --dialect sourceid --dialect struct82"
    files = [tmp_path / name for name in ("run.jsonl", "run.xml", "run.html")]
    reports = ["--json", files[0], "--junit", files[1], "--html", files[2]]
    profiles = ["--profile", "DIALECTS", "--profile", "CONNECTION"]
    ran = conform(f"127.0.0.1:{port}", "--adapter", adapter, *profiles, "--slow", "4", *reports)
    assert ran.status == EXIT_PASSED, ran.err[-8_000:]
    verdicts = verdicts_of(files[0])
    assert set(verdicts) == {case.name for case in all_cases()}
    asked = {case.name for case in all_cases() if case.profile != "IDENTITY"}  # test_conformance_identity.py
    left = {name: verdict for name, verdict in verdicts.items() if verdict != "PASS" and name in asked}
    assert set(left.values()) <= {"NON_STRICT", "UNSUPPORTED"}
    assert len(left) <= 3, left
    assert all(path.stat().st_size > 10_000 for path in files)
    assert [path.name for path in folder.iterdir()] == [".blockproto"], "a run removes what it stored"


@pytest.mark.long
def test_our_server_with_portable_names_passes_too(
    conform: Conform, start_server: Callable[..., Server]
) -> None:
    """It may refuse names (NAM-005), so the harness asks no other case to store such ones."""
    server = start_server(None, "--names", "portable")
    ran = conform(f"127.0.0.1:{server.port}", "--quick")
    assert ran.status == EXIT_PASSED, ran.err[-8_000:]


# ---- nobody, or somebody else


def test_a_closed_port_is_unreachable(conform: Conform) -> None:
    ran = conform(f"127.0.0.1:{free_port()}")
    assert ran.status == EXIT_UNREACHABLE
    assert "nothing accepts connections at 127.0.0.1:" in ran.err
    assert len(ran.err.splitlines()) == 1


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection with a function, in threads; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the harness closes whenever it has seen enough
            serve(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def speaks_http(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def says_nothing(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def closes(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def echoes(connection: socket.socket) -> None:
    while received := connection.recv(65_536):
        connection.sendall(received)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (speaks_http, "is not a blockproto server"),
        (says_nothing, "does not answer the greeting"),
        (closes, "is not a blockproto server"),
    ],
)
def test_what_is_no_server_is_told_in_one_sentence(
    conform: Conform, serve: Callable[[socket.socket], None], words: str
) -> None:
    with server(serve) as port:
        ran = conform(f"127.0.0.1:{port}", "--slow", "0.1")
    assert ran.status == EXIT_UNREACHABLE
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say which server"),
        (("localhost:1", "-k", "no such case"), "no case matches"),
        (("localhost:1", "--profile", "LUXURY"), "no profile 'LUXURY'"),
        (("localhost:notaport",), "port"),
        (("localhost:1", "--jobs", "0"), "--jobs"),
    ],
)
def test_usage(conform: Conform, arguments: tuple[str, ...], words: str) -> None:
    ran = conform(*arguments)
    assert ran.status == EXIT_USAGE
    assert words in ran.err


def test_list_and_explain_need_no_server(conform: Conform) -> None:
    listed = conform("--list", "-k", "bp1/res/*")
    assert listed.status == 0
    assert listed.out.count("\n") == sum(case.name.startswith("bp1/res/") for case in all_cases())
    told = conform("--explain", "bp1/res/takeover/late-piece-of-a-smaller-attempt")
    assert told.status == 0
    assert "BP1-RES-006 MUST" in told.out


# ---- servers that are wrong


def greets(connection: socket.socket) -> bytes:
    """Preface and HELLO, without a look at the client's."""
    connection.sendall(wire.PREFACE + wire.encode_frame(0, wire.Hello(agent="tiny")))
    return connection.recv(65_536)


def pinging(spoil: Callable[[bytes], bytes] = lambda opaque: opaque) -> Callable[[socket.socket], None]:
    """A server that can only greet and answer PING, perhaps with other bytes."""

    def serve(connection: socket.socket) -> None:
        received = greets(connection)[len(wire.PREFACE) :]
        while True:
            while len(received) < 16 or len(received) < 16 + wire.decode_header(received).length:
                more = connection.recv(65_536)
                if not more:
                    return
                received += more
            header = wire.decode_header(received)
            head, received = received[16 : 16 + header.length], received[16 + header.length :]
            if header.type == wire.Type.PING:
                connection.sendall(wire.encode_frame(0, wire.Ping(spoil(head[:8]), 0, answer=True)))

    return serve


@pytest.fixture
def conform_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The command in this process, with little patience: its servers answer at once or never."""
    monkeypatch.setattr(timing, "ANSWER_LEAST_S", 0.6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str | Path) -> Ran:
        status = main(["conform", "server", *map(str, arguments), "--slow", "0.01"])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run


def test_a_failure_says_what_where_and_how_to_see_it_again(conform_here: Conform) -> None:
    name = "bp1/frm/check/flipped-head"
    with server(pinging()) as port:
        ran = conform_here(f"127.0.0.1:{port}", "-k", "bp1/end/ping/anything", "-k", name)
    assert ran.status == EXIT_FAILED
    assert f"HANG {name}" in ran.err
    assert "BP1-FRM-010 MUST" in ran.err
    assert f"blockproto conform server 127.0.0.1:{port} --slow 0.01 -k {name}" in ran.err
    assert "FAIL bp1/end/ping" not in ran.err
    assert "the sanity check" in ran.err


def test_a_wrong_answer_shows_the_first_byte_that_differs(conform_here: Conform) -> None:
    with server(pinging(lambda opaque: opaque.replace(b"\xff" * 3, b"\xff\x55\xff"))) as port:
        ran = conform_here(f"127.0.0.1:{port}", "-k", "bp1/end/ping/ones")
    assert ran.status == EXIT_FAILED
    assert "FAIL bp1/end/ping/ones: PING has another opaque" in ran.err
    assert re.search(r"differs at +byte \d+ of the frame", ran.err)
    assert "ff55ff" in ran.err


def test_only_what_failed_is_run_again(conform_here: Conform) -> None:
    wrong = pinging(lambda opaque: opaque.replace(b"\xff" * 3, b"\xff\x55\xff"))
    with server(wrong) as port:
        address = f"127.0.0.1:{port}"
        assert (
            conform_here(address, "-k", "bp1/end/ping/ones", "-k", "bp1/end/ping/zeros").status == EXIT_FAILED
        )
        again = conform_here(address, "-v", "--failed")
    assert "FAIL bp1/end/ping/ones" in again.err
    assert "ping/zeros" not in again.err


def test_known_failures_are_excused(conform_here: Conform, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(
        "bp1/end/ping/ones: PING has another opaque\n"
        "bp1/sanity/upload-and-fetch: the sanity check before the first case: "
        "nothing came in the time that COMMITTED on stream 3 may take\n",
        encoding="utf-8",
    )
    with server(pinging(lambda opaque: opaque.replace(b"\xff" * 3, b"\xff\x55\xff"))) as port:
        ran = conform_here(f"127.0.0.1:{port}", "-k", "bp1/end/ping/ones", "--known-failures", known)
    assert ran.status == EXIT_FAILED, "the last sanity check has another message"
    assert "1 failures" in ran.err


@pytest.mark.long
def test_a_server_that_dies_in_the_middle_is_blamed_at_its_case_and_the_run_goes_on(
    conform_here: Conform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LIST kills the process; the adapter brings it back."""
    monkeypatch.setattr(
        timing, "ANSWER_LEAST_S", 2.0
    )  # a new process takes a moment, on a busy machine longer
    port = free_port()
    script = tmp_path / "mortal.py"
    script.write_text(MORTAL, encoding="utf-8")
    report = tmp_path / "run.jsonl"
    adapter = f"{sys.executable} {script} {port}"
    chosen = ["-k", "bp1/end/ping/*s", "-k", "bp1/lst/receipts/without-ids", "-k", "bp1/end/ping/anything"]
    ran = conform_here(f"127.0.0.1:{port}", "--adapter", adapter, "--json", report, "--jobs", "2", *chosen)
    assert ran.status == EXIT_FAILED
    verdicts = verdicts_of(report)
    assert verdicts["bp1/lst/receipts/without-ids"] == "CRASH"
    assert verdicts["bp1/end/ping/zeros"] == verdicts["bp1/end/ping/anything"] == "PASS"
    assert "waiting for it to come back" in ran.err
    assert "the target is back" in ran.err


MORTAL = '''
import json, os, subprocess, sys

SERVER = """
import os, socket, sys, threading
from blockproto import wire
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
print("ready", flush=True)
def serve(c):
    c.sendall(wire.PREFACE + wire.encode_frame(0, wire.Hello()))
    held = c.recv(8)
    while True:
        while len(held) < 16 or len(held) < 16 + wire.decode_header(held).length:
            more = c.recv(65536)
            if not more:
                return
            held = (b"" if held == wire.PREFACE else held) + more
        header = wire.decode_header(held)
        head, held = held[16 : 16 + header.length], held[16 + header.length :]
        if header.type == wire.Type.PING and not header.flags & 1:
            c.sendall(wire.encode_frame(0, wire.Ping(head[:8], 0, answer=True)))
        if header.type == wire.Type.LIST:
            os._exit(1)
while True:
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""
process = None
for line in sys.stdin:
    do = json.loads(line)["do"]
    if process is None or (do == "start" and process.poll() is not None):
        process = subprocess.Popen([sys.executable, "-c", SERVER, sys.argv[1]], stdout=subprocess.PIPE)
        process.stdout.readline()
    print(json.dumps({"ok": True, "can": ["start"]}), flush=True)
process.kill()
process.wait()
'''


# ---- null implementations


def babbles(connection: socket.socket) -> None:
    """A greeting as it should be, then noise."""
    noise = random.Random(1)
    greets(connection)
    while connection.recv(65_536):
        connection.sendall(noise.randbytes(200))


def agrees(connection: socket.socket) -> None:
    """A greeting as it should be, then COMMITTED to everything."""
    greets(connection)
    while connection.recv(65_536):
        connection.sendall(wire.encode_frame(1, wire.Committed(bytes(16), bytes(16), bytes(32), 0, "ok")))


STRIDE = {says_nothing: 29, babbles: 5, agrees: 5}
"""Of those that make the harness wait, each so many-th case."""

CLOSING = (
    "/preface/not-",
    "/preface/nothing-",
    "/vec/refused/greeting/http",
    "/vec/refused/greeting/text-mode",
)
RIGHT: dict[object, tuple[str, ...]] = {
    closes: CLOSING,
    says_nothing: (),
    echoes: ("/hello/what-a-server-says",),
    babbles: ("/hello/what-a-server-says",),
    agrees: ("/hello/what-a-server-says",),
}
"""The cases whose right answer is what such a server does."""


@pytest.mark.parametrize(
    "serve", [closes, says_nothing, echoes, babbles, agrees], ids=lambda serve: serve.__name__
)
def test_null_implementations_pass_no_must_whose_answer_is_another(
    serve: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not let in by the command, so the cases are run without its first look; a sample of each chapter."""
    monkeypatch.setattr(timing, "ANSWER_LEAST_S", 0.2)

    class Quiet:
        def begin(self, total: int) -> None: ...
        def ended(self, outcome: object) -> None: ...
        def said(self, text: str) -> None: ...

    cases = [case for case in MUST_CASES if not case.slow and not case.needs][:: STRIDE.get(serve, 1)]
    with server(serve) as port:
        subject = ServerSubject(Target("127.0.0.1", port, Patience(0.01)))
        subject.alive = lambda: True  # type: ignore[method-assign]
        report = Runner(subject, Quiet(), jobs=8).run(cases, Report("null"))
    passed = {one.case.name for one in report.of(Verdict.PASS, Verdict.NON_STRICT)}
    assert len(report.outcomes) >= len(cases)
    assert {name for name in passed if not any(part in name for part in RIGHT[serve])} == set()
