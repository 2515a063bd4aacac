"""What an earlier version of the installation has left on servers is asked for once, and only while there may be some."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from blockproto.client_side import resume_id
from blockproto.client_side.earlier_uploads import EarlierUploads
from blockproto.client_side.resume_id import installation_secret, may_have_earlier_uploads
from blockproto.errors import ConnectionLost, Forbidden
from blockproto.wire import UploadItem


def _item(sourceid: bytes) -> UploadItem:
    return UploadItem(sourceid, bytes(16), 5, 1, 0, 0, None, "a", "")


class Server:
    """Answers with what it is told to; counts how often it was asked."""

    def __init__(self, *answers: BaseException | bytes) -> None:
        self.asked = 0
        self._answers = list(answers)

    async def uploads(self) -> AsyncGenerator[UploadItem, None]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        yield _item(answer)


async def test_a_server_is_asked_once_for_all_who_want_to_know() -> None:
    server = Server(b"a" * 16)
    earlier = EarlierUploads(True, server.uploads)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(earlier.learn)
    assert server.asked == 1
    assert b"a" * 16 in earlier
    assert b"b" * 16 not in earlier
    assert earlier


async def test_nobody_is_asked_where_there_can_be_none() -> None:
    server = Server()
    earlier = EarlierUploads(False, server.uploads)
    await earlier.learn()
    assert (server.asked, bool(earlier)) == (0, False)


async def test_after_a_lost_connection_it_is_asked_again() -> None:
    server = Server(ConnectionLost(), b"a" * 16)
    earlier = EarlierUploads(True, server.uploads)
    with pytest.raises(ConnectionLost):
        await earlier.learn()
    await earlier.learn()
    assert (server.asked, b"a" * 16 in earlier) == (2, True)


async def test_a_server_that_does_not_say_has_none() -> None:
    server = Server(Forbidden())
    earlier = EarlierUploads(True, server.uploads)
    await earlier.learn()
    await earlier.learn()
    assert (server.asked, bool(earlier)) == (1, False)


def test_a_new_installation_has_none(tmp_path: Path) -> None:
    assert not may_have_earlier_uploads(tmp_path / "config")
    installation_secret(tmp_path / "config")
    assert not may_have_earlier_uploads(tmp_path / "config")


def test_an_older_one_may_have_some_until_they_have_expired(tmp_path: Path) -> None:
    installation_secret(tmp_path)
    assert may_have_earlier_uploads(tmp_path)
    assert may_have_earlier_uploads(tmp_path)
    mark = tmp_path / "sourceids-without-server"
    past = mark.stat().st_mtime - resume_id.EARLIER_KEPT_S - 1
    os.utime(mark, (past, past))
    assert not may_have_earlier_uploads(tmp_path)


def test_a_configuration_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not may_have_earlier_uploads(tmp_path / "file")
