"""The client of the dialect sourceid: against our server, against old ones, and as a command."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from partials import partials_of
from peers import MIB, Served, bytes_of, content_of, names_in, run, serving
from processes import Ran, Server, wait_until
from trio.testing import memory_stream_pair

from blockproto.cli.address import parse_address
from blockproto.cli.put_dialect import SENT_FIELDS, check_usage
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.dialects import sending
from blockproto.dialects.sending import TRIES, Ending, Outgoing, _send_again_and_again
from blockproto.dialects.sourceid import Sourceid
from blockproto.dialects.sourceid_client import ANSWER_S, OLD_CLOSE_S, SourceidSender
from blockproto.dialects.sourceid_line import parse_answer, request_line
from blockproto.errors import (
    BadFacts,
    BlockprotoError,
    ConnectionLost,
    MalformedFrame,
    NameRefused,
    NotPermitted,
    SourceChanged,
    StoreFull,
)
from blockproto.transfer.send_source import Progress

quick = pytest.mark.trio(run=run)
Run = Callable[..., Ran]
CONTENT = bytes_of(2 * MIB + 12_345)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to send."""
    path = tmp_path / "film.mp4"
    path.write_bytes(CONTENT)
    return path


def outgoing(path: Path, **options: object) -> Outgoing:
    return Outgoing(path, path.name, "memory", **options)  # type: ignore[arg-type]


# ---- lines ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-002", "BP1-SID-018")
def test_the_line_is_what_servers_expect() -> None:
    assert request_line("é.txt", 5, "77") == (
        "Content-Length=5;filename=é.txt;sourceid=77;durable=\r\n".encode()
    )


@pytest.mark.clause("BP1-SID-019")
def test_an_answer_is_read_by_place() -> None:
    assert parse_answer(b"id=77;pos= 12 \r\n", 12) == parse_answer(b"sourceid=77;position=12", 12)
    assert parse_answer(b"sourceid=7;position=1;durable=9\n", 9).durable == 9
    assert parse_answer(b"sourceid=7;position=1;v=2\n", 9).durable is None


@pytest.mark.clause("BP1-SID-019")
@pytest.mark.parametrize(
    "line",
    [b"\r\n", b"220 ftp ready\r\n", b"sourceid=7\r\n", b"sourceid=7;position=\r\n", b"sourceid=7;position=-1\r\n",
     b"sourceid=7;position=6\r\n", b"sourceid=7;position=5;durable=6\r\n", b"sourceid=;position=5\r\n"],
)  # fmt: skip
def test_what_is_no_answer_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedFrame):
        parse_answer(line, 5)


@pytest.mark.clause("BP1-SID-015")
def test_an_error_is_the_one_that_the_server_names() -> None:
    with pytest.raises(StoreFull, match="no room") as raised:
        parse_answer(b"error=29;name=STORE_FULL;text=no room\r\n", 5)
    assert raised.value.retryable
    with pytest.raises(BlockprotoError) as other:
        parse_answer(b"error=999;name=ODD\r\n", 5)
    assert not other.value.retryable


# ---- against our server ---------------------------------------------------------------------------------------


@asynccontextmanager
async def server() -> AsyncIterator[Served]:
    async with serving(dialects=[Sourceid()]) as served:
        yield served


@pytest.mark.clause("BP1-SID-018", "BP1-SID-020")
@quick
async def test_a_file_arrives_and_the_server_says_so(path: Path) -> None:
    seen: list[Progress] = []
    async with server() as served:
        file = outgoing(path, progress=seen.append)

        async def dial() -> Endpoint:
            return StreamEndpoint(served.connect(), "memory")

        ending = await SourceidSender().send(dial, file)
        assert ending == Ending(file.decimal_sourceid(), confirmed=True)
        assert trio.current_time() == 0  # the server was told the end, and waited for nothing
        assert content_of(served.store, "film.mp4") == CONTENT
        assert (file.payload_bytes_sent, file.resumed) == (len(CONTENT), False)
        assert seen[-1].position_bytes_done == len(CONTENT)
        again = outgoing(path)
        await SourceidSender().send(served.dial, again)
        assert (again.payload_bytes_sent, again.resumed) == (0, True)
        assert names_in(served.store) == ["film.mp4"]


