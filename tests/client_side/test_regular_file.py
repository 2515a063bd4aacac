"""A file that became something else between the look and the opening is refused, and nothing waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from peers import run, serving

from blockproto.client_side.existing_file import _read_b3sum
from blockproto.client_side.file_digests import read_root
from blockproto.client_side.regular_file import open_regular
from blockproto.client_side.sources import FileSource
from blockproto.client_side.upload_decision import Asked, UploadDecisions
from blockproto.dialects.sending import Outgoing
from blockproto.errors import NotPermitted, Refused
from blockproto.results import Receipt, UploadJob
from blockproto.store import IfExists

KINDS = ["pipe", "device", "socket", "folder"]
pytestmark = pytest.mark.timeout(60)


def _become(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path.mkdir()


OPENINGS: list[Callable[[Path], Any]] = [
    open_regular,
    read_root,
    _read_b3sum,
    lambda path: FileSource(path, "name", IfExists.KEEP),
    lambda path: Outgoing(path, "name", "memory"),
]


@pytest.mark.parametrize("opening", OPENINGS, ids=["open", "root", "b3sum", "source", "dialect"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_becomes_something_else_just_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, opening: Callable[[Path], Any]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    really_open = os.open

    def open_late(what: Any, *args: Any, **more: Any) -> int:
        if what == path:
            monkeypatch.undo()
            _become(path, kind)
        return really_open(what, *args, **more)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises((Refused, NotPermitted, OSError)) as caught:
        opening(path)
    if kind != "socket":  # the system itself opens none
        assert "not a regular file" in str(caught.value)
    del caught
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.trio(run=run)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_folder_goes_on_without_what_became_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The files are looked at together and opened one by one: much can happen in between."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    judge = UploadDecisions.judge

    async def judge_slowly(self: UploadDecisions, asked: Asked) -> Any:
        decided = await judge(self, asked)
        _become(tmp_path / "b", kind)
        return decided

    monkeypatch.setattr(UploadDecisions, "judge", judge_slowly)
    jobs = [UploadJob(tmp_path / name, name) for name in ("a", "b", "c")]
    async with serving() as served, served.client() as client, aclosing(client.upload_all(jobs)) as ended:
        outcomes = {job.name: outcome async for job, outcome in ended}
    assert isinstance(outcomes["a"], Receipt)
    assert isinstance(outcomes["c"], Receipt)
    assert isinstance(outcomes["b"], Refused)
    assert "not a regular file" in str(outcomes["b"])
