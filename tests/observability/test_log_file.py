"""Opening a log never waits for the reader of a pipe, and what is written to a read one arrives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.observability.log_file import open_log

pytestmark = pytest.mark.timeout(60)


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    words = ["put", str(tmp_path / "file"), "bp://localhost:9/", "--log", str(tmp_path / "pipe")]
    assert main(words) == Status.USAGE
    assert "pipe'" in capsys.readouterr().err


def test_a_pipe_that_is_read_takes_what_is_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with open_log(tmp_path / "pipe", "w") as file:
            assert os.get_blocking(file.fileno())
            file.write("\udcff\n")
            file.flush()
            assert os.read(reader, 100) == b"\\udcff\n"
    finally:
        os.close(reader)


def test_a_file_is_made_or_appended_to(tmp_path: Path) -> None:
    modes: list[Literal["w", "a"]] = ["w", "a", "w"]
    for mode in modes:
        with open_log(tmp_path / "log", mode) as file:
            file.write("1\n")
        assert (tmp_path / "log").read_text() == ("1\n1\n" if mode == "a" else "1\n")
