"""The dialect sourceid: a transcript for every rule, over memory streams and a clock that jumps."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import (
    MIB,
    Gate,
    Sample,
    Served,
    WatchedStore,
    assert_untouched,
    bytes_of,
    content_of,
    names_in,
    run,
    serving,
    uploads_in,
)
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from blockproto.connection.connection import GREETING_S
from blockproto.connection.endpoint import Deadline, StreamEndpoint
from blockproto.dialects.dialect_connection import DRAIN_S, SILENCE_S, DialectConnection
from blockproto.dialects.sequential_receiver import UNDURABLE_MAX
from blockproto.dialects.sourceid import Sourceid, new_sourceid
from blockproto.dialects.sourceid_line import LINE_LENGTH_MAX, POSITION_MAX
from blockproto.errors import Code, StoreFailed, StoreFull
from blockproto.identity.realm import ANONYMOUS
from blockproto.serving.server import GRACE_S
from blockproto.store import BlockDone, Facts, Finish, Outcome, Work
from blockproto.testing.memory_store import MemoryStore, MemoryUpload
from blockproto.transfer.file_service import FileService
from blockproto.wire import Committed, List, ListKind, Opened, Result

quick = pytest.mark.trio(run=run)

CONTENT = bytes_of(2 * MIB + 300_000)
VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "spec" / "vectors" / "dialects.json").read_text(encoding="utf-8")
)["vectors"]


class Asked:
    """A connection that said its line: what was answered, and the stream behind it."""

    def __init__(self, stream: trio.abc.Stream, answer: bytes) -> None:
        self.stream = stream
        self.answer = answer

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The answer's fields in order."""
        assert self.answer.endswith(b"\r\n")
        return [tuple(field.split("=", 1)) for field in self.answer[:-2].decode().split(";")]  # type: ignore[misc]

    @property
    def sourceid(self) -> str:
        assert self.fields[0][0] == "sourceid"
        return self.fields[0][1]

    @property
    def position(self) -> int:
        assert self.fields[1][0] == "position"
        return int(self.fields[1][1])

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def close(self) -> None:
        """Close, and let the server come to rest."""
        await self.stream.aclose()
        await wait_all_tasks_blocked()

    async def rest(self) -> bytes:
        """What the server still says until it closes."""
        said = b""
        try:
            while more := await self.stream.receive_some(65_536):
                said += more
        except trio.BrokenResourceError:
            pass
        return said


def line(size: int | str, name: str | bytes = "a.bin", sourceid: str = "", end: str = "\r\n") -> bytes:
    name = name.encode() if isinstance(name, str) else name
    return f"Content-Length={size};filename=".encode() + name + f";sourceid={sourceid}{end}".encode()


async def ask(served: Served, request: bytes) -> Asked:
    """Say ``request`` on a new connection and hear one line."""
    stream = served.connect()
    await stream.send_all(request)
    answer = b""
    while not answer.endswith(b"\n"):
        more = await stream.receive_some(1)
        assert more, answer
        answer += more
    return Asked(stream, answer)


@asynccontextmanager
async def server(store: MemoryStore | None = None, **options: Any) -> AsyncIterator[Served]:
    async with serving(store, dialects=[Sourceid()], **options) as served:
        yield served


async def send_all(
    served: Served, content: bytes = CONTENT, name: str = "a.bin", sourceid: str = ""
) -> Asked:
    """A whole upload from where the server says, as an old client does it."""
    asked = await ask(served, line(len(content), name, sourceid))
    await asked.send(content[asked.position :])
    await asked.close()
    return asked


# ---- the answer -----------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-002", "BP1-SID-008", "BP1-SID-017")
@quick
async def test_one_line_is_said_and_then_nothing_until_the_client_has_closed() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        assert [key for key, _ in asked.fields] == ["sourceid", "position"]
        assert b" " not in asked.answer
        assert asked.position == 0
        await asked.send(CONTENT)
        with trio.move_on_after(DRAIN_S - 1) as waiting:
            await asked.stream.receive_some(1)
        assert waiting.cancelled_caught
        assert content_of(served.store, "a.bin") == CONTENT
        await asked.close()


