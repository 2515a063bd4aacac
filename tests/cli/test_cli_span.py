"""``--range``: its forms, what they mean in a file, and one that begins behind its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from processes import Ran, Server

from blockproto.cli.output import Status
from blockproto.cli.span import parse_span

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    ("text", "filesize", "positions"),
    [
        ("0-0", 10, (0, 0)),
        ("2-5", 10, (2, 5)),
        ("2-99", 10, (2, 99)),
        ("2-", 10, (2, 9)),
        ("12-", 10, (12, 12)),
        ("-3", 10, (7, 9)),
        ("-30", 10, (0, 9)),
        ("-3", 0, (0, 0)),
    ],
)
def test_what_a_range_means(text: str, filesize: int, positions: tuple[int, int]) -> None:
    span = parse_span(text)
    assert span is not None
    assert span.of(filesize) == positions


@pytest.mark.parametrize("text", ["", "-", "5", "5-2", "-0", "a-b", "1-2-3", "--5", "1 - 2"])
def test_what_is_not_a_range(text: str) -> None:
    with pytest.raises(click.UsageError, match="write FIRST-LAST"):
        parse_span(text)


@pytest.mark.parametrize(("text", "content"), [("4-", b"456789"), ("-2", b"89"), ("3-3", b"3")])
def test_a_range_to_a_file_and_to_stdout(
    text: str, content: bytes, server: Server, tmp_path: Path, run: Run
) -> None:
    (server.folder / "digits").write_bytes(b"0123456789")
    assert run("get", f"{server.address}/digits", "--range", text, tmp_path / "part").status == Status.DONE
    assert (tmp_path / "part").read_bytes() == content
    assert run("get", f"{server.address}/digits", "--range", text, "-").out.encode() == content


@pytest.mark.parametrize("dest", ["here", "-"])
def test_a_range_behind_the_end_names_the_file_once(
    dest: str, server: Server, tmp_path: Path, run: Run
) -> None:
    (server.folder / "digits").write_bytes(b"0123456789")
    ran = run("get", f"{server.address}/digits", "--range", "10-", dest, cwd=tmp_path)
    assert ran.status == Status.FAILED
    assert ran.err.count("digits") == 1
    assert ran.err.endswith(
        "digits: the range begins at 10, the file has 10 bytes; give a range that begins within the file\n"
    )
