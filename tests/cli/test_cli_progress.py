"""The meter: sums that are right, and a bar only where somebody looks."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
from processes import COMMAND, Process, Ran, Server

from blockproto import QueuedTransfer, TransferState
from blockproto.cli.output import Status, say
from blockproto.cli.progress import Meter
from blockproto.cli.queue_run import _Watcher


@dataclass
class Step:
    """One report of the engine."""

    filename: str
    position_bytes_done: int
    filesize: int | None = None
    payload_bytes_sent: int = 0


def test_the_sum_counts_every_byte_once() -> None:
    with Meter(30, shown=False) as meter:
        meter.update(Step("a", 5))
        meter.update(Step("b", 3))
        meter.update(Step("a", 7))
        assert (meter.done, meter.files_ended) == (10, 0)
        meter.finished("a", 10)
        assert (meter.done, meter.files_ended) == (13, 1)
        meter.failed("b")
        meter.finished("never begun", 4)
        assert (meter.done, meter.files_ended) == (14, 2)
        meter.expect(5)
        assert meter.total == 35
    unknown = Meter(None, shown=False)
    unknown.expect(5)
    assert unknown.total == 5


def test_the_bar_shows_names_that_cannot_move_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blockproto.cli.progress._REDRAW_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Meter(100, shown=True) as meter:
        meter.update(Step("evil\x1b[2J\nname [bold]", 50))
        meter.finished("evil\x1b[2J\nname [bold]", 100)
    said = capsys.readouterr()
    assert said.out == ""
    assert "\x1b[2J" not in said.err
    assert "[bold]" in said.err


@pytest.mark.parametrize("width", [30, 40, 60, 100])
def test_on_a_narrow_terminal_the_figures_stay_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for the bar
    monkeypatch.setenv("TERM", "xterm")
    left_out = (
        "some folder/with a long name/link: a symbolic link, left out; and so on to the end of the line"
    )
    with Meter(345 << 20, shown=True) as meter:
        meter.update(Step("a long name of a big file.bin", 5 << 20))
        say(left_out)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").split("\n")
    assert left_out in lines
    shown = [line.rstrip() for line in lines if "a long" in line and line != left_out]
    assert shown
    assert all(len(line) <= width and "5.0/345.0 MiB" in line for line in shown), shown
    assert all("MB/s" not in line for line in lines)


def test_a_bar_on_a_terminal_and_json_untouched(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "film"
    source.write_bytes(os.urandom(20 << 20))
    master, slave = pty.openpty()
    command = [*COMMAND, "put", str(source), server.address + "/", "--json"]
    wide = os.environ | {"COLUMNS": "500"}
    with Process(command, stdout=subprocess.PIPE, stderr=slave, text=True, env=wide) as process:
        os.close(slave)
        shown = _read_all(master)
        out, _ = process.communicate()
    assert process.returncode == Status.DONE
    assert out.startswith('{"filename": "film"')
    assert out.count("\n") == 1
    assert "MiB" in shown
    assert "stored as 'film'" in shown


def _read_all(master: int) -> str:
    shown = b""
    with os.fdopen(master, "rb", buffering=0) as terminal:
        try:
            while some := terminal.read(4096):
                shown += some
        except OSError:  # the last process that had the terminal open is gone
            return shown.decode()
    return shown.decode()


def test_no_bar_and_no_rich_without_a_terminal(
    server: Server, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    program = (
        "import sys; from blockproto.cli import main; "
        f"status = main(['put', {str(source)!r}, {server.address + '/'!r}]); "
        "print(status, 'rich' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "0 False\n"
    assert re.fullmatch(rf"{re.escape(str(source))}: stored as 'a', 1 B in \d+\.\d s\n", ran.stderr)


@pytest.mark.parametrize("moved", [False, True])
def test_an_empty_bar_does_not_stay(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with Meter(10, shown=True) as meter:
        bar = meter._bar
        if moved:
            meter.finished("a", 10)
    assert bar is not None
    assert bar._progress.live.transient is not moved


def test_the_sum_comes_to_the_total() -> None:
    with Meter(0, shown=False) as meter:
        for name in ("same", "grown", "gone"):
            meter.expect(10, name)
        meter.finished("same", 10)
        meter.finished("grown", 15)
        meter.failed("gone")
        assert (meter.done, meter.total) == (25, 35)
        meter.complete()
        assert (meter.done, meter.total) == (25, 25)


def test_what_waits_in_a_queue_and_runs_again_counts_once() -> None:
    states = TransferState
    meter = Meter(0, shown=False)
    watcher = _Watcher(meter, as_json=False)
    steps = [
        (states.WAITING, None, 0), (states.RUNNING, 100, 0), (states.RUNNING, 100, 60), (states.WAITING, 100, 60),
        (states.RUNNING, 100, 70), (states.FAILED, 100, 70), (states.RUNNING, 100, 70), (states.DONE, 100, 90),
    ]  # fmt: skip
    for revision, (state, filesize, position) in enumerate(steps, 1):
        watcher.see(_queued(1, revision, state, filesize, position))
        assert (meter.done, meter.total) == (100 if state is states.DONE else position, filesize or 0)
    watcher.see(_queued(2, 100, states.RUNNING, 50, 20))
    assert (meter.done, meter.total) == (120, 150)
    watcher.see(_queued(2, 101, states.CANCELLED, 50, 20))
    assert (meter.done, meter.total) == (100, 100)


def _queued(
    number: int, revision: int, state: TransferState, filesize: int | None, position: int
) -> QueuedTransfer:
    one = Mock(spec=QueuedTransfer, id=number, revision=revision, state=state, filesize=filesize)
    one.position, one.name, one.became, one.stored_as, one.error, one.code, one.retryable = (
        position, "name", None, "name", None, None, False,
    )  # fmt: skip
    return cast(QueuedTransfer, one)


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["get", "{}/film", "{here}/part", "--range", "5-1028"], "1.0/1.0 KiB"),
        (["get", "{}/film", "{here}/other", "--if-exists", "skip"], "5/5 bytes"),
        (["put", "{here}/empty", "{}/"], "0/0 bytes"),
        (["put", "-", "{}/"], "2.0/2.0 MiB"),
    ],
)
def test_a_bar_comes_to_its_end(server: Server, tmp_path: Path, words: list[str], end: str) -> None:
    (server.folder / "film").write_bytes(bytes(3 << 20))
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "empty").write_bytes(b"")
    master, slave = pty.openpty()
    command = [*COMMAND, *(word.format(server.address, here=tmp_path) for word in words)]
    with Process(
        command, stdin=subprocess.PIPE, stderr=slave, env=os.environ | {"COLUMNS": "300", "TERM": "xterm"}
    ) as process:
        os.close(slave)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(bytes(2 << 20) if "-" in words else b"")
        shown = _read_all(master)
    assert process.returncode == Status.DONE, shown
    assert end in shown.splitlines()[-1] + shown.splitlines()[-2], shown[-2000:]