@pytest.mark.clause("BP1-SID-008")
@quick
async def test_a_client_that_does_not_close_is_closed_in_the_end_without_a_word() -> None:
    async with server() as served:
        asked = await ask(served, line(5))
        await asked.send(b"12345")
        assert await asked.rest() == b""
        assert trio.current_time() == DRAIN_S


@pytest.mark.clause("BP1-SID-012")
def test_ids_are_positive_numbers_of_63_bits_that_do_not_repeat() -> None:
    ids = {new_sourceid() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(1 <= int(one) < 1 << 63 and one == str(int(one)) for one in ids)
    assert max(int(one).bit_length() for one in ids) == 63


@pytest.mark.clause("BP1-SID-011")
@pytest.mark.parametrize("sourceid", ["1234567890123", "null", "9223372036854775807", "a-b_c:d"])
@quick
async def test_an_unknown_id_is_adopted_and_echoed(sourceid: str) -> None:
    async with server() as served:
        asked = await send_all(served, sourceid=sourceid)
        assert (asked.sourceid, asked.position) == (sourceid, 0)
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-009", "BP1-DIA-008", "BP1-DIA-012")
@quick
async def test_the_position_is_what_is_durable_with_the_begun_block() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 70_000])
        await asked.close()
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert (again.sourceid, again.position) == (asked.sourceid, MIB + 70_000)
        await again.send(CONTENT[again.position :])
        await again.close()
        assert content_of(served.store, "a.bin") == CONTENT
        assert uploads_in(served.store) == []


@pytest.mark.clause("BP1-SID-009", "BP1-DIA-008")
@quick
async def test_the_position_is_the_same_after_the_server_died() -> None:
    store = WatchedStore()
    async with server(store) as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 70_000])
        await asked.close()
        survivor = store.survivor()
    async with server(survivor) as served:
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == MIB + 70_000
        await again.send(CONTENT[again.position :])
        await again.close()
        assert content_of(survivor, "a.bin") == CONTENT


@pytest.mark.clause("BP1-DIA-012", "BP1-DIA-013")
@quick
async def test_a_client_that_falls_silent_is_let_go_and_what_it_sent_is_kept() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[:70_000])
        assert await asked.rest() == b""
        assert trio.current_time() == SILENCE_S
        assert (await ask(served, line(len(CONTENT), sourceid=asked.sourceid))).position == 70_000


@pytest.mark.clause("BP1-SID-013")
@quick
async def test_after_the_end_the_same_id_hears_the_whole_size_and_nothing_is_stored_twice() -> None:
    async with server() as served:
        asked = await send_all(served)
        for _ in range(2):
            again = await send_all(served, sourceid=asked.sourceid)
            assert (again.sourceid, again.position) == (asked.sourceid, len(CONTENT))
        assert names_in(served.store) == ["a.bin"]
        assert uploads_in(served.store) == []


@pytest.mark.clause("BP1-SID-013")
@quick
async def test_an_old_client_that_sends_all_again_all_the_same_changes_nothing() -> None:
    async with server() as served:
        asked = await send_all(served)
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        await again.send(bytes(len(CONTENT)))
        await again.close()
        assert names_in(served.store) == ["a.bin"]
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-011")
@pytest.mark.parametrize(("name", "size"), [("b.bin", len(CONTENT)), ("a.bin", 900_000)])
@quick
async def test_a_known_id_with_another_name_or_size_gets_a_new_target(name: str, size: int) -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[:500_000])
        await asked.close()
        other = bytes_of(size, 9)
        second = await ask(served, line(size, name, asked.sourceid))
        assert (second.sourceid, second.position) == (asked.sourceid, 0)
        await second.send(other)
        await second.close()
        assert content_of(served.store, name) == other
        first = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert first.position == 500_000


@pytest.mark.clause("BP1-SID-011", "BP1-DIA-009")
@quick
async def test_the_same_id_from_another_host_is_another_upload() -> None:
    async with server() as served:
        contents = {"10.0.0.1": CONTENT, "10.0.0.2": bytes_of(len(CONTENT), 5)}
        for host, content in contents.items():
            here, there = memory_stream_pair()
            served.nursery.start_soon(served.server.serve_endpoint, StreamEndpoint(there, host))
            await here.send_all(line(len(content), sourceid="77"))
            assert await here.receive_some(100) == b"sourceid=77;position=0\r\n"
            await here.send_all(content[:-1])
            await here.aclose()
            await wait_all_tasks_blocked()
        assert len(uploads_in(served.store)) == 2


