"""Closed and full standard streams: the exit code is that of what happened, and nothing is said that nobody asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import COMMAND, TIMEOUT_S, Process, Server, wait_until

from blockproto.cli.output import Status

PRINTS = [["ls", "{}"], ["ls", "{}/a", "--json"], ["stat", "{}/a"], ["put", "b", "{}/", "--json"], ["--version"],
          ["token", "add", "x"], ["get", "{}/a", "-"], ["queue", "add", "b", "{}/"]]  # fmt: skip
SILENT = [
    ["put", "b", "{}/"],
    ["get", "{}/a", "here"],
    ["rm", "{}/a"],
    ["uploads", "{}"],
    ["token", "list"],
    ["queue", "list"],
]
FAILING = [["stat", "{}/nothing"], ["get", "{}/nothing"], ["rm", "{}/nothing"], ["put", "nothing", "{}/"]]


@pytest.fixture
def shell(server: Server, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a command in a shell with redirections; returns exit code, stdout and stderr."""
    (server.folder / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / ".blockproto").mkdir()

    def run(
        words: list[str], redirection: str = "", *, stdout: int = subprocess.PIPE, **more: str
    ) -> tuple[int, str, str]:
        words = [word.format(server.address) for word in words]
        script = f'"$@" {redirection}'
        ran = subprocess.run(
            ["sh", "-c", script, "sh", *COMMAND, *words],
            cwd=tmp_path,
            env={"BLOCKPROTO_QUEUE": str(tmp_path / "queue"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
            | more,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
        )
        return ran.returncode, (ran.stdout or b"").decode(), ran.stderr.decode()

    return run


Shell = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_a_failure(words: list[str], redirection: str, shell: Shell) -> None:
    status, _, err = shell(words, redirection)
    assert status == Status.FAILED, err
    assert "stdout" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_it_by_sigpipe(words: list[str], unbuffered: str, shell: Shell) -> None:
    """As it ends every other command of a pipeline."""
    read, write = os.pipe()
    os.close(read)
    try:
        status, _, err = shell(words, stdout=write, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(write)
    assert (status, err) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("words", SILENT, ids=" ".join)
@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", ">&- 2>&- <&-"])
def test_who_writes_nothing_there_does_not_care(words: list[str], redirection: str, shell: Shell) -> None:
    status, out, err = shell(words, redirection)
    assert status == Status.DONE, err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [*FAILING, ["no-such-command"]], ids=" ".join)
@pytest.mark.parametrize("redirection", ["2>/dev/full", ">&- 2>&- <&-"])
def test_what_fails_fails_though_nobody_is_told(words: list[str], redirection: str, shell: Shell) -> None:
    status, out, err = shell(words, redirection)
    assert status == (Status.USAGE if words[0] == "no-such-command" else Status.FAILED)
    assert out + err == ""


def test_words_for_people_do_not_land_in_a_file(shell: Shell, tmp_path: Path, server: Server) -> None:
    """Without stderr the next descriptor that is opened would get its number, and the words."""
    assert shell(["-v", "get", "{}/a", "here"], "2>&- >&- <&-")[0] == Status.DONE
    assert (tmp_path / "here").read_bytes() == b"1"
    assert shell(["-vv", "put", "b", "{}/"], "2>&- >&-")[0] == Status.DONE
    assert (server.folder / "b").read_bytes() == b"2"


def test_stdin_that_is_closed_is_no_empty_file(shell: Shell, server: Server) -> None:
    status, _, err = shell(["put", "-", "{}/", "--as", "x"], "<&-")
    assert status == Status.FAILED
    assert "Traceback" not in err
    assert not (server.folder / "x").exists()


def test_a_server_serves_without_any_of_them(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    command = [
        "sh",
        "-c",
        'exec "$@" >&- 2>&- <&-',
        "sh",
        *COMMAND,
        "serve",
        "served",
        "--listen",
        "127.0.0.1:0",
    ]
    with Process(command, cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "served/.blockproto/ledger").exists())
        process.terminate()
        assert process.wait() in (Status.DONE, -15)


UNBUFFERED = [
    ["--version"],
    ["put", "--help"],
    ["get", "{}/a", "here", "--json"],
    ["ls", "{}"],
    ["token", "add", "x"],
]


@pytest.mark.parametrize("words", UNBUFFERED, ids=" ".join)
def test_streams_without_a_buffer_fail_as_the_others_do(words: list[str], shell: Shell) -> None:
    """Containers set PYTHONUNBUFFERED."""
    status, _, err = shell(words, ">/dev/full", PYTHONUNBUFFERED="1")
    assert (status, err.count("\n"), "stdout: " in err) == (Status.FAILED, 1, True), err
    status, _, _ = shell(["put", "b", "{}/"], "2>/dev/full", PYTHONUNBUFFERED="1")
    assert status == Status.DONE


def test_a_token_that_nobody_saw_does_not_stay(shell: Shell) -> None:
    for redirection in (">/dev/full", ">&-"):
        assert shell(["token", "add", "x"], redirection)[0] == Status.FAILED
    status, out, _ = shell(["token", "list", "--json"], "")
    assert (status, out) == (Status.DONE, "")
