"""Slow and stuck transfers on purpose: the log of each names what was waited for, and ``explain`` says so."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import MIB, EndOfStream, RawPeer, Sample, Served, bytes_of, run, run_inline, serving
from processes import Ran, Server
from slow_lines import SlowLines, wait_out
from trio.testing import memory_stream_pair

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.client import Client, connect_with
from blockproto.client_side.authenticate import Authenticator
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.dial import Dial
from blockproto.common.tasks import background_tasks
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import BlockprotoError, Code, ConnectionLost
from blockproto.observability.explain import Explanation, explain
from blockproto.observability.recorder import Recorder
from blockproto.store import Outcome
from blockproto.testing.chaos import Amount, Conditions, Ending, How
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import Credit, Hello, Opened

quick = pytest.mark.trio(run=run)
FAST = Conditions(up_bytes_s=20e6, down_bytes_s=20e6, round_trip_s=0.02)
SLOW = Conditions(up_bytes_s=256e3, down_bytes_s=256e3, round_trip_s=0.1)
Work = Callable[[Client], Any]


async def logged(dial: Dial, work: Work, **options: Any) -> tuple[Explanation, list[dict[str, Any]]]:
    """What ``explain`` says of ``work``, and the log."""
    log = io.StringIO()
    opens = options.pop("open_part_file", lambda _dest, first: MemoryStore(first=first))
    async with connect_with(dial, "memory", opens, ClientConfig(recorder=Recorder(log), **options)) as client:
        await work(client)
    lines = log.getvalue().splitlines()
    return explain(lines), [json.loads(line) for line in lines]


async def explained(served: Served, work: Work, conditions: Conditions = FAST, **options: Any) -> Explanation:
    """The same over slow lines to ``served``."""
    lines = SlowLines(served, conditions)
    told, _ = await logged(lines.dial, work, **options)
    lines.end()
    return told


def upload_of(tmp_path: Path, length: int) -> Work:
    path = tmp_path / "film.bin"
    path.write_bytes(bytes_of(length))

    async def upload(client: Client) -> None:
        await client.upload(path)

    return upload


class Stopped:
    """A server that greets, answers OPEN, and then reads and says nothing more.

    Args:
        nursery: where it lives.
        sample: whose sourceid it names.
        grants: it reads on all the same, and grants half a MiB every other second.
    """

    def __init__(self, nursery: trio.Nursery, sample: Sample, *, grants: bool = False) -> None:
        self._nursery = nursery
        self._sample = sample
        self._grants = grants

    async def dial(self) -> Endpoint:
        here, there = memory_stream_pair()
        self._nursery.start_soon(self._serve_until_left, RawPeer(there))
        return StreamEndpoint(here, "a stopped server")

    async def _serve_until_left(self, peer: RawPeer) -> None:
        with suppress(EndOfStream, trio.BrokenResourceError):
            async with background_tasks() as nursery:
                await self._serve(peer, nursery)

    async def _serve(self, peer: RawPeer, nursery: trio.Nursery) -> None:
        await peer.greet(Hello(agent="raw", stream_allowance=MIB))
        await peer.hear()
        await peer.say(1, Opened(self._sample.sourceid, bytes(16), 1, 0, 1, None, (), ()))
        if self._grants:
            nursery.start_soon(self._grant, peer)
        received = 0
        while True:
            heard = await peer.hear()
            received += len(heard.payload)
            if received and not self._grants:
                await trio.sleep_forever()
            await peer.say(0, Credit(received + 32 * MIB, received))

    async def _grant(self, peer: RawPeer) -> None:
        allowance = MIB
        while True:
            await wait_out(2)
            allowance += MIB // 2
            await peer.say(1, Credit(allowance, 0))


@pytest.mark.parametrize(
    ("way", "loopback", "said"),
    [
        ("sent", False, "took no more from it; use a faster network, or --connections 4"),
        ("received", False, "sent no more; use a faster network; if"),
        ("sent", True, "took no more from it; the address is one of this machine: if a tunnel"),
        ("received", True, "sent no more; the address is one of this machine: if a tunnel"),
    ],
)
def test_what_to_do_about_a_line_depends_on_the_way(way: str, loopback: bool, said: str) -> None:
    begin = {"t": 0.0, "event": "begin", "format": 1, "server": "h:1", "loopback": loopback}
    second = {
        "t": 1.0,
        "event": "second",
        "connection": 1,
        "waits": {"line": 1.0},
        f"payload_{way}": 9,
        "bytes_in": 1,
    }
    told = explain(map(json.dumps, (begin, second)))
    first, what_to_do, *_ = told.sentences()
    assert said in f"{first.rstrip('.')}; {what_to_do.removeprefix('What to do: ')}"
    assert told.advice in what_to_do


@quick
async def test_a_slow_line(tmp_path: Path) -> None:
    async with serving() as served:
        told = await explained(served, upload_of(tmp_path, 2 * MIB), SLOW)
    assert (told.reason, told.losses) == ("line", [])
    assert told.share("line") > 0.9
    assert told.payload_sent == told.acknowledged == 2 * MIB
    assert list(told.files) == ["film.bin"]


@quick
async def test_a_slow_line_down(tmp_path: Path) -> None:
    async with serving() as served:
        async with served.client() as client:
            await upload_of(tmp_path, 2 * MIB)(client)
        told = await explained(
            served,
            lambda client: client.download("film.bin", "copy"),
            SLOW,
            open_part_file=served.open_part_file,
        )
    assert told.reason == "line"
    assert told.share("line") > 0.9
    assert told.payload_received == 2 * MIB


@quick
async def test_a_disk_on_the_other_side_that_syncs_slowly(tmp_path: Path) -> None:
    async with serving() as served:

        async def commit_slowly(decide: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
            await wait_out(3)
            return await run_inline(decide)

        served.server.engine.committer._run_blocking = commit_slowly
        told = await explained(served, upload_of(tmp_path, 4 * MIB))
    assert told.reason == "acknowledgement"
    assert told.share("acknowledgement") > 0.8
    assert told.ack_lag_s > 2
    assert "syncs are slow" in told.advice


@quick
async def test_a_side_that_grants_room_slowly(tmp_path: Path) -> None:
    """It reads everything at once, and says only now and then that there is room for more."""
    work = upload_of(tmp_path, 20 * MIB)

    async def upload(client: Client) -> None:
        with trio.move_on_after(30):
            await work(client)

    async with trio.open_nursery() as nursery:
        told, _ = await logged(Stopped(nursery, Sample(b""), grants=True).dial, upload)
        nursery.cancel_scope.cancel()
    assert told.reason == "credit"
    assert told.share("credit") > 0.9


@quick
async def test_a_source_that_gives_its_bytes_slowly() -> None:
    class Recording:
        """A voice message that is being recorded."""

        left = 24

        async def receive_some(self, most: int | None = None) -> bytes:
            await wait_out(0.5)
            self.left -= 1
            return bytes(131_072) if self.left >= 0 else b""

    async with serving() as served:
        told = await explained(served, lambda client: client.upload(Recording(), name="voice"))
    assert told.reason == "disk"
    assert told.share("disk") > 0.8


@quick
async def test_a_reader_that_has_stopped(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        stopped = Stopped(nursery, Sample(b""))
        work = upload_of(tmp_path, 20 * MIB)

        async def upload(client: Client) -> None:
            with pytest.raises(ConnectionLost):
                await work(client)

        told, _ = await logged(stopped.dial, upload, retry_for_s=0)
        nursery.cancel_scope.cancel()
    assert told.reason == "peer"
    assert told.share("peer") > 0.8
    assert len(told.losses) == 1
    assert "nothing was heard" in told.losses[0]


@quick
async def test_a_line_that_falls_silent_is_not_called_slow(tmp_path: Path) -> None:
    hole = Ending(How.BLACK_HOLE, after_bytes=Amount.of(MIB))
    async with serving() as served:

        async def upload(client: Client) -> None:
            with pytest.raises(ConnectionLost):
                await upload_of(tmp_path, 2 * MIB)(client)

        conditions = Conditions(up_bytes_s=1e6, down_bytes_s=1e6, ending=hole)
        told = await explained(served, upload, conditions, retry_for_s=0)
    assert told.reason == "peer"


@quick
async def test_lost_connections(tmp_path: Path) -> None:
    ending = Ending(How.RESET, after_bytes=Amount.of(300_000))
    far = Conditions(up_bytes_s=20e6, down_bytes_s=20e6, round_trip_s=1.0, ending=ending)
    async with serving() as served:
        told = await explained(served, upload_of(tmp_path, MIB), far)
    assert len(told.losses) >= 3
    assert any("lost" in sentence for sentence in told.sentences())


def test_each_lost_connection_is_counted_once_and_the_greatest_cause_is_advised() -> None:
    """Dialling again can be logged before the loss that made it necessary."""
    events = []
    for number in range(1, 4):
        events += [
            {"t": number, "event": "connected", "connection": number, "peer": "p"},
            {"t": number + 0.5, "event": "second", "connection": number, "waits": {"line": 1.0}, "bytes_in": 1},
            {"t": number + 0.6, "event": "reconnecting", "after_s": 0, "why": "reset"},
            {"t": number + 0.7, "event": "lost", "connection": number, "why": "reset"},
        ]  # fmt: skip
    told = explain([BEGIN, *map(json.dumps, events)])
    assert told.losses == ["reset"] * 3
    assert "The connection was lost 3 times, the last time because: reset." in told.sentences()
    assert "use a faster network" in told.advice
    assert "find out what breaks the connection" in told.advice


def test_a_server_that_was_never_there_was_not_lost() -> None:
    event = {"t": 1, "event": "reconnecting", "after_s": 1, "why": "refused"}
    told = explain([BEGIN, json.dumps(event)])
    assert told.losses == []
    assert "There was no connection at first, because: refused." in told.sentences()
    connected = json.dumps({"t": 0.5, "event": "connected", "connection": 1, "peer": "p"})
    assert not [
        text for text in explain([BEGIN, connected, json.dumps(event)]).sentences() if "at first" in text
    ]


@quick
async def test_nobody_there(tmp_path: Path) -> None:
    async def dial() -> Endpoint:
        await wait_out(1)
        raise ConnectionLost("cannot reach it: Connection refused")

    async def upload(client: Client) -> None:
        with pytest.raises(BlockprotoError, match="refused"):
            await upload_of(tmp_path, MIB)(client)

    told, _ = await logged(dial, upload, retry_for_s=60)
    assert told.reason == "connecting"
    assert told.share("connecting") == 1
    assert told.elapsed_s > 50


@quick
async def test_what_is_secret_is_not_in_the_log(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"the content of this file " * 9)
    async with serving() as served:
        log = io.StringIO()
        async with connect_with(
            served.dial,
            "memory",
            served.open_part_file,
            ClientConfig(recorder=Recorder(log), authenticator=Authenticator()),
        ) as client:
            await client.upload(secret)
    assert "the content" not in log.getvalue()
    assert '"filename": "secret.txt"' in log.getvalue()
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events[:2] == ["begin", "connected"]
    assert "transfer" in events


@quick
async def test_a_refusal_is_told_in_the_words_of_the_other_side(tmp_path: Path) -> None:
    async def upload(client: Client) -> None:
        await upload_of(tmp_path, 3)(client)
        (tmp_path / "film.bin").write_bytes(b"other")
        with pytest.raises(BlockprotoError):
            await client.upload(tmp_path / "film.bin", if_exists="refuse")

    async with serving() as served:
        told = await explained(served, upload)
    assert len(told.errors) == 1
    assert any("refused something" in sentence for sentence in told.sentences())


# ---- logs as they are


def second(t: float, waits: dict[str, float], **more: Any) -> str:
    return json.dumps({"t": t, "event": "second", "connection": 1, "waits": waits, **more})


BEGIN = json.dumps({"t": 0.0, "event": "begin", "format": 1})


def test_the_log_of_a_killed_program_is_read_to_its_end() -> None:
    told = explain([BEGIN, second(1, {"disk": 1.0}, bytes_in=1), second(2, {"disk": 0.9}), '{"t": 3, "ev'])
    assert (told.reason, told.elapsed_s, told.complete) == ("disk", 2.0, False)
    assert "The log ends in the middle" in list(told.sentences())[-1]


def test_a_long_silence_is_nobody_a_short_one_is_what_was_waited_for() -> None:
    quiet = [second(at, {"acknowledgement": 1.0}) for at in range(1, 20)]
    assert explain([BEGIN, *quiet]).reason == "acknowledgement"
    assert explain([BEGIN, *quiet, second(20, {"acknowledgement": 1.0})]).reason == "peer"
    lost = json.dumps({"t": 9.0, "event": "lost", "connection": 1, "why": "reset"})
    assert explain([BEGIN, *quiet[:4], lost]).reason == "acknowledgement"
    assert explain([BEGIN, *quiet[:6], lost]).reason == "peer"
    heard = second(7, {"line": 1.0}, bytes_in=5)
    assert explain([BEGIN, *quiet[:6], heard, lost]).reason == "acknowledgement"


@pytest.mark.parametrize(
    ("begun", "code", "told"),
    [
        ([(1, "LIST"), (2, "OPEN")], Code.UNKNOWN_FILE, False),
        ([(1, "LIST"), (2, "BLOCK")], Code.UNKNOWN_FILE, False),
        ([(1, "LIST"), (2, "OPEN")], Code.FORBIDDEN, True),
        ([(1, "OPEN")], Code.UNKNOWN_FILE, True),
        ([(1, "LIST")], Code.UNKNOWN_FILE, True),
        ([(1, "FETCH")], Code.UNKNOWN_FILE, True),
    ],
)
def test_what_an_upload_asks_itself_is_no_refusal(
    begun: list[tuple[int, str]], code: Code, told: bool
) -> None:
    events: list[dict[str, Any]] = [
        {"t": 1, "event": "transfer", "connection": 1, "stream": stream, "message": message}
        for stream, message in begun
    ]
    events.append({"t": 2, "event": "error", "connection": 1, "stream": 1, "code": int(code), "text": "no"})
    errors = explain([BEGIN, *map(json.dumps, events)]).errors
    assert errors == (["no"] if told else [])


def test_nothing_happened() -> None:
    told = explain([BEGIN, json.dumps({"t": 0.1, "event": "end"})])
    assert (told.reason, told.advice, told.complete) == (None, "", True)
    assert next(iter(told.sentences())).startswith("Nothing was transferred")


@pytest.mark.parametrize(
    "lines", [[], ["hello"], ["{}"], ["[]", "[]"], ['{"t": 0, "event": "begin", "format": 9}'], ["1", BEGIN]]
)
def test_what_is_no_log_is_refused(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"log|Expecting"):
        explain(lines)


# ---- the command


def test_the_command_writes_and_explains(
    server: Server, tmp_path: Path, run: Callable[..., Ran], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "电影.bin").write_bytes(bytes_of(3 * MIB))
    log = tmp_path / "put.log"
    assert main(["put", str(tmp_path / "电影.bin"), server.address + "/", "--log", str(log)]) == Status.DONE
    assert main(["get", server.address + "/电影.bin", str(tmp_path / "c"), "--log", f"{log}2"]) == Status.DONE
    capsys.readouterr()
    assert main(["explain", str(log), "--json"]) == Status.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["payload_sent"], told["files"], told["complete"]) == (3 * MIB, ["电影.bin"], True)
    assert told["errors"] == [], "the client's own question whether the file is there was counted"
    ran = partial(run, "explain")(f"{log}2")
    assert ran.status == Status.DONE
    assert "3.0 MiB in" in ran.out
    assert (
        main(["put", str(log), server.address + "/", "--log", str(tmp_path / "no" / "log")]) == Status.USAGE
    )
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("no log\n")
    assert main(["explain", str(tmp_path / "text")]) == Status.USAGE
    assert "text" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["\x89PNG", "notes", '{"event": "other"}'])
def test_what_is_no_log_is_said_to_be_none(first: str) -> None:
    with pytest.raises(ValueError, match="this is not the log of a transfer"):
        explain([first, "more", "and more"])


def test_a_damaged_line_is_named() -> None:
    with pytest.raises(ValueError, match="line 2 is damaged"):
        explain(['{"t": 0, "event": "begin"}', "\0\0", '{"t": 1, "event": "second"}'])