@pytest.mark.clause("BP1-SID-014")
@quick
async def test_of_two_connections_the_newer_wins_and_the_older_is_closed() -> None:
    async with server() as served:
        older = await ask(served, line(len(CONTENT)))
        await older.send(CONTENT[: MIB + 90_000])
        await wait_all_tasks_blocked()
        newer = await ask(served, line(len(CONTENT), sourceid=older.sourceid))
        assert newer.position == MIB + 90_000
        assert await older.rest() == b""
        with pytest.raises(trio.BrokenResourceError):
            await older.send(bytes(10))
        await newer.send(CONTENT[newer.position :])
        await newer.close()
        assert content_of(served.store, "a.bin") == CONTENT


@quick
async def test_who_comes_again_while_the_file_is_being_finished_hears_the_whole_size() -> None:
    """The older connection has brought everything: what is waited for is also the end of the upload."""
    async with server() as served:
        older = await ask(served, line(len(CONTENT)))
        gate = Gate(served.server)
        await older.send(CONTENT)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def come_back() -> None:
                newer = await ask(served, line(len(CONTENT), sourceid=older.sourceid))
                assert newer.position == len(CONTENT)
                await newer.close()

            nursery.start_soon(come_back)
            await wait_all_tasks_blocked()
            gate.open()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-014", "BP1-DIA-008")
@pytest.mark.parametrize("length", [90_000, MIB, MIB + 90_000])
@quick
async def test_the_newer_connection_is_answered_when_what_the_older_brought_is_durable(length: int) -> None:
    async with server() as served:
        older = await ask(served, line(len(CONTENT)))
        gate = Gate(served.server)
        await older.send(CONTENT[:length])
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            answers: list[Asked] = []

            async def come_back() -> None:
                answers.append(await ask(served, line(len(CONTENT), sourceid=older.sourceid)))

            nursery.start_soon(come_back)
            await wait_all_tasks_blocked()
            assert answers == []
            gate.open()
        assert answers[0].position == length


@pytest.mark.clause("BP1-SID-014")
@quick
async def test_connections_that_come_at_once_do_not_mix_their_bytes() -> None:
    async with server() as served:
        streams = [served.connect() for _ in range(3)]
        for stream in streams:
            await stream.send_all(line(len(CONTENT), sourceid="77"))
        await wait_all_tasks_blocked()
        open_still = [stream for stream in streams if not await _is_closed(stream)]
        (winner,) = open_still
        await winner.send_all(CONTENT)
        await winner.aclose()
        await wait_all_tasks_blocked()
        assert content_of(served.store, "a.bin") == CONTENT


async def _is_closed(stream: trio.abc.Stream) -> bool:
    """Whether the server has closed, once its answer, if any, was read."""
    with trio.move_on_after(0.001):
        while await stream.receive_some(1000):
            pass
        return True
    return False


# ---- lines ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-003")
@pytest.mark.parametrize("end", ["\n", "\r\n", "%", "/r/n", "%\r\n"])
@quick
async def test_every_end_of_the_line_is_taken(end: str) -> None:
    async with server() as served:
        asked = await ask(served, line(5, sourceid="77", end=end))
        assert asked.answer == b"sourceid=77;position=0\r\n"
        await asked.send(b"12345")
        await asked.close()
        assert content_of(served.store, "a.bin") == b"12345"


@pytest.mark.clause("BP1-SID-003", "BP1-SID-004")
@quick
async def test_a_carriage_return_alone_ends_no_line() -> None:
    async with server() as served:
        asked = await ask(served, line(5, "a" * 40, sourceid="77", end="\r"))
        assert asked.fields[:2] == [("error", "8"), ("name", "TIMEOUT")]
        assert trio.current_time() == GREETING_S


@pytest.mark.clause("BP1-DIA-005")
@pytest.mark.parametrize("begun", [b"", b"Content-Length", line(5, end="\r")])
@quick
async def test_what_has_not_told_in_time_what_it_is_hears_nothing(begun: bytes) -> None:
    async with server() as served:
        stream = served.connect()
        await stream.send_all(begun)
        assert await stream.receive_some(1) == b""
        assert trio.current_time() == GREETING_S


