"""``blockproto queue`` as people use it: names as they are, several processes, a killed run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from processes import COMMAND, TIMEOUT_S, Chaos, Process, Ran, Server, wait_until, wait_until_held

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.queue.journal import Journal

Run = Callable[..., Ran]
MIB = 1 << 20


@pytest.fixture
def queue_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The queue of this test; every command uses it."""
    path = tmp_path / "state" / "queue.sqlite3"
    monkeypatch.setenv("BLOCKPROTO_QUEUE", str(path))
    return path


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command to its end in this process."""

    def cli(*words: object) -> Ran:
        capfd.readouterr()
        status = main([str(word) for word in words])
        return Ran(status, *capfd.readouterr())

    return cli


@pytest.fixture
def slow_line(server: Server) -> Iterator[Chaos]:
    """A line to ``server`` that carries 2 MB a second."""
    line = Chaos(server.port, "--rate", "16mbit")
    yield line
    line.kill()


def test_up_and_down_with_names_as_they_are(
    server: Server, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    folder = tmp_path / "旅行 photos"
    (folder / "第 1 天").mkdir(parents=True)
    (folder / "第 1 天" / "海 sea.jpg").write_bytes(os.urandom(2 * MIB))
    (folder / "notes.txt").write_text("one")
    added = cli("queue", "add", folder, server.address + "/in/", "--json")
    assert (added.status, added.objects[0]["state"]) == (Status.DONE, "waiting"), added.err
    assert cli("queue", "run", "--until-empty").status == Status.DONE
    assert (server.folder / "in" / "旅行 photos" / "第 1 天" / "海 sea.jpg").stat().st_size == 2 * MIB
    (tmp_path / "back").mkdir()
    assert cli("queue", "get", server.address + "/in/旅行 photos", tmp_path / "back").status == Status.DONE
    ran = cli("queue", "run", "--until-empty", "--json")
    assert ran.status == Status.DONE, ran.err
    assert {one["state"] for one in ran.objects if one["became"] is None} >= {"done"}
    assert (tmp_path / "back" / "旅行 photos" / "notes.txt").read_text() == "one"
    shown = cli("queue", "list", "--all")
    assert "海 sea.jpg" in shown.out
    assert cli("queue", "list", "--json").objects == []


@pytest.mark.parametrize("words", [["list"], ["cancel", "1"], ["move", "1", "--first"]], ids=" ".join)
def test_a_queue_that_is_not_there_is_not_made_by_looking(words: list[str], tmp_path: Path, cli: Run) -> None:
    ran = cli("queue", *words, "--queue", tmp_path / "mistyped/queue")
    assert ran.status == Status.USAGE
    assert "mistyped/queue' is not there" in ran.err
    assert not (tmp_path / "mistyped").exists()


def test_why_nothing_was_cancelled_is_said(
    server: Server, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    assert cli("queue", "add", tmp_path / "a", server.address).status == Status.DONE
    assert cli("queue", "run", "--until-empty").status == Status.DONE
    ran = cli("queue", "cancel", "1")
    assert ran.status == Status.FAILED
    assert "1 is done: that cannot be cancelled" in ran.err
    stdin = cli("queue", "add", "-", server.address)
    assert stdin.status == Status.USAGE
    assert "stdin, cannot wait in a queue" in stdin.err


def test_a_killed_run_goes_on_and_sends_nothing_again(
    server: Server, slow_line: Chaos, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    content = os.urandom(6 * MIB)
    (tmp_path / "film.mkv").write_bytes(content)
    assert cli("queue", "add", tmp_path / "film.mkv", slow_line.address).status == Status.DONE
    process = Process([*COMMAND, "queue", "run"], stderr=subprocess.DEVNULL)
    trio.run(wait_until_held, server.address, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (shown,) = cli("queue", "list", "--json").objects
    assert (shown["state"], shown["sourceid"] is not None) == ("waiting", True)

    async def held() -> int:
        return (await wait_until_held(server.address, 3)).held_count

    before = trio.run(held)
    second = Process([*COMMAND, "queue", "run"], stderr=subprocess.DEVNULL)
    journal = Journal(queue_file)
    wait_until(lambda: journal.all()[0].state.value == "done")
    journal.close()
    second.send_signal(signal.SIGINT)
    assert second.wait(TIMEOUT_S) == Status.INTERRUPTED
    assert (server.folder / "film.mkv").read_bytes() == content
    *_, ended, total = slow_line.stop()
    assert (ended["connection"], total["connections"]) == (2, 2)
    assert ended["up_bytes"] < (6 - before) * MIB + 10_000


def test_a_running_queue_sees_what_others_change(
    server: Server, slow_line: Chaos, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(12 * MIB))
    (tmp_path / "small").write_bytes(b"now")
    assert (
        cli("queue", "add", tmp_path / "big", slow_line.address, "--priority", "bulk").status == Status.DONE
    )
    words = [*COMMAND, "queue", "run", "--until-empty", "--at-once", "1"]
    process = Process(words, stderr=subprocess.PIPE, text=True)
    trio.run(wait_until_held, server.address, 1)
    assert (
        cli("queue", "add", tmp_path / "small", slow_line.address, "--priority", "interactive").status
        == Status.DONE
    )
    wait_until(lambda: (server.folder / "small").exists())
    assert not (server.folder / "big").exists()
    assert "running" in cli("queue", "list").out
    second = cli("queue", "run", "--until-empty")
    assert second.status == Status.FAILED
    assert "another process runs the queue" in second.err
    assert cli("queue", "cancel", "all").status == Status.DONE
    _, told = process.communicate(timeout=60)
    assert process.returncode == Status.DONE
    assert "1: big: cancelled" in told
    assert cli("uploads", server.address, "--json").objects == []


def test_what_failed_is_told_and_ends_with_1(
    server: Server, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    (tmp_path / "a").write_text("a")
    added = cli("queue", "add", tmp_path / "a", server.address + "/")
    assert added.out == "1  a\n"
    (tmp_path / "a").unlink()
    ran = cli("queue", "run", "--until-empty")
    assert ran.status == Status.FAILED
    assert "1: a: " in ran.err
    assert "No such file" in ran.err


def test_what_failed_earlier_is_told_until_it_is_dealt_with(
    server: Server, tmp_path: Path, queue_file: Path, cli: Run
) -> None:
    """A script that trusts the exit code must not take an unfinished queue for an empty one."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        cli("queue", "add", tmp_path / name, server.address + "/")
    (tmp_path / "a").unlink()
    assert cli("queue", "run", "--until-empty").status == Status.FAILED
    again = cli("queue", "run", "--until-empty")
    assert again.status == Status.FAILED
    assert "1 transfer failed in an earlier run and was not tried: `blockproto queue list`" in again.err
    assert cli("queue", "run", "--until-empty", "--server", "bp://127.0.0.1:1").status == Status.DONE
    assert cli("queue", "cancel", "1").status == Status.DONE
    assert cli("queue", "run", "--until-empty").status == Status.DONE


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["add", ".", "bp://localhost/a"], "end it with '/'"),
        (["add", ".", "..", "bp://localhost/", "--as", "x"], "--as names one PATH"),
        (["add", __file__, "bp://localhost/", "--as", "b/"], "ends with '/'"),
        (["add", ".", "bp://localhost/", "--as", "a/../b"], "dot-component"),
        (["get", "bp://localhost/"], "name a file or folder"),
        (["pause", "first"], "'first' is not the ID of a transfer"),
        (["pause", "1"], "no transfer 1"),
        (["move", "1"], "say where to"),
        (["move", "1", "--first", "--after", "2"], "say where to"),
        (["run", "--server", "localhost"], "an address begins with bp://"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    words: list[str], what: str, queue_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", *words]) == Status.USAGE
    assert what in capsys.readouterr().err


def test_a_path_that_is_not_there_is_a_failure_as_with_put(
    queue_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is added then, also of what is there."""
    words = [__file__, "not there", "bp://127.0.0.1:1/"]
    said = []
    for command in (["queue", "add"], ["put"]):
        assert main([*command, *words]) == (Status.FAILED if command[0] == "queue" else Status.UNREACHABLE)
        said.append(next(line for line in capsys.readouterr().err.splitlines() if "not there" in line))
    assert said == ["blockproto: not there: No such file or directory"] * 2
    assert main(["put", "not there", "bp://127.0.0.1:1/"]) == Status.FAILED
    assert main(["queue", "list"]) == Status.DONE
    assert "nothing is left to do" in capsys.readouterr().err


def test_a_token_is_for_one_server(
    queue_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blockproto.identity.tokens import new_token

    monkeypatch.setenv("BLOCKPROTO_TOKEN", new_token())
    assert main(["queue", "run"]) == Status.USAGE
    assert "say for which with --server" in capsys.readouterr().err


def test_an_empty_queue_says_so(queue_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "list"]) == Status.DONE
    assert main(["queue", "pause", "all"]) == Status.DONE
    assert capsys.readouterr().err.splitlines() == [
        "nothing is left to do in the queue",
        "0 transfers paused",
    ]


def test_the_variable_of_the_secret_moves_the_queue_too(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLOCKPROTO_QUEUE", raising=False)
    (tmp_path / "file").write_bytes(b"x")
    homes = dict.fromkeys(("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"), str(tmp_path / "home"))
    moved = homes | {"BLOCKPROTO_CONFIG": str(tmp_path / "moved")}
    assert run("queue", "add", tmp_path / "file", "bp://localhost/", env=moved).status == Status.DONE
    assert (tmp_path / "moved" / "queue.sqlite3").exists()
    assert not (tmp_path / "home").exists()
    alone = moved | {"BLOCKPROTO_QUEUE": str(tmp_path / "alone")}
    assert run("queue", "add", tmp_path / "file", "bp://localhost/", env=alone).status == Status.DONE
    assert (tmp_path / "alone").exists()
