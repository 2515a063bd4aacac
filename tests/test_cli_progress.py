"""The meter: sums that are right, and a bar only where somebody looks."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import COMMAND, Process, Ran, Server

from blockproto.cli.output import Status
from blockproto.cli.progress import Meter


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
        meter.finished("b", 0)
        meter.finished("never begun", 4)
        assert (meter.done, meter.files_ended) == (14, 3)
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
    assert ran.stderr == f"{source}: stored as 'a', 1 B in 0.0 s\n"


@pytest.mark.parametrize("moved", [False, True])
def test_an_empty_bar_does_not_stay(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with Meter(10, shown=True) as meter:
        bar = meter._bar
        if moved:
            meter.finished("a", 10)
    assert bar is not None
    assert bar._progress.live.transient is not moved