@pytest.mark.clause("BP1-SID-003", "BP1-DIA-003")
@quick
async def test_a_line_and_its_bytes_may_come_a_byte_at_a_time() -> None:
    async with server() as served:
        stream = served.connect()
        for byte in line(5, sourceid="77") + b"12345":
            await stream.send_all(bytes([byte]))
            await wait_all_tasks_blocked()
        assert await Asked(stream, b"").rest() == b"sourceid=77;position=0\r\n"
        assert content_of(served.store, "a.bin") == b"12345"


@quick
async def test_bytes_that_come_with_the_line_are_the_first_of_the_file() -> None:
    async with server() as served:
        asked = await ask(served, line(5, sourceid="77") + b"12345")
        await asked.close()
        assert content_of(served.store, "a.bin") == b"12345"


@pytest.mark.clause("BP1-SID-006", "BP1-DIA-007")
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("照片.jpg".encode(), "照片.jpg"),
        ("照片.jpg".encode("gbk"), "照片.jpg"),
        (b"a;b=c;d.txt", "a;b=c;d.txt"),
        (b"../../etc/passwd", "passwd"),
        (b"C:\\Users\\me\\film.mp4", "film.mp4"),
    ],
)
@quick
async def test_names_are_read_as_their_senders_meant_them(sent: bytes, stored: str) -> None:
    async with server() as served:
        asked = await ask(served, line(5, sent))
        await asked.send(b"12345")
        await asked.close()
        assert names_in(served.store) == [stored]


@pytest.mark.clause("BP1-DIA-007")
@quick
async def test_a_name_that_is_taken_is_kept() -> None:
    async with server() as served:
        await send_all(served, b"first")
        await send_all(served, b"other")
        assert sorted(names_in(served.store)) == ["a (1).bin", "a.bin"]
        assert content_of(served.store, "a.bin") == b"first"


@pytest.mark.clause("BP1-SID-013", "BP1-DIA-008")
@quick
async def test_a_file_is_complete_before_its_size_is_told() -> None:
    async with server() as served:
        gate = Gate(served.server)
        stream = served.connect()
        await stream.send_all(line(0, "empty", "77"))
        await gate.waits.wait()
        with trio.move_on_after(1) as waiting:
            await stream.receive_some(1)
        assert waiting.cancelled_caught
        gate.open()
        assert await stream.receive_some(100) == b"sourceid=77;position=0\r\n"
        assert content_of(served.store, "empty") == b""
        await stream.aclose()


# ---- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-007", "BP1-SID-015")
@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (b"Content-Length=5;sourceid=\r\n", Code.MALFORMED),
        (b"filename=a;sourceid=\r\n", Code.MALFORMED),
        (line("x"), Code.MALFORMED),
        (line("-5"), Code.MALFORMED),
        (line("9" * 30), Code.MALFORMED),
        (line("9" * 19), Code.BAD_FACTS),
        (line(5, "."), Code.NAME_REFUSED),
        (line(5, "a/.."), Code.NAME_REFUSED),
        (line(5, ".blockproto"), Code.NAME_REFUSED),
        (line(5, b"\xff\xff"), Code.NAME_REFUSED),
        (line(5, "x" * 300), Code.NAME_REFUSED),
        (line(5, sourceid="7" * 65), Code.MALFORMED),
        (line(5, "x" * LINE_LENGTH_MAX), Code.TOO_LARGE),
        (b"Content-Length=" + b"9" * LINE_LENGTH_MAX, Code.TOO_LARGE),
    ],
)
@quick
async def test_what_cannot_be_served_is_refused_in_one_line_and_nothing_is_made(
    request_line: bytes, code: Code
) -> None:
    async with server() as served:
        asked = await ask(served, request_line)
        assert asked.fields[:2] == [("error", str(int(code))), ("name", code.name)]
        assert [key for key, _ in asked.fields] == ["error", "name", "text"]
        assert await asked.stream.receive_some(1) == b""  # half-closed while we still may send
        await asked.send(bytes(100_000))
        await asked.close()
        assert_untouched(served.store)