@pytest.mark.clause("BP1-SID-009", "BP1-SID-020")
@pytest.mark.parametrize("cut", [10, 200, 70_000, MIB + 500_000, len(CONTENT) - 1])
@quick
async def test_after_the_line_broke_it_goes_on_where_the_server_is(path: Path, cut: int) -> None:
    async with server() as served:
        served.line_options = [{"cut_sent": cut}]
        file = outgoing(path)
        with pytest.raises(ConnectionLost):
            await SourceidSender().send(served.dial, file)
        with trio.move_on_after(1):
            await trio.sleep_forever()
        ending = await SourceidSender().send(served.dial, file)
        assert ending.confirmed
        assert content_of(served.store, "film.mp4") == CONTENT
        assert file.payload_bytes_sent <= len(CONTENT) + 2 * MIB


@pytest.mark.clause("BP1-SID-018")
@quick
async def test_beyond_what_old_clients_can_read_it_goes_on_at_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.dialects.sourceid_line.POSITION_MAX", 1000)
    async with server() as served:
        served.line_options = [{"cut_sent": 2 * MIB}]
        with pytest.raises(ConnectionLost):
            await SourceidSender().send(served.dial, outgoing(path))
        with trio.move_on_after(1):
            await trio.sleep_forever()
        again = outgoing(path)
        assert (await SourceidSender().send(served.dial, again)).confirmed
        assert again.payload_bytes_sent < 2 * MIB
        assert content_of(served.store, "film.mp4") == CONTENT


@pytest.mark.clause("BP1-SID-021")
def test_a_file_that_changed_is_another_upload(path: Path) -> None:
    before = outgoing(path).decimal_sourceid()
    assert outgoing(path).decimal_sourceid() == before
    assert 1 <= int(before) < 1 << 63
    os.utime(path, ns=(1, 1))
    assert outgoing(path).decimal_sourceid() != before
    assert Outgoing(path, "other", "memory").decimal_sourceid() != outgoing(path).decimal_sourceid()


@quick
async def test_a_file_that_changes_while_it_is_sent_never_gets_its_last_byte(path: Path) -> None:
    def change(progress: Progress) -> None:
        if progress.payload_bytes_sent == MIB:
            os.utime(path, ns=(1, 1))

    async with server() as served:
        with pytest.raises(SourceChanged):
            await SourceidSender().send(served.dial, outgoing(path, progress=change))
        with trio.move_on_after(1):
            await trio.sleep_forever()
        assert names_in(served.store) == []


