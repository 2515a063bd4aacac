"""``put -``: what is said of a stream that cannot be read again, and how the command ends while nothing comes."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
import trio
from hostile_server import Asked, HostileServer, frame
from processes import COMMAND, TIMEOUT_S, Process, Ran, Server, wait_until, wait_until_held

from blockproto.cli import access
from blockproto.cli.output import Status
from blockproto.cli.progress import Meter
from blockproto.cli.stopped import STOP
from blockproto.errors import Code
from blockproto.transfer.send_source import Progress
from blockproto.wire import Error, List, Result

Run = Callable[..., Ran]
MIB = 1 << 20


@contextmanager
def put_of_silence(address: str, *options: str) -> Iterator[Process]:
    """A ``put -`` that has had two blocks acknowledged and waits for more, in a thread that reads stdin."""
    command = [*COMMAND, "put", "-", f"{address}/", *options]
    with Process(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin is not None
        client.stdin.write(os.urandom(2 * MIB + 1))
        client.stdin.flush()
        trio.run(wait_until_held, address, 2)
        yield client


def end_of(client: Process) -> tuple[int, str]:
    """The exit code and stderr of a command whose stdin stays open until it has ended."""
    status = client.wait(TIMEOUT_S)
    assert client.stderr is not None
    return status, client.stderr.read().decode()


def test_ctrl_c_removes_what_nobody_can_go_on_with_and_says_so(server: Server, run: Run) -> None:
    with put_of_silence(server.address) as client:
        client.send_signal(signal.SIGINT)
        status, said = end_of(client)
    assert (status, "Fatal" in said) == (Status.INTERRUPTED, False), said
    assert " of it that the server had were removed there" in said
    assert "same command" not in said
    assert run("uploads", server.address, "--json").objects == []


def test_ctrl_c_at_a_terminal_where_nobody_has_typed(server: Server) -> None:
    ours, theirs = pty.openpty()
    try:
        command = [*COMMAND, "put", "-", server.address + "/"]
        with Process(command, stdin=theirs, stderr=subprocess.PIPE) as client:
            wait_until(lambda: has_thread_that_reads(client.pid))
            client.send_signal(signal.SIGINT)
            status, said = end_of(client)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (status, said.strip()) == (Status.INTERRUPTED, "stopped by Ctrl-C")


def has_thread_that_reads(pid: int) -> bool:
    """Whether some thread of a process waits in read(2) for its descriptor 0."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/syscall") as syscall:
            number, *arguments = syscall.read().split()
        if number == "0" and arguments[0] == "0x0":
            return True
    return False


def test_a_server_that_does_not_come_back_keeps_what_it_had_until_it_is_cancelled(
    start_server: Callable[..., Server], run: Run
) -> None:
    server = start_server()
    with put_of_silence(server.address, "--retry-for", "0") as client:
        server.kill()
        assert client.stdin is not None
        client.stdin.close()
        status, said = end_of(client)
    assert status == Status.UNREACHABLE
    assert "stdin is sent from its beginning" in said
    assert "same command" not in said
    told = re.search("blockproto cancel ([0-9a-f]{32})", said)
    assert told is not None, said
    again = start_server()
    listed = run("uploads", again.address)
    assert f"{told[1]}  2.0 MiB of ?, a stream" in listed.out
    assert run("cancel", told[1], again.address).status == Status.DONE


def test_a_full_disk_says_that_nothing_is_there_to_resume(run: Run) -> None:
    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, List):
            yield frame(asked.stream, Result(asked.message.kind))
        else:
            yield frame(asked.stream, Error(int(Code.STORE_FULL), 2, True, "no room", 0, None, None))

    with HostileServer(answer) as server:
        ran = run("put", "-", f"{server.address}/", "--retry-for", "0", stdin=b"x" * MIB)
    assert ran.status == Status.FAILED
    assert "make room, then run the command again" in ran.err
    assert "resume" not in ran.err


def test_ctrl_c_of_a_question_promises_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [*COMMAND, "ls", f"bp://127.0.0.1:{listener.getsockname()[1]}/"]
        with Process(command, stderr=subprocess.PIPE) as client, listener.accept()[0]:
            client.send_signal(signal.SIGINT)
            status, said = end_of(client)
    assert (status, said.strip()) == (Status.INTERRUPTED, "stopped by Ctrl-C")


@pytest.mark.parametrize(
    ("typed", "trusted"), [("y\n", True), ("what?\nYES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_a_question_is_answered_by_a_line_of_stdin(
    typed: str, trusted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.BytesIO(typed.encode())
    monkeypatch.setattr(access, "raw_stdin", lambda: stdin)
    assert access.confirmed("Trust it?") is trusted
    assert capsys.readouterr().err.count("Trust it? [y/N]: ") == 1 + typed.startswith("what")


@pytest.mark.parametrize(("resumes", "done"), [(True, 0), (True, 5), (False, 5)])
def test_the_same_command_is_advised_only_where_something_is_kept(resumes: bool, done: int) -> None:
    progress = Progress("a", 10)
    progress.position_bytes_done = done
    meter = Meter(resumes=resumes, shown=False)
    meter.update(progress)
    meter.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert ("run the same command again" in STOP.sentence()) is (resumes and done > 0)