@pytest.mark.clause("BP1-SID-004")
@quick
async def test_a_line_that_never_ends_is_ended_by_the_clock_though_bytes_trickle_in() -> None:
    async with server() as served:
        stream = served.connect()
        await stream.send_all(b"Content-Length=5;filename=" + b"x" * 60)
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"x")
                        with trio.move_on_after(1):
                            await trio.sleep_forever()

            nursery.start_soon(trickle)
            answer = await stream.receive_some(1000)
            assert trio.current_time() == GREETING_S
            assert answer.startswith(b"error=8;name=TIMEOUT;text=")
        assert trio.current_time() <= GREETING_S + DRAIN_S + 1
        assert_untouched(served.store)


@quick
async def test_who_closes_within_the_line_leaves_nothing() -> None:
    async with server() as served:
        stream = served.connect()
        await stream.send_all(b"Content-Length=5;filename=" + b"a" * 80)
        await stream.aclose()
        await wait_all_tasks_blocked()
        assert_untouched(served.store)
        assert not served.server._connections


@pytest.mark.clause("BP1-SID-015")
@quick
async def test_a_full_disk_is_said_while_something_can_be_said() -> None:
    class Full(WatchedStore):
        def open_upload(self, *arguments: Any) -> Any:
            raise StoreFull("no room")

    async with server(Full()) as served:
        asked = await ask(served, line(5))
        assert asked.fields == [("error", "29"), ("name", "STORE_FULL"), ("text", "no room")]
        await asked.close()


# ---- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-SID-016")
@quick
async def test_what_comes_beyond_the_declared_length_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as served:
        asked = await ask(served, line(1_000_000))
        await asked.send(CONTENT[:1_400_000])
        await asked.close()
        assert content_of(served.store, "a.bin") == CONTENT[:1_000_000]
        assert "400000 bytes were dropped" in caplog.text
        (record,) = (one for one in caplog.records if one.levelname == "WARNING")
        assert vars(record)["event"] == "bytes dropped"
        assert vars(record)["facts"] == {"dialect": "sourceid", "name": "a.bin", "dropped": 400_000}


@pytest.mark.clause("BP1-SID-016")
@quick
async def test_what_comes_beyond_together_with_the_line_is_dropped_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server() as served:
        asked = await ask(served, line(5, sourceid="77") + b"12345678")
        await asked.close()
        assert content_of(served.store, "a.bin") == b"12345"
        assert "3 bytes were dropped" in caplog.text


@pytest.mark.clause("BP1-SID-009")
@quick
async def test_a_begun_block_that_is_not_what_was_recorded_is_begun_anew() -> None:
    store = WatchedStore()
    async with server(store) as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 70_000])
        await asked.close()
        (upload,) = uploads_in(store)
        damaged = store.open_upload(upload.key, Facts(upload.filename, "", len(CONTENT)), 0)
        assert isinstance(damaged, MemoryUpload)
        damaged.write(MIB + 5, memoryview(b"?"))
        damaged.close()
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == MIB
        await again.send(CONTENT[MIB:])
        await again.close()
        assert content_of(store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-016", "BP1-DIA-012")
@quick
async def test_a_body_that_ends_early_is_kept_and_no_file_appears() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[:-1])
        await asked.close()
        assert names_in(served.store) == []
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == len(CONTENT) - 1
        await again.send(CONTENT[-1:])
        await again.close()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-017")
@quick
async def test_all_bytes_are_there_though_the_client_closed_before_any_was_durable() -> None:
    async with server() as served:
        gate = Gate(served.server)
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT)
        await asked.stream.aclose()
        await gate.waits.wait()
        assert names_in(served.store) == []
        gate.open()
        await wait_all_tasks_blocked()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-009", "BP1-SID-010")
