"""What old programs do that the dialect sourceid does not say, and names that it cannot carry."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from peers import MIB, bytes_of, content_of, names_in, run, serving
from processes import Ran, Server
from trio.testing import memory_stream_pair

from blockproto.client_side.connections import Reconnecting
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.dialects import sending
from blockproto.dialects.sending import (
    RETRY_S,
    UNANSWERED_TRIES,
    Ending,
    Outgoing,
    Unanswered,
    _send_again_and_again,
)
from blockproto.dialects.sourceid import Sourceid
from blockproto.dialects.sourceid_client import ANSWER_S, SourceidSender
from blockproto.dialects.sourceid_line import LINE_LENGTH_MAX, answer_ended, check_name, error_line, parse
from blockproto.dialects.struct82_client import ANSWER_S as STRUCT82_ANSWER_S
from blockproto.dialects.struct82_client import Struct82Sender, header_of
from blockproto.errors import (
    BlockprotoError,
    Code,
    ConnectionLost,
    MalformedFrame,
    NameRefused,
    Refused,
    StoreFull,
)

quick = pytest.mark.trio(run=run)
Script = Callable[[trio.abc.Stream], Awaitable[None]]
CONTENT = bytes_of(MIB + 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "film.mp4"
    path.write_bytes(CONTENT)
    return path


def outgoing(path: Path, name: str = "film.mp4") -> Outgoing:
    return Outgoing(path, name, "memory")


async def nobody_is_dialled() -> Endpoint:
    raise AssertionError("it was dialled")


# ---- names ----------------------------------------------------------------------------------------------------

UNSAYABLE = ["report;v=2", ";", "a;sourceid=5", "a\\b.txt", "a\u2028b", "a\u2029b", " a", "a ", "a;"]


@pytest.mark.clause("BP1-SID-022")
@pytest.mark.parametrize("name", UNSAYABLE)
@quick
async def test_a_name_that_the_line_cannot_carry_is_refused_before_anybody_is_dialled(
    path: Path, name: str
) -> None:
    with pytest.raises(NameRefused, match="cannot carry"):
        await SourceidSender().send(nobody_is_dialled, outgoing(path, name))


@pytest.mark.clause("BP1-SID-022")
@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", "a\x85b", "a\x0bb", "a\0b"])
def test_line_ends_are_in_no_name_at_all(path: Path, name: str) -> None:
    with pytest.raises(NameRefused):
        outgoing(path, name)


@pytest.mark.parametrize("name", ["a=b", "100%", "a b", "é照.txt", "a,b", "filename", "r/n"[::2], "a'b\"c"])
def test_a_name_that_old_servers_keep_is_sent(name: str) -> None:
    check_name(name)
    assert parse(f"Content-Length=1;filename={name};sourceid=7".encode()).filename.text == name


def test_struct82_sends_no_name_of_which_the_server_would_take_a_part() -> None:
    with pytest.raises(NameRefused, match="backslash"):
        header_of("a\\b", 5)
    key = "sourceid=" + "n" * 41
    assert header_of(key, 5).filename == key.encode()
    assert len(header_of(key + ".x"[:0], 5).filetype) < 20  # full of text it would begin like a line


def test_put_refuses_it_and_sends_the_others(old: Server, tmp_path: Path, run: Callable[..., Ran]) -> None:
    for name in ("report;v=1", "report;v=2", "plain"):
        (tmp_path / name).write_text(name)
    ran = run("put", "--dialect", "sourceid", *sorted(tmp_path.glob("*[12n]")), f"{old.address}/")
    assert ran.status == 1
    assert ran.err.count("cannot carry") == 2
    assert sorted(one.name for one in old.folder.iterdir() if one.is_file()) == ["plain"]


@pytest.fixture
def old(start_server: Callable[..., Server]) -> Server:
    """A running server that answers old clients."""
    return start_server(None, "--dialect", "sourceid")


# ---- what foreign clients send --------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-005", "BP1-SID-012")
@pytest.mark.parametrize(
    ("request_line", "name"),
    [
        (b"Content-Length=5;filename=a.txt\r\n", "a.txt"),
        (b"Content-Length=5;filename=a.txt;\n", "a.txt"),
        (b"filename=a.txt;Content-Length=5\n", "a.txt"),
        (b"Content-Length=5;filename=a;b.txt\r\n", "a;b.txt"),
        (b"Content-Length=5;filename=C:\\x\\a.txt\n", "a.txt"),
    ],
)
@quick
async def test_a_line_without_an_id_gets_one(request_line: bytes, name: str) -> None:
    async with serving(dialects=[Sourceid()]) as served:
        stream = served.connect()
        await stream.send_all(request_line)
        answer = await stream.receive_some(1000)
        sourceid, position = (field.partition("=")[2] for field in answer.decode().strip().split(";"))
        assert 1 <= int(sourceid) < 1 << 63
        assert position == "0"
        await stream.send_all(b"12345")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert content_of(served.store, name) == b"12345"


@pytest.mark.parametrize(
    "missing", [b"Content-Length=5;sourceid=7", b"filename=a;sourceid=7", b"v=1;sourceid="]
)
def test_a_length_and_a_name_are_needed(missing: bytes) -> None:
    with pytest.raises(MalformedFrame, match="has no"):
        parse(missing)


# ---- what foreign servers answer ------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-019")
@pytest.mark.parametrize("end", [b"%", b"/r/n", b"\r", b"\n", b"\r\n", b"%\r\n"])
@pytest.mark.parametrize("third", [b"", b";v=2"])
@quick
async def test_an_answer_may_end_as_old_lines_do(path: Path, end: bytes, third: bytes) -> None:
    got = bytearray()

    async def old_server(stream: trio.abc.Stream) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += await stream.receive_some(1)
        for byte in b"sourceid=7;position=1000" + third + end:
            await stream.send_all(bytes([byte]))
        while len(got) < len(CONTENT) - 1000:
            got.extend(await stream.receive_some(65_536))

    async with trio.open_nursery() as nursery:

        async def dial() -> Endpoint:
            here, there = memory_stream_pair()

            async def serve() -> None:
                await old_server(there)
                await there.aclose()

            nursery.start_soon(serve)
            return StreamEndpoint(here, "memory")

        ending = await SourceidSender().send(dial, outgoing(path))
    assert ending == Ending("7", confirmed=False)
    assert got == CONTENT[1000:]
    assert trio.current_time() < ANSWER_S


@pytest.mark.parametrize(
    "answer", [b"sourceid=7;position=1", b"sourceid=100%", b"sourceid=7;position=%", b"x%"]
)
def test_what_may_go_on_has_not_ended(answer: bytes) -> None:
    assert not answer_ended(answer)


# ---- coming back ----------------------------------------------------------------------------------------------


class _Speechless:
    """Servers that close, or say nothing, as often as they are dialled."""

    def __init__(self, *, closes: bool) -> None:
        self.dialled = 0
        self._closes = closes
        self._open: list[trio.abc.Stream] = []

    async def dial(self) -> Endpoint:
        self.dialled += 1
        here, there = memory_stream_pair()
        if self._closes:
            await there.send_stream.aclose()
        self._open.append(there)
        return StreamEndpoint(here, "memory")


@pytest.mark.parametrize(
    ("sender", "wait_s"), [(SourceidSender, ANSWER_S), (Struct82Sender, STRUCT82_ANSWER_S)]
)
@quick
async def test_a_server_that_does_not_answer_is_said_after_one_wait(
    path: Path, sender: Callable[[], sending.DialectSender], wait_s: float
) -> None:
    silent = _Speechless(closes=False)
    with pytest.raises(Unanswered, match="dialect"):
        await _send_again_and_again(sender(), silent.dial, outgoing(path))
    assert (silent.dialled, trio.current_time()) == (1, wait_s)


@pytest.mark.parametrize("sender", [SourceidSender, Struct82Sender])
@quick
async def test_a_server_that_closes_instead_is_tried_twice(
    path: Path, sender: Callable[[], sending.DialectSender]
) -> None:
    closing = _Speechless(closes=True)
    with pytest.raises(Unanswered, match="dialect"):
        await _send_again_and_again(sender(), closing.dial, outgoing(path))
    assert (closing.dialled, trio.current_time()) == (UNANSWERED_TRIES, RETRY_S)


class _Failing:
    """A sender that fails with ``error`` until the clock says ``until_s``."""

    def __init__(self, error: BlockprotoError, until_s: float) -> None:
        self._error = error
        self._until_s = until_s

    async def send(self, dial: Callable[[], Awaitable[Endpoint]], file: Outgoing) -> Ending:
        if trio.current_time() < self._until_s:
            raise self._error
        return Ending("1", confirmed=True)


@pytest.mark.parametrize(
    "error", [ConnectionLost("nobody is there"), Refused("too many", code=Code.BUSY), StoreFull("no room")]
)
@quick
async def test_it_comes_back_for_as_long_as_it_was_told(path: Path, error: BlockprotoError) -> None:
    told: list[object] = []
    sender = _Failing(error, until_s=100)
    ending = await _send_again_and_again(sender, nobody_is_dialled, outgoing(path), 120, told.append)
    assert ending.confirmed
    assert 100 <= trio.current_time() <= 108
    assert told
    assert all(isinstance(one, Reconnecting) and one.why is error for one in told)
    with pytest.raises(type(error)):
        await _send_again_and_again(_Failing(error, 1e9), nobody_is_dialled, outgoing(path), 0)
    began = trio.current_time()
    with pytest.raises(type(error)):
        await _send_again_and_again(_Failing(error, 1e9), nobody_is_dialled, outgoing(path), 60)
    assert trio.current_time() - began == 60


@quick
async def test_a_refusal_that_stays_is_told_at_once(path: Path) -> None:
    with pytest.raises(NameRefused):
        await _send_again_and_again(_Failing(NameRefused("no"), 10), nobody_is_dialled, outgoing(path), 60)
    assert trio.current_time() == 0


def test_retry_for_waits_for_a_server_that_is_not_there_yet(
    path: Path, run: Callable[..., Ran], start_server: Callable[..., Server], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "served"
    folder.mkdir()
    late = threading.Timer(1.0, start_server, (folder, "--dialect", "sourceid"), {"port": port})
    late.start()
    try:
        ran = run("put", "--dialect", "sourceid", "--retry-for", "60s", path, f"bp://127.0.0.1:{port}/")
    finally:
        late.join()
    assert ran.status == 0, ran.err
    assert "trying again" in ran.err
    assert (folder / "film.mp4").read_bytes() == CONTENT
    gone = run("put", "--dialect", "sourceid", "--retry-for", "0", path, "bp://127.0.0.1:1/")
    assert gone.status == 3
    assert "trying again" not in gone.err


# ---- what is said of it ---------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-015")
@pytest.mark.parametrize(
    "name", ["x" * 300, "é" * 250, "a" * 200 + "\u202e" * 150, "照" * 120, "\u200b" * 240]
)
def test_a_long_name_is_cut_and_the_reason_stays(name: str) -> None:
    with pytest.raises(NameRefused) as raised:
        parse(f"Content-Length=1;filename={'begin'}{name}end.txt;sourceid=".encode())
    said = error_line(raised.value)
    assert len(said) <= LINE_LENGTH_MAX
    text = said.decode().removesuffix("\r\n").partition(";text=")[2]
    assert text.startswith("the name 'begin")
    assert "…" in text
    assert text.endswith("(rule component-length, profile wire)")
    assert "…' has a component over 255 bytes" in text


def test_a_long_reason_keeps_both_ends() -> None:
    said = error_line(StoreFull("begin" + "x" * 5000 + "end")).decode()
    assert said.startswith("error=29;name=STORE_FULL;text=beginxxx")
    assert said.endswith("xxxend\r\n")
    assert "x…x" in said


@quick
async def test_a_refused_upload_is_in_the_log_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "blockproto")
    async with serving(dialects=[Sourceid()]) as served:
        for line in (
            b"Content-Length=5;filename=..;sourceid=\r\n",
            b"Content-Length=5 MB;filename=a;sourceid=\r\n",
        ):
            stream = served.connect()
            await stream.send_all(line)
            assert (await stream.receive_some(1000)).startswith(b"error=")
            await stream.aclose()
        stream = served.connect()
        await stream.send_all(b"Content-Length=5;filename=short;sourceid=7\r\n")
        await stream.receive_some(1000)
        await stream.send_all(b"123")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert names_in(served.store) == []
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    for reason in ("has the component '..'", "Content-Length is '5 MB'", "2 bytes of short missing"):
        assert sum(reason in one for one in said) == 1, (reason, said)
