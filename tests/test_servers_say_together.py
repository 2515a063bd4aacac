"""A client and a server that answers with anything, in one segment: it ends with an error of ours, and with its connection.

Nothing leaves the client but a ``BlockprotoError``, nothing is logged that nobody expected, and nothing waits for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from fuzz import sealed
from peers import MIB, EndOfStream, RawPeer, bytes_of, run
from said_together import HELD, _error, _made_wrongly
from test_said_together import nothing_unexpected
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.client import Client, _open_downloads, _open_files, _open_part_file, connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.common.blocks import digest_of
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import BlockprotoError, Code, Scope
from blockproto.results import FileInfo, UploadJob
from blockproto.wire import (
    PREFACE,
    ZERO_ID,
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Credit,
    Fetch,
    FileItem,
    GoAway,
    Have,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    Piece,
    ReceiptItem,
    Result,
    UploadItem,
    encode_frame,
)

quick = pytest.mark.trio(run=run)
SMALL = b"content"
BIG = bytes_of(MIB + 5)
VERSION = b"the version ...."
STRANGE_NAMES = ("../up", "/abs", "", "a\x1b[2J", "a//b", ".blockproto/x", "\udcff", "x" * 300)


def _entry(name: str = "file", **changes: Any) -> FileItem:
    item = FileItem(1, len(SMALL), 0, 0o644, ZERO_ID, VERSION, name, "text/plain")
    return _made_wrongly(item, **changes)


def _listed(*items: FileItem, cursor: str = "") -> Result:
    return Result(ListKind.FILES, items, cursor)


def _opened(**changes: Any) -> Opened:
    return _made_wrongly(Opened(HELD.sourceid, bytes(16), 1, 0, 1, None), **changes)


def _open(**changes: Any) -> Open:
    message = Open(ZERO_ID, 0, len(SMALL), 1, "file", "text/plain", version=VERSION)
    return _made_wrongly(message, **changes)


def _said() -> dict[str, tuple[Message, bytes]]:
    plain: dict[str, Message] = {
        "opened": _opened(),
        "opened-holding": _opened(held=((0, 4000),), position=1 << 40),
        "opened-prefix": _opened(prefixes=((0, 1 << 20), (7, 5))),
        "ack": Ack(0, ((0, 1),)),
        "ack-beyond": Ack(1 << 50, ((5000, 90),)),
        "credit": Credit(1 << 40, 0),
        "error": _error(Code.NOT_PERMITTED, Scope.STREAM),
        "error-retry": _made_wrongly(
            _error(Code.BUSY, Scope.STREAM), retryable=True, retry_after_ms=2**32 - 1
        ),
        "error-mismatch": _error(Code.DIGEST_MISMATCH, Scope.BLOCK),
        "error-mismatch-far": _made_wrongly(_error(Code.DIGEST_MISMATCH, Scope.BLOCK), blockno=4_000_000),
        "error-differ": _error(Code.DIGESTS_DIFFER, Scope.BLOCK),
        "error-unknown": _error(999, Scope.STREAM),
        "error-superseded": _made_wrongly(_error(Code.SUPERSEDED, Scope.STREAM), current=2**63 - 1),
        "committed": Committed(ZERO_ID, bytes(16), digest_of(SMALL), len(SMALL), "file"),
        "committed-other": Committed(bytes(16), bytes(16), bytes(32), 1 << 60, "../x\x1b[31m"),
        "committed-left": _made_wrongly(Committed(ZERO_ID, bytes(16), bytes(32), 0, "file"), left=True),
        "committed-there": _made_wrongly(Committed(ZERO_ID, bytes(16), bytes(32), 0, "file"), there=True),
        "result-empty": _listed(),
        "result": _listed(_entry()),
        "result-mode": _listed(_entry(mode=0xFFFFFFFF, mtime_ns=-(1 << 63))),
        "result-huge": _listed(_entry(filesize=2**63 - 1, mtime_ns=2**63 - 1)),
        "result-folder": _listed(_entry("folder", kind=2, filetype="inode/directory")),
        "result-kind": _listed(_entry(kind=77)),
        "result-filetype": _listed(_entry(filetype="tex\x1bt/\udcff")),
        "result-cursor": _listed(_entry(), cursor="file"),
        "result-names": _listed(*(_entry(name) for name in STRANGE_NAMES)),
        "result-uploads": Result(
            ListKind.UPLOADS,
            (_made_wrongly(UploadItem(bytes(16), bytes(16), 5, 1, 2**62, 2**31, 2**62, "x", "y")),),
        ),
        "result-receipts": Result(
            ListKind.RECEIPTS, (ReceiptItem(bytes(16), bytes(16), bytes(32), 2**62, "../x"),)
        ),
        "open": _open(),
        "open-unknown": _open(filesize=None, blocknum=None),
        "open-time": _open(mtime_ns=-(1 << 63)),
        "open-version": _open(version=bytes(16)),
        "open-folder": _open(filetype="inode/directory"),
        "open-huge": _open(filesize=4095 << 40, blocknum=4095 << 20),
        "commit": Commit(ZERO_ID, digest_of(SMALL), len(SMALL), 1),
        "commit-wrong": Commit(ZERO_ID, bytes(32), len(SMALL), 1),
        "have": Have(((0, bytes(32)),)),
        "cancel": Cancel(reason=Code.CANCELLED, text="", discard=True),
        "fetch": Fetch("file"),
        "list": List(kind=ListKind.FILES),
    }
    block = Block(ZERO_ID, len(SMALL), 1, 0, 0, "file", "text/plain", digest=digest_of(SMALL))
    return {name: (message, b"") for name, message in plain.items()} | {
        "block": (block, SMALL),
        "block-wrong": (
            _made_wrongly(Block(ZERO_ID, 7, 1, 0, 0, "file", "text/plain", digest=bytes(32))),
            SMALL,
        ),
        "piece": (Piece(3, None), b"xyz"),
    }


WORDS = _said()
ELSEWHERE: dict[str, bytes] = {
    "goaway": encode_frame(0, GoAway(Code.GOING_AWAY, 0, 0, "bye")),
    "credit-0": encode_frame(0, Credit(1 << 50, 0)),
    "credit-wrong": encode_frame(0, Credit(1 << 50, 1 << 49)),
    "error-0": encode_frame(0, _error(Code.STORE_FAILED, Scope.CONNECTION)),
    "fetch-2": encode_frame(2, Fetch("file")),
    "list-2": encode_frame(2, List(kind=ListKind.FILES)),
    "on-99": encode_frame(99, Ack(0, ((0, 1),))),
    "nothing": b"",
    "noise": bytes(40),
    "critical": sealed(4 << 8 | 0xEE, 0, b"none", 1),
}


def frame(name: str, stream: int) -> bytes:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    message, payload = WORDS[name]
    return encode_frame(stream, message, len(payload)) + payload


async def _drained(items: AsyncIterator[Any]) -> None:
    async with aclosing(items) as some:  # type: ignore[type-var]
        async for _ in some:
            pass


def doing(here: Path) -> dict[str, Callable[[Client], Awaitable[object]]]:
    """What a client does, by name."""
    (here / "small").write_bytes(SMALL)
    (here / "big").write_bytes(BIG)
    info = FileInfo("file", False, "text/plain", len(SMALL), 0, 0o644, "0" * 32, VERSION.hex(), None, None)
    return {
        "upload": lambda client: client.upload(here / "small", name="file"),
        "upload-big": lambda client: client.upload(here / "big", name="file"),
        "upload-all": lambda client: _drained(
            client.upload_all([UploadJob(here / "small", "file"), UploadJob(here / "big", "big")])
        ),
        "download": lambda client: client.download("file", here / "got"),
        "download-known": lambda client: client.download_known(info, here / "known", None),
        "download-all": lambda client: _drained(client.download_all([(info, here / "all")])),
        "listing": lambda client: _drained(client.listing("", recursive=True)),
        "stat": lambda client: client.stat("file", b3sum=True),
        "uploads": lambda client: _drained(client.uploads()),
        "remove": lambda client: client.remove("file"),
    }


DOINGS = [
    "upload", "upload-big", "upload-all", "download", "download-known", "download-all", "listing", "stat", "uploads",
    "remove",
]  # fmt: skip


ASKING = ("download", "listing", "stat", "uploads")
"""What begins with a LIST."""


class Hostile:
    """A server that hears a frame or more on a stream of the client's, then says what it was told, once; then hangs up."""

    def __init__(self, nursery: trio.Nursery, says: tuple[str, ...]) -> None:
        self._nursery = nursery
        self._says = says

    async def dial(self) -> Endpoint:
        here, there = memory_stream_pair()
        self._nursery.start_soon(self._serve, RawPeer(there))
        return StreamEndpoint(here, "memory")

    async def _serve(self, peer: RawPeer) -> None:
        with suppress(EndOfStream, trio.BrokenResourceError, trio.ClosedResourceError):
            await peer._take(len(PREFACE))
            await peer.send_bytes(PREFACE + encode_frame(0, Hello(agent="hostile", features=4)))
            while (stream := (await peer.hear()).stream) == 0:
                pass
            await peer.send_bytes(b"".join(frame(name, stream) for name in self._says))
            await wait_all_tasks_blocked()
        await trio.aclose_forcefully(peer.stream)