@quick
async def test_a_position_is_never_beyond_what_clients_can_read_and_the_overlap_is_harmless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the bound brought down, since a file of more than 2 GiB takes its time."""
    bound = MIB + 1000
    for module in ("sourceid", "sourceid_line"):
        monkeypatch.setattr(f"blockproto.dialects.{module}.POSITION_MAX", bound)
    store = WatchedStore()
    async with server(store) as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: 2 * MIB + 50_000])
        await asked.close()
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == bound
        await again.send(CONTENT[again.position :])
        await again.close()
        assert content_of(store, "a.bin") == CONTENT
        assert [blockno for _, blockno in store.durable] == [0, 1, 2]
        over = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert over.position == bound
        await over.send(CONTENT[over.position :])
        await over.close()
        assert names_in(store) == ["a.bin"]


def test_the_bound_is_that_of_a_signed_number_of_32_bits() -> None:
    assert POSITION_MAX == 2_147_483_647


@pytest.mark.clause("BP1-SID-010", "BP1-DIA-011")
@quick
async def test_an_overlap_that_differs_ends_the_upload_and_nothing_is_spliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockproto.dialects.sourceid.POSITION_MAX", 1000)
    monkeypatch.setattr("blockproto.dialects.sourceid_line.POSITION_MAX", 1000)
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 5000])
        await asked.close()
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        changed = bytearray(CONTENT[1000:])
        changed[500] ^= 1
        await again.send(bytes(changed))
        assert await again.rest() == b""
        assert names_in(served.store) == []
        third = await ask(served, line(len(CONTENT), sourceid=asked.sourceid) + CONTENT[1000:])
        await third.close()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-018")
@quick
async def test_who_asks_hears_what_is_durable_without_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.dialects.sourceid.POSITION_MAX", 1000)
    monkeypatch.setattr("blockproto.dialects.sourceid_line.POSITION_MAX", 1000)
    wants = line(len(CONTENT), sourceid="77").replace(b"\r\n", b";durable=\r\n")
    async with server() as served:
        asked = await ask(served, wants)
        assert asked.answer == b"sourceid=77;position=0;durable=0\r\n"
        await asked.send(CONTENT[: MIB + 5000])
        await asked.close()
        again = await ask(served, wants)
        assert again.answer == f"sourceid=77;position=1000;durable={MIB + 5000}\r\n".encode()
        await again.send(CONTENT[MIB + 5000 :])
        await again.close()
        done = await ask(served, wants)
        assert done.fields[2] == ("durable", str(len(CONTENT)))
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-DIA-014")
@quick
async def test_what_is_received_and_not_durable_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (UNDURABLE_MAX + 1) * MIB <= 64 * MIB
    monkeypatch.setattr("blockproto.dialects.sequential_receiver.UNDURABLE_MAX", 2)
    content = bytes_of(8 * MIB)
    async with server() as served:
        gate = Gate(served.server)
        asked = await ask(served, line(len(content)))
        await asked.send(content)
        await wait_all_tasks_blocked()
        (live,) = served.server.engine.uploads._live.values()
        assert sorted(live.pending) == [0, 1, 2]
        gate.open()
        await asked.close()
        assert content_of(served.store, "a.bin") == content


@pytest.mark.clause("BP1-SID-015")
@quick
async def test_who_never_stops_sending_is_not_listened_to_for_ever() -> None:
    class Endless(StreamEndpoint):
        async def receive_into(self, view: memoryview, deadline: Deadline = lambda: math.inf) -> int | None:
            await trio.lowlevel.checkpoint()
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, MockClock)
            clock.jump(1)
            return len(view)

    async with server() as served:
        endless = Endless(served.connect())
        writer = FileService(served.server.engine, ANONYMOUS).writer()
        visit = DialectConnection(Sourceid(), endless, b"ab", writer, trio.current_time())
        assert await visit.drain() == 2 + DRAIN_S * 65_536
        await endless.aclose()


# ---- the server as a whole ------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-DIA-007")
@quick
async def test_an_unfinished_upload_is_listed_and_cancelled_like_any_other() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 10])
        await wait_all_tasks_blocked()
        peer = await served.peer()
        await peer.say(1, List(kind=ListKind.UPLOADS))
        (item,) = (await peer.expect(Result, 1)).items
        assert (item.filename, item.filesize, item.position) == ("a.bin", len(CONTENT), MIB)  # type: ignore[union-attr]
        async with served.client() as client:
            await client.cancel_upload(item.sourceid.hex())  # type: ignore[union-attr]
        assert await asked.rest() == b""
        assert_untouched(served.store)
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == 0


@pytest.mark.clause("BP1-DIA-001")
@quick
async def test_without_the_dialect_the_line_is_not_answered() -> None:
    async with serving() as served:
        stream = served.connect()
        await stream.send_all(line(5))
        said = await Asked(stream, b"").rest()
        assert b"sourceid" not in said
        assert_untouched(served.store)


@pytest.mark.clause("BP1-DIA-006")
@quick
async def test_native_connections_and_old_ones_are_served_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "native.bin"
    path.write_bytes(bytes_of(3 * MIB, 4))
    async with server() as served, served.client() as client:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[:MIB])
        await client.upload(path)
        await asked.send(CONTENT[MIB:])
        await asked.close()
        assert content_of(served.store, "native.bin") == path.read_bytes()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-DIA-012")
@quick
async def test_stop_records_what_was_received_and_closes() -> None:
    store = WatchedStore()
    async with server(store) as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 70_000])
        await wait_all_tasks_blocked()
        served.server.stop()
        assert await asked.rest() == b""
        assert trio.current_time() == GRACE_S
    async with server(store.survivor()) as served:
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == MIB + 70_000


@pytest.mark.clause("BP1-DIA-012")
@quick
async def test_what_ends_within_the_grace_is_finished() -> None:
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[:MIB])
        served.server.stop()
        await wait_all_tasks_blocked()
        await asked.send(CONTENT[MIB:])
        await asked.close()
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-DIA-005")
@quick
async def test_who_has_not_said_what_he_speaks_is_let_go_when_the_server_stops() -> None:
    async with server() as served:
        silent, half = served.connect(), served.connect()
        await half.send_all(b"Content-")
        await wait_all_tasks_blocked()
        served.server.stop()
        assert await silent.receive_some(1) == b""
        assert await half.receive_some(1) == b""
        assert trio.current_time() == 0


@quick
async def test_after_the_medium_failed_nothing_is_told_and_the_server_leaves() -> None:
    store = WatchedStore()
    async with server(store, fails=StoreFailed) as served:
        asked = await ask(served, line(len(CONTENT)))

        def fail(batch: Any) -> None:
            raise StoreFailed("the medium reported an error")

        store.before_commit = fail
        await asked.send(CONTENT[: MIB + 1])
        assert await asked.rest() == b""
        assert trio.current_time() < 1


@quick
async def test_a_write_that_fails_ends_the_server_too() -> None:
    class Failing(WatchedStore):
        def open_upload(self, *arguments: Any) -> Any:
            upload = super().open_upload(*arguments)
            if isinstance(upload, MemoryUpload):

                def write(position: int, piece: memoryview) -> None:
                    raise StoreFailed("the medium reported an error")

                upload.write = write  # type: ignore[method-assign]
            return upload

    async with server(Failing(), fails=StoreFailed) as served:
        asked = await ask(served, line(5))
        await asked.send(b"12345")
        assert await asked.rest() == b""


class _FullAtBlockOne(WatchedStore):
    """A store that has no room for block 1 as long as it is ``full``, and then for everything."""

    full = True

    def _do(self, work: Work) -> Outcome:
        if self.full and isinstance(work, BlockDone) and work.blockno == 1:
            raise StoreFull("no room")
        return super()._do(work)


@pytest.mark.clause("BP1-DIA-011")
@pytest.mark.parametrize("changed", [False, True])
@quick
async def test_a_block_for_which_there_is_no_room_is_sent_again_and_those_behind_it_are_compared(
    changed: bool,
) -> None:
    store = _FullAtBlockOne()
    async with server(store) as served:
        gate = Gate(served.server)
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT)
        await wait_all_tasks_blocked()
        gate.open()
        assert await asked.rest() == b""
        store.full = False
        assert [blockno for _, blockno in store.durable] == [0, 2]
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == MIB
        content = CONTENT[:-1] + bytes([CONTENT[-1] ^ changed])
        await again.send(content[MIB:])
        await again.close()
        assert names_in(store) == ([] if changed else ["a.bin"])
        if not changed:
            assert content_of(store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-015")
@quick
async def test_what_ends_an_upload_before_it_was_answered_is_told() -> None:
    async with server(_FullAtBlockOne()) as served:
        gate = Gate(served.server)
        older = await ask(served, line(len(CONTENT)))
        await older.send(CONTENT[: 2 * MIB])
        await wait_all_tasks_blocked()
        newer = served.connect()
        await newer.send_all(line(len(CONTENT), sourceid=older.sourceid))
        await wait_all_tasks_blocked()
        gate.open()
        assert await newer.receive_some(100) == b"error=29;name=STORE_FULL;text=no room\r\n"
        await newer.aclose()


@quick
async def test_the_beginning_of_a_block_behind_a_gap_is_not_gone_on_with() -> None:
    """The client comes back to the gap and sends everything behind it from the beginning of each block."""
    store = _FullAtBlockOne()
    async with server(store) as served:
        gate = Gate(served.server)
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: 2 * MIB + 100_000])
        await wait_all_tasks_blocked()
        gate.open()
        assert await asked.rest() == b""
        store.full = False
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == MIB
        await again.send(CONTENT[MIB:])
        await again.close()
        assert content_of(store, "a.bin") == CONTENT


@quick
async def test_a_native_client_may_join_and_no_block_is_made_of_two_streams() -> None:
    """It finds the sourceid in the listing, and sends the block that the old client has begun."""
    async with server() as served:
        asked = await ask(served, line(len(CONTENT)))
        await asked.send(CONTENT[: MIB + 1000])
        await wait_all_tasks_blocked()
        (live,) = served.server.engine.uploads._live.values()
        sample = Sample(CONTENT, "a.bin", sourceid=live.stored.key.sourceid)
        peer = await served.peer()
        await peer.say(1, sample.open(live.attempt))
        await peer.expect(Opened, 1)
        await peer.say(1, *sample.block(1, 0, 500, end=False))
        await wait_all_tasks_blocked()
        await asked.send(CONTENT[MIB + 1000 :])
        await wait_all_tasks_blocked()
        assert names_in(served.store) == []
        await peer.say(1, *sample.piece(1, 500))
        await peer.say(1, sample.commit())
        await peer.expect(Committed, 1)
        assert content_of(served.store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-DIA-010")
@quick
async def test_the_digests_are_those_of_the_bytes_that_came() -> None:
    async with server() as served, served.client() as client:
        await send_all(served)
        sample = Sample(CONTENT)
        found = await client.stat("a.bin")
        assert found.root == sample.root.hex()


@quick
async def test_a_file_whose_blocks_are_all_there_is_committed_when_its_client_comes_back() -> None:
    """As after a kill between the last block and the name."""

    class Killed(WatchedStore):
        killed = False

        def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
            if any(isinstance(work, Finish) for work in works) and not self.killed:
                self.killed = True
                super().decide([work for work in works if not isinstance(work, Finish)])
                raise StoreFailed("killed")
            return super().decide(works)

    store = Killed()
    async with server(store, fails=StoreFailed) as served:
        asked = await send_all(served)
    survivor = store.survivor()
    async with server(survivor) as served:
        again = await ask(served, line(len(CONTENT), sourceid=asked.sourceid))
        assert again.position == len(CONTENT)
        assert content_of(survivor, "a.bin") == CONTENT
        await again.close()


# ---- the vectors ----------------------------------------------------------------------------------------------


def joined(parts: list[Any]) -> bytes:
    return b"".join(
        bytes.fromhex(part)
        if isinstance(part, str)
        else bytes((part["pattern_from"] + i) % 251 for i in range(part["length"]))
        for part in parts
    )


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["name"]) for row in VECTORS if row["dialect"] == "sourceid"]
)
@quick
async def test_a_transcript_goes_as_its_vector_says(
    row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.dialects.sourceid.new_sourceid", lambda: "4611686018427387904")
    async with server() as served:
        streams: dict[int, trio.abc.Stream] = {}
        for step in row["steps"]:
            stream = streams.setdefault(step["connection"], served.connect())
            if step.get("closes"):
                await stream.aclose()
                await wait_all_tasks_blocked()
            elif step["from"] == "client":
                await stream.send_all(joined(step["bytes"]))
                await wait_all_tasks_blocked()
            else:
                expected = joined(step["bytes"])
                assert await stream.receive_some(len(expected)) == expected
        stored = {file["filename"]: joined(file["content"]) for file in row["stored"]}
        assert {name: content_of(served.store, name) for name in names_in(served.store)} == stored