@quick
async def test_an_empty_file_arrives(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with server() as served:
        assert (await SourceidSender().send(served.dial, outgoing(tmp_path / "empty"))).confirmed
        assert content_of(served.store, "empty") == b""


def test_what_cannot_be_sent_is_told_before(tmp_path: Path, path: Path) -> None:
    with pytest.raises(NotPermitted, match="not a regular file"):
        outgoing(tmp_path)
    with pytest.raises(BadFacts, match="no folders"):
        Outgoing(path, "a/b", "memory")
    with pytest.raises(NameRefused):
        Outgoing(path, "..", "memory")
    with pytest.raises(FileNotFoundError):
        outgoing(tmp_path / "nobody")


# ---- against others -------------------------------------------------------------------------------------------

Script = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[Callable[[], Awaitable[Endpoint]]]:
    """A server whose connections follow these scripts, one after another."""
    waiting = list(scripts)
    async with trio.open_nursery() as nursery:

        async def serve(script: Script, stream: trio.abc.Stream) -> None:
            await script(stream)
            await stream.aclose()

        async def dial() -> Endpoint:
            here, there = memory_stream_pair()
            nursery.start_soon(serve, waiting.pop(0), there)
            return StreamEndpoint(here, "memory")

        yield dial
    assert waiting == []


async def _line(stream: trio.abc.Stream) -> bytes:
    received = b""
    while not received.endswith(b"\r\n"):
        received += await stream.receive_some(1)
    return received


@pytest.mark.clause("BP1-SID-020")
@quick
async def test_an_old_server_gets_everything_is_asked_once_and_is_not_believed_more_than_it_says(
    path: Path,
) -> None:
    got = bytearray()

    async def old(stream: trio.abc.Stream) -> None:
        line = (await _line(stream)).decode()
        size, name, sourceid = (part.partition("=")[2] for part in line.split(";")[:3])
        assert (int(size), name) == (len(CONTENT), "film.mp4")
        await stream.send_all(f"sourceid={sourceid};position=1000\r\n".encode())
        while len(got) < int(size) - 1000:
            got.extend(await stream.receive_some(65_536))

    async with scripted(old) as dial:
        ending = await SourceidSender().send(dial, outgoing(path))
    assert not ending.confirmed
    assert got == CONTENT[1000:]


@quick
async def test_an_old_server_that_does_not_close_is_left_after_a_while(path: Path) -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await _line(stream)
        await stream.send_all(b"sourceid=1;position=0\r\n")
        while await stream.receive_some(1 << 20):
            pass
        with trio.move_on_after(1000):
            await trio.sleep_forever()

    async with scripted(slow) as dial:
        ending = await SourceidSender().send(dial, outgoing(path))
        assert not ending.confirmed
        assert trio.current_time() == OLD_CLOSE_S


@quick
async def test_a_server_that_says_nothing_is_left(path: Path) -> None:
    async def silent(stream: trio.abc.Stream) -> None:
        await _line(stream)
        await stream.receive_some(1)

    async with scripted(silent) as dial:
        with pytest.raises(ConnectionLost, match="said nothing"):
            await SourceidSender().send(dial, outgoing(path))
        assert trio.current_time() == ANSWER_S


@quick
async def test_a_server_that_closes_instead_of_an_answer_is_named(path: Path) -> None:
    async def native(stream: trio.abc.Stream) -> None:
        await _line(stream)

    async with scripted(native) as dial:
        with pytest.raises(ConnectionLost, match="does it speak this dialect"):
            await SourceidSender().send(dial, outgoing(path))


@pytest.mark.clause("BP1-SID-020")
@quick
async def test_a_server_that_lost_bytes_after_all_is_not_believed(path: Path) -> None:
    async def takes_all(stream: trio.abc.Stream) -> None:
        await _line(stream)
        await stream.send_all(b"sourceid=1;position=0;durable=0\r\n")
        while await stream.receive_some(1 << 20):
            pass

    async with scripted(takes_all, takes_all) as dial:
        with pytest.raises(ConnectionLost, match="send again"):
            await SourceidSender().send(dial, outgoing(path))


class _Breaking:
    """A sender whose line breaks; it gets as far as ``steps`` says."""

    def __init__(self, *steps: int) -> None:
        self.steps = list(steps)
        self.tried = 0

    async def send(self, dial: Callable[[], Awaitable[Endpoint]], file: Outgoing) -> Ending:
        self.tried += 1
        await (await dial()).aclose()
        if not self.steps:
            return Ending("1", confirmed=True)
        file.reached(self.steps.pop(0))
        raise ConnectionLost("broke")


@quick
async def test_it_comes_back_as_long_as_there_is_progress(path: Path) -> None:
    async def there() -> Endpoint:
        return StreamEndpoint(memory_stream_pair()[0])

    async def nobody() -> Endpoint:
        raise ConnectionLost("cannot reach it")

    lucky = _Breaking(*range(20))
    await _send_again_and_again(lucky, there, outgoing(path))
    assert lucky.tried == 21
    mistaken = _Breaking()
    with pytest.raises(ConnectionLost, match="cannot reach"):
        await _send_again_and_again(mistaken, nobody, outgoing(path))
    assert mistaken.tried == 1
    unlucky = _Breaking(*[0] * 20)
    began = trio.current_time()
    with pytest.raises(ConnectionLost):
        await _send_again_and_again(unlucky, there, outgoing(path))
    assert unlucky.tried == TRIES
    waits = (min(sending.RETRY_S * 2**no, sending.RETRY_MOST_S) for no in range(TRIES - 1))
    assert trio.current_time() - began == sum(waits)


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def old(start_server: Callable[..., Server]) -> Server:
    """A running server that answers old clients."""
    return start_server(None, "--dialect", "sourceid")


def test_put_sends_in_a_dialect_and_the_same_again_sends_nothing(old: Server, path: Path, run: Run) -> None:
    first = run("put", "--dialect", "sourceid", path, f"{old.address}/", "--json")
    assert first.status == 0, first.err
    assert list(first.objects[0]) == list(SENT_FIELDS)
    assert first.objects[0] | {"elapsed_s": 0, "sourceid": ""} == {
        "filename": "film.mp4", "filesize": len(CONTENT), "sourceid": "", "stored_as": None, "resumed": False,
        "payload_bytes_sent": len(CONTENT), "confirmed": True, "elapsed_s": 0,
    }  # fmt: skip
    assert (old.folder / "film.mp4").read_bytes() == CONTENT
    second = run("put", "--dialect", "sourceid", path, f"{old.address}/", "--json")
    assert (second.objects[0]["payload_bytes_sent"], second.objects[0]["resumed"]) == (0, True)


@pytest.mark.long
@pytest.mark.clause("BP1-SID-009", "BP1-DIA-008")
def test_the_command_outlives_a_kill_of_the_server(
    start_server: Callable[..., Server], tmp_path: Path, run: Run
) -> None:
    server = start_server(None, "--dialect", "sourceid")
    path = tmp_path / "big.bin"
    path.write_bytes(bytes_of(60 * MIB))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(run, "put", "--dialect", "sourceid", path, f"{server.address}/", "--json")
        partials = partials_of(server.folder / ".blockproto")
        wait_until(lambda: any(partials.glob("*")) or sending.done())
        server.kill()
        start_server(server.folder, "--dialect", "sourceid", port=server.port)
        sent = sending.result()
    assert sent.status == 0, sent.err
    assert sent.objects[0]["confirmed"]
    assert (server.folder / "big.bin").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dialect": "ftp"}, "there is no dialect 'ftp': choose among sourceid"),
        ({"connections": 2}, "--connections"),
        ({"if_exists": "replace"}, "both files are kept"),
        ({"as_name": "a/b"}, "knows no folders"),
        ({"address": "bp://localhost/folder/"}, "knows no folders"),
        ({"paths": ("-",)}, "cannot send stdin"),
        ({"paths": (".",)}, "'.' is a folder"),
    ],
)
def test_what_a_dialect_cannot_do_is_refused_before_anything_is_sent(
    changed: dict[str, Any], says: str
) -> None:
    wanted: dict[str, Any] = {
        "dialect": "sourceid", "paths": ("film.mp4",), "address": "bp://localhost/", "as_name": None, "connections": 1,
        "if_exists": "keep",
    }  # fmt: skip
    wanted |= changed
    wanted["address"] = parse_address(wanted["address"])
    with pytest.raises(click.UsageError, match=re.escape(says)):
        check_usage(**wanted)


def test_what_cannot_be_encrypted_is_not_sent_as_if_it_were(path: Path, run: Run) -> None:
    ran = run("put", "--dialect", "sourceid", path, "bps://localhost:1/")
    assert ran.status == 2
    assert "bps://" in ran.err or "encrypted" in ran.err


def test_a_server_without_the_dialect_and_nobody_are_3(server: Server, path: Path, run: Run) -> None:
    ran = run("put", "--dialect", "sourceid", path, "bp://localhost:1/")
    assert ran.status == 3
    assert "localhost:1" in ran.err


def test_a_refusal_is_1(old: Server, tmp_path: Path, run: Run) -> None:
    ran = run("put", "--dialect", "sourceid", tmp_path / "nobody", f"{old.address}/")
    assert ran.status == 1
    assert "nobody" in ran.err