async def meet(here: Path, doing_what: str, says: tuple[str, ...]) -> None:
    """Let a client do something with a server that says that, and end."""
    with trio.fail_after(50_000):
        async with trio.open_nursery() as nursery:
            hostile = Hostile(nursery, says)
            async with connect_with(
                hostile.dial,
                "memory",
                _open_part_file,
                ClientConfig(tries=2, open_downloads=_open_downloads, open_files=_open_files),
            ) as client:
                with suppress(BlockprotoError):
                    await doing(here)[doing_what](client)
            nursery.cancel_scope.cancel()


@quick
@pytest.mark.parametrize("what", DOINGS)
async def test_a_server_that_says_anything(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [*WORDS, *ELSEWHERE]:
        if what in ASKING and name.startswith("result"):
            continue  # what is wrong with an answer is tried in test_hostile_answers
        (tmp_path / name).mkdir()
        await meet(tmp_path / name, what, (name,))
    nothing_unexpected(caplog)


PAIRS: list[tuple[str, ...]] = [
    ("open", "block"), ("open", "commit"), ("open", "error"), ("opened", "committed"), ("opened", "error-differ"),
    ("opened", "error-mismatch"), ("opened-holding", "committed-other"), ("committed", "opened"), ("error", "committed"),
    ("result", "result"), ("result", "open"), ("ack", "committed"), ("ack-beyond", "error-superseded"), ("goaway", "result"),
    ("goaway", "opened"), ("credit", "error"), ("block", "commit"), ("open", "cancel"), ("error-differ", "opened"),
    ("result-cursor", "error"), ("open", "fetch"), ("result-folder", "noise"), ("opened", "goaway"),
]  # fmt: skip


@quick
@pytest.mark.parametrize("what", DOINGS)
async def test_a_server_that_says_two_things(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, says in enumerate(PAIRS):
        if what in ASKING and any(name.startswith("result") for name in says):
            continue
        (tmp_path / str(number)).mkdir()
        await meet(tmp_path / str(number), what, says)
    nothing_unexpected(caplog)
