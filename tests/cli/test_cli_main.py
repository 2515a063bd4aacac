"""The command itself: version, help, usage errors, interrupts, pipes that close."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from processes import COMMAND, Process, Ran, Server, wait_until

from blockproto import cli
from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.errors import ConnectionLost, Refused

HEAVY = ("trio", "lmdb", "construct", "blake3", "rich", "asyncio")


def test_version_loads_nothing_heavy() -> None:
    program = (
        "import sys, blockproto.cli as c; c.main(['--version']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    version, loaded = ran.stdout.splitlines()
    assert version.startswith("blockproto ")
    assert loaded == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("serve", "put", "get", "ls", "stat", "rm", "uploads", "cancel", "check", "clean", "demo"):
        assert f"\n  {name} " in text


@pytest.mark.parametrize(
    "name", ["serve", "put", "get", "ls", "stat", "rm", "uploads", "cancel", "check", "clean", "demo"]
)
def test_every_command_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: blockproto {name}")


def every_command(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something, also those of groups."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield (*above, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*above, name))


def test_every_help_says_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    words = list(every_command(cli.commands))
    assert ("token", "revoke") in words
    silent = []
    for name in words:
        assert main([*name, "--help"]) == 0
        silent += [] if "Exit codes: 0 " in capsys.readouterr().out else [name]
    assert silent == []


USAGE = [
    ([], "Usage"),
    (["nope"], "No such command 'nope'"),
    (["put", "bp://localhost/"], "say what to send"),
    (["put", "a"], "the server's address is missing: write it behind 'a'"),
    (["queue", "add", "a"], "the server's address is missing"),
    (["put", "bp://localhost/", "a"], "the server's address comes last"),
    (["put", "a", "localhost:7878"], "'localhost:7878': an address begins with bp://"),
    (["put", "a", "bp://localhost/x"], "may mean a folder or a name"),
    (["put", "a", "bp://10.0.0.9/"], "--insecure"),
    (["put", "a", "b", "bp://localhost/", "--as", "c"], "--as names one PATH"),
    (["put", "a", "bp://localhost/", "--as", "/"], "--as needs a name"),
    (["put", "a", "bp://localhost/", "--as", "./"], "--as needs a name"),
    (["put", "a", "bp://localhost/", "--as", "b/"], "write --as 'b/a' to put it in there"),
    (["put", "-", "bp://localhost/", "--as", "b/"], "write --as 'b/NAME' to put it in there"),
    (["put", "-", "-", "bp://localhost/"], "'-' is stdin"),
    (["put", "/", "bp://localhost/"], "no name of its own"),
    (["token", "add", "x", "--expires", "0", "--state", "no-state-yet"], "expired already"),
    (["serve", ".", "--dialect", "struct82-from-0", "--dialect", "struct82-from-1"], "contradict each other"),
    (["put", "a", "bp://localhost/", "--connections", "0"], "--connections"),
    (["put", "a", "bp://localhost/", "--if-exists", "perhaps"], "--if-exists"),
    (["get", "x"], "'x': give one or more addresses"),
    (["get", "bp://localhost/a", "b", "c"], "'b': give one or more addresses"),
    (["get", "b", "bp://localhost/a"], "'b': give one or more addresses"),
    (["get", "bp://localhost/a", "-", "--json"], "stdout"),
    (["get", "bp://localhost:x/a"], "port must be a number"),
    (["get", "bp://localhost/a", "--range", "5-1"], "--range '5-1'"),
    (["get", "bp://localhost/a", "--range", "-0"], "--range '-0'"),
    (["get", "bp://localhost/a", "bp://localhost/b", "--range", "0-1"], "--range is for one file"),
    (["get", "bp://localhost/", "--range", "0-1"], "--range is for one file"),
    (["get", "bp://10.0.0.9/a"], "--insecure"),
    (["ls", "nowhere"], "begins with bp://"),
    (["stat", "bp://localhost/"], "names no file"),
    (["uploads", "bp://localhost/a"], "whole server"),
    (["rm", "bp://localhost/"], "whole served folder"),
    (["cancel", "bp://localhost/"], "at least one sourceid"),
    (["cancel", "zz", "bp://localhost/"], "'zz' is not a sourceid"),
    (["cancel", "0" * 32, "bp://"], "host is missing"),
    (["check", "/nowhere/at/all"], "does not exist"),
    (["serve", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
    (["serve", "/etc/passwd"], "is not a folder"),
    (["serve", ".", "--listen", "7878"], "as in localhost:7878"),
    (["serve", ".", "--listen", "0.0.0.0:0", "--dialect", "sourceid"], "--insecure"),
    (["serve", ".", "--listen", "[::]:0", "--dialect", "struct82"], "--insecure"),
    (["serve", ".", "--cert", "x.pem"], "--cert and --key belong together"),
    (["serve", ".", "--anonymous", "all"], "--anonymous"),
    (["token", "add", "bob", "--quota", "much"], "'much': write a number of bytes"),
    (["token", "add", "bob", "--expires", "soon"], "'soon': write a time"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
def test_usage_errors_say_what_to_write(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == Status.USAGE
    said = capsys.readouterr()
    assert words in " ".join(said.err.split())
    assert said.out == ""


def _raising(error: BaseException) -> click.Command:
    def body() -> None:
        raise error

    return click.Command("boom", callback=body)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), Status.INTERRUPTED),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), Status.INTERRUPTED),
        (BaseExceptionGroup("", [KeyboardInterrupt(), ConnectionLost()]), Status.INTERRUPTED),
        (ExceptionGroup("", [Refused("no"), ConnectionLost("gone")]), Status.UNREACHABLE),
        (Refused("no"), Status.FAILED),
    ],
)
def test_what_comes_out_of_the_engine_becomes_an_exit_code(
    error: BaseException, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli._Commands, "get_command", lambda *_: _raising(error))
    assert main(["ls"]) == status


def test_a_bug_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli._Commands, "get_command", lambda *_: _raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["ls"])


def test_a_reader_that_goes_away_is_no_traceback(
    server: Server, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number}").touch()
    assert run("put", folder, server.address + "/").status == 0
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        ran = subprocess.run(
            [*COMMAND, "ls", "-r", server.address],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.stderr == ""
    assert ran.returncode == -signal.SIGPIPE  # 141 to a shell


def test_ctrl_c_is_130(server: Server) -> None:
    with Process(
        [*COMMAND, "put", "-", server.address + "/"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        wait_until(lambda: Path(f"/proc/{client.pid}/net/tcp").exists() and _connected(client.pid))
        client.send_signal(signal.SIGINT)
        assert client.stderr is not None
        said = client.stderr.read()
    assert client.returncode == Status.INTERRUPTED
    assert "stopped by Ctrl-C" in said
    assert "Traceback" not in said


def _connected(pid: int) -> bool:
    """Whether a process has a socket open."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(os.readlink(fd).startswith("socket:") for fd in folder.iterdir())
    except OSError:
        return False


INTERRUPTED_IMPORT = """
import os, signal, sys
import blockproto.__main__ as command

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "blockproto.cli":
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupts())
sys.exit(command.main())
"""


def test_ctrl_c_while_it_starts_is_no_traceback() -> None:
    program = [sys.executable, "-c", INTERRUPTED_IMPORT]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


def test_a_command_that_is_nearly_right_is_understood_and_not_done(run: Callable[..., Ran]) -> None:
    ran = run("putt", "a", "bp://127.0.0.1:1/")
    assert ran.status == Status.USAGE
    assert "Did you mean 'put'?" in ran.err
    assert "Did you mean" not in run("xyzzy").err
