"""Frames of many small files: what is answered and when, credit and memory, quota, fairness, and ends in the middle."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from peers import Gate, RawPeer, Sample, Served, bytes_of, content_of, names_in, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import digest_of
from blockproto.common.file_table import FileTable
from blockproto.common.names import SafeName, are_plain, join_plain, leaves_room
from blockproto.connection.dispatch import BACKLOGS_AT_ONCE
from blockproto.connection.ending import DISCARD_S
from blockproto.errors import Code, HookRefused, NameRefused, Scope, StoreFailed
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING, Realm
from blockproto.store import Work
from blockproto.transfer import frame_memory
from blockproto.transfer.file_frame import WholeFile, judge_frame
from blockproto.transfer.hooks import CommitHooks, FileToCommit
from blockproto.wire import (
    FEATURE_FILES,
    FRAMES_MAX,
    Auth,
    Cancel,
    Credit,
    Files,
    Hello,
    Opened,
    Ping,
    RefusalItem,
    Result,
    Scopes,
    Status,
    Stored,
    StoredItem,
    encode_frame,
)

quick = pytest.mark.trio(run=run)
HELLO = Hello(features=FEATURE_FILES, agent="raw")
KIB = 1 << 10


def files_of(samples: Sequence[Sample], number: int = 1, **changes: Any) -> tuple[Files, bytes]:
    """FILES with these samples, and its payload."""
    parts = [sample.filename.rpartition("/") for sample in samples]
    folders = tuple(dict.fromkeys(folder for folder, _, _ in parts))
    records = tuple(
        (
            sample.sourceid, digest_of(sample.content), len(sample.content), 10**18, 0o644, folders.index(folder), 0,
            len(name.encode("utf-8", "surrogateescape")),
        )
        for sample, (folder, _, name) in zip(samples, parts, strict=True)
    )  # fmt: skip
    table = FileTable(records, tuple(name for _, _, name in parts))
    message = Files(number, folders, ("text/plain",), table, **changes)
    return message, b"".join(sample.content for sample in samples)


def samples_of(count: int, length: int = 10, folder: str = "", first: int = 0) -> list[Sample]:
    """Different small files."""
    return [
        Sample(
            bytes_of(length, at), f"{folder}/{at}" if folder else f"{at}", sourceid=at.to_bytes(16, "little")
        )
        for at in range(first + 1, first + count + 1)
    ]


async def alive(peer: RawPeer) -> None:
    await peer.say(0, Ping(b"alive???", 0))
    assert (await peer.expect(Ping)).opaque == b"alive???"


# ---- when it is answered


@pytest.mark.clause("BP1-FIL-007")
@quick
async def test_a_frame_is_answered_when_it_is_durable_and_its_files_have_their_names() -> None:
    samples = samples_of(3)
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer(HELLO)
        await peer.say(1, *files_of(samples, last=True))
        await gate.waits.wait()
        await alive(peer)  # and nothing was answered before it
        assert names_in(served.store) == []
        gate.open()
        stored = await peer.expect(Stored, 1)
        assert (stored.statuses, stored.last) == (bytes(3), True)
        assert [content_of(served.store, one.filename) for one in samples] == [one.content for one in samples]


@quick
async def test_what_comes_while_a_batch_is_under_way_is_stored_in_one() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        batches: list[Sequence[Work]] = []
        served.store.before_commit = batches.append  # type: ignore[attr-defined]
        peer = await served.peer(HELLO)
        for number in range(5):
            await peer.say(1, *files_of(samples_of(2, folder="f", first=2 * number), number))
            await wait_all_tasks_blocked()
        gate.open()
        for _ in range(5):
            await peer.expect(Stored, 1)
        assert len(batches) == 2


@quick
async def test_an_outcome_that_is_not_as_asked_is_said() -> None:
    async with serving() as served:
        peer = await served.peer(HELLO)
        first, second = samples_of(2)
        await peer.say(1, *files_of([first]))
        await peer.expect(Stored, 1)
        other = replace(second, filename=first.filename)
        bad = replace(second, filename="../x", sourceid=b"b" * 16)
        await peer.say(1, *files_of([other, bad], 2))
        stored = await peer.expect(Stored, 1)
        assert list(stored.statuses) == [Status.RENAMED, Status.REFUSED]
        renamed, refused = stored.outcomes
        assert isinstance(renamed, StoredItem)
        assert (renamed.stored_as, renamed.root) == ("1 (1)", other.root)
        assert isinstance(refused, RefusalItem)
        assert refused.code == Code.NAME_REFUSED
        assert "rule dot-component" in refused.text


@quick
async def test_a_store_that_fails_ends_the_connection() -> None:
    async with serving(fails=StoreFailed) as served:

        def fail(_: object) -> None:
            raise StoreFailed("the medium reported an error")

        served.store.before_commit = fail  # type: ignore[attr-defined]
        peer = await served.peer(HELLO)
        await peer.say(1, *files_of(samples_of(1)))
        await peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION)


# ---- memory and credit


@pytest.mark.clause("BP1-FIL-011")
@quick
async def test_what_is_held_in_memory_is_bounded_and_keeps_its_credit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream holds what there is room for, the rest waits with its credit; nothing waits for a later frame."""
    monkeypatch.setattr(frame_memory, "HELD_EACH", 100 * KIB)
    async with serving() as served:
        gate, memory = Gate(served.server), served.server.engine.frame_memory
        peer = await served.peer(HELLO)
        frames = [files_of(samples_of(1, 60 * KIB, first=number), number) for number in range(8)]
        for message, payload in frames:
            await peer.say(1, message, payload)
        await gate.waits.wait()
        await alive(peer)
        assert memory.held == 120 * KIB
        taken = max((credit.received for at, credit in peer.credits if at == 0), default=0)
        granted = max((credit.allowance for at, credit in peer.credits if at == 0), default=0)
        assert granted - (16 << 20) <= 180 * KIB, f"{taken} bytes came, {granted} were granted"
        gate.open()
        assert {(await peer.expect(Stored, 1)).number for _ in frames} == set(range(8))
        assert memory.held == 0
        await peer.wait_credited(8 * 60 * KIB)


@pytest.mark.clause("BP1-LIM-003")
@quick
@pytest.mark.parametrize("streams", [1, 40])
async def test_one_peer_holds_no_more_than_its_share_on_however_many_streams(
    monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """All of its frames but the first are granted together; here those that have come, and one that is coming."""
    monkeypatch.setattr(frame_memory, "WAITING_EACH", 64)
    monkeypatch.setattr(frame_memory, "HELD_EACH", 100 * KIB)
    async with serving() as served:
        gate, memory = Gate(served.server), served.server.engine.frame_memory
        peers = [await served.peer(HELLO) for _ in range(2)]
        for number in range(40):
            stream = 1 + 2 * (number % streams)
            await peers[number % 2].say(stream, *files_of(samples_of(1, 20 * KIB, first=number), number))
        await gate.waits.wait()
        await wait_all_tasks_blocked()
        assert memory.held == 100 * KIB
        gate.open()
        for peer in peers:
            for _ in range(20):
                await peer.expect(Stored)
        assert memory.held == 0


@pytest.mark.clause("BP1-STR-018")
@quick
async def test_streams_that_wait_for_room_hold_up_no_other_of_their_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tasks for backlogs could wait here; what needs such a task is done all the same."""
    monkeypatch.setattr(frame_memory, "WAITING_EACH", 64)
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1)
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer(HELLO)
        for number in range(FRAMES_MAX):
            stream = 1 + 2 * (number % BACKLOGS_AT_ONCE)
            await peer.say(stream, *files_of(samples_of(1, first=number), number))
        await gate.waits.wait()
        await alive(peer)
        await peer.say(101, Sample(bytes_of(2 << 20)).open())
        await peer.expect(Opened, 101)
        gate.open()
        for _ in range(FRAMES_MAX):
            await peer.expect(Stored)
        assert served.server.engine.frame_memory.held == 0


@quick
async def test_frames_that_are_coming_come_though_others_wait_for_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a quota every frame passes a backlog: also the one for whose memory the others wait."""
    monkeypatch.setattr(frame_memory, "WAITING_EACH", 64)
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1)
    register, token = Register({}).with_token(
        "alice", folder="alice", quota=1 << 20, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peer, other = await come_in(served, token), await come_in(served, token)
        first = b"".join(_raw(*files_of(samples_of(1, 500, first=100), 1), 3))
        await peer.send_bytes(first[:-100])
        await wait_all_tasks_blocked()
        for number in range(40):
            await other.say(2 * number + 3, *files_of(samples_of(1, first=number), number))
        await wait_all_tasks_blocked()
        await peer.send_bytes(first[-100:])
        await peer.expect(Stored, 3)
        for _ in range(40):
            await other.expect(Stored)


@quick
async def test_who_goes_while_it_waits_for_room_leaves_it_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1)
    async with serving() as served:
        gate, memory = Gate(served.server), served.server.engine.frame_memory
        peers = [await served.peer(HELLO) for _ in range(3)]
        for number, peer in enumerate(peers):
            await peer.say(1, *files_of(samples_of(1, first=number), number))
            await wait_all_tasks_blocked()
        await peers[1].stream.aclose()
        await trio.sleep_until(trio.current_time() + DISCARD_S + 1)
        gate.open()
        for peer in (peers[0], peers[2]):
            await peer.expect(Stored, 1)
        assert names_in(served.store) == ["1", "3"]
        assert memory.held == 0


@quick
async def test_streams_that_have_no_place_to_wait_are_refused_for_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1)
    monkeypatch.setattr(frame_memory, "WAITING_EACH", 2)
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer(HELLO)
        for number in range(4):
            await peer.say(2 * number + 1, *files_of(samples_of(1, 100 * KIB, first=number), number))
        error = await peer.expect_error(Code.BUSY, Scope.STREAM, 7)
        assert (error.retryable, error.retry_after_ms) == (True, 1000)
        assert max(credit.received for at, credit in peer.credits if at == 0) > 0
        gate.open()
        assert {(await peer.expect(Stored)).number for _ in range(3)} == {0, 1, 2}
        await peer.say(9, *files_of(samples_of(1, first=3), 3))
        await peer.expect(Stored, 9)
        assert names_in(served.store) == ["1", "2", "3", "4"]


@quick
async def test_a_principal_that_fills_its_memory_keeps_no_other_from_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1000)
    register, tokens = Register({}), []
    for name in ("alice", "bob"):
        register, token = register.with_token(
            name, folder=name, quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
        )
        tokens.append(token)
    async with serving(policy=AuthPolicy(register, None)) as served:
        greedy = [await come_in(served, tokens[0]) for _ in range(5)]
        for peer in greedy:
            frame = b"".join(_raw(*files_of(samples_of(1, 1000)), 3))
            await peer.send_bytes(frame[:-1])
        await wait_all_tasks_blocked()
        assert served.server.engine.frame_memory.held == 1000
        honest = await come_in(served, tokens[1])
        await honest.say(3, *files_of(samples_of(1, 900)))
        await honest.expect(Stored, 3)


@quick
async def test_what_the_store_has_written_is_not_held_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the memory goes on, though nothing is answered yet."""
    monkeypatch.setattr(frame_memory, "HELD_EACH", 1)
    async with serving() as served:
        memory = served.server.engine.frame_memory
        gate = Gate(served.server)
        written: list[Callable[[], None]] = []
        monkeypatch.setattr(served.store, "prepare", lambda files, tell: written.append(tell))
        peer = await served.peer(HELLO)
        samples = samples_of(2, KIB)
        for number, sample in enumerate(samples, 1):
            await peer.say(1, *files_of([sample], number, last=number == 2))
            await wait_all_tasks_blocked()
        assert (len(written), memory.held) == (1, KIB)
        written[0]()
        await wait_all_tasks_blocked()
        assert (len(written), memory.held) == (2, KIB)
        written[1]()
        await wait_all_tasks_blocked()
        assert memory.held == 0
        gate.open()
        assert [(await peer.expect(Stored, 1)).number for _ in samples] == [1, 2]
        assert [content_of(served.store, one.filename) for one in samples] == [one.content for one in samples]
        assert memory.held == 0


@quick
async def test_a_stream_that_ends_in_the_middle_of_a_frame_leaves_nothing() -> None:
    async with serving() as served:
        peer = await served.peer(HELLO)
        message, payload = files_of(samples_of(2, 500))
        frame = b"".join([*_raw(message, payload)])
        await peer.send_bytes(frame[:-10])
        await wait_all_tasks_blocked()
        assert served.server.engine.frame_memory.held == 1000
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert served.server.engine.frame_memory.held == 0
        assert names_in(served.store) == []


@quick
async def test_memory_is_taken_for_what_has_come_not_for_what_was_said() -> None:
    frame = b"".join(_raw(*files_of(samples_of(2, 500 * KIB))))
    async with serving() as served:
        peer = await served.peer(HELLO)
        tracemalloc.start()
        try:
            await peer.send_bytes(frame[:5000])
            await wait_all_tasks_blocked()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert taken < 100 * KIB
        await peer.send_bytes(frame[5000:])
        assert (await peer.expect(Stored, 1)).statuses == bytes(2)


@quick
async def test_a_frame_that_has_come_is_stored_though_its_sender_has_gone() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer(HELLO)
        for number in range(3):
            await peer.say(1, *files_of(samples_of(1, first=number), number))
        await gate.waits.wait()
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        gate.open()
        await served.server.engine.committer.drain()
        assert names_in(served.store) == ["1", "2", "3"]
        assert served.server.engine.frame_memory.held == 0


@quick
async def test_cancel_is_answered_behind_the_frames_before_it() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer(HELLO)
        await peer.say(1, *files_of(samples_of(1), 1))
        await peer.say(1, *files_of(samples_of(1, first=1), 2))
        await peer.say(1, Cancel(Code.CANCELLED))
        await gate.waits.wait()
        await alive(peer)
        gate.open()
        assert [(await peer.expect(Stored, 1)).number for _ in range(2)] == [1, 2]
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)


# ---- principals


async def come_in(served: Served, token: str) -> RawPeer:
    peer = await served.peer(HELLO)
    await peer.say(1, Auth(token))
    await peer.expect(Result, 1)
    return peer


@pytest.mark.clause("BP1-PRN-005")
@quick
async def test_the_files_that_do_not_fit_the_quota_are_refused_alone() -> None:
    register, token = Register({}).with_token(
        "alice", folder="alice", quota=1000, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peer = await come_in(served, token)
        samples = samples_of(5, 300)
        await peer.say(3, *files_of(samples))
        stored = await peer.expect(Stored, 3)
        assert list(stored.statuses) == [0, 0, 0, Status.REFUSED, Status.REFUSED]
        assert {item.code for item in stored.outcomes if isinstance(item, RefusalItem)} == {Code.QUOTA}
        assert names_in(served.store) == ["alice", "alice/1", "alice/2", "alice/3"]
        await peer.say(3, *files_of(samples[:3], 2))  # what is there needs no room
        assert (await peer.expect(Stored, 3)).statuses == bytes(3)
        await peer.say(3, *files_of(samples_of(1, 100, first=9), 3))
        assert (await peer.expect(Stored, 3)).statuses == bytes(1)


@pytest.mark.clause("BP1-PRN-004")
@quick
async def test_who_may_not_write_sends_no_files() -> None:
    register, token = Register({}).with_token(
        "alice", folder="alice", quota=None, scopes=Scopes.READ, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peer = await come_in(served, token)
        await peer.say(3, *files_of(samples_of(1)))
        await peer.expect_error(Code.FORBIDDEN, Scope.STREAM, 3)
        await alive(peer)


@pytest.mark.clause("BP1-FIL-015")
@quick
async def test_frames_of_several_principals_are_stored_in_turn() -> None:
    """One has sent five frames, another two behind them: they are done long before the fifth."""
    register = Register({})
    tokens = []
    for name in ("alice", "bob"):
        register, token = register.with_token(
            name, folder=name, quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
        )
        tokens.append(token)
    async with serving(policy=AuthPolicy(register, None)) as served:
        gate = Gate(served.server)
        alice, bob = [await come_in(served, token) for token in tokens]
        for number in range(5):
            await alice.say(3, *files_of(samples_of(200, 0, first=200 * number), number))
            await wait_all_tasks_blocked()
        for number in range(2):
            await bob.say(3, *files_of(samples_of(200, 0, first=200 * number), number))
        await wait_all_tasks_blocked()
        order: list[str] = []

        async def listen(name: str, peer: RawPeer, count: int) -> None:
            for _ in range(count):
                await peer.expect(Stored, 3)
                order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, "alice", alice, 5)
            nursery.start_soon(listen, "bob", bob, 2)
            gate.open()
        assert order.index("bob") <= 3
        assert order[-1] == "alice"


@pytest.mark.clause("BP1-COM-029")
@quick
async def test_hooks_are_asked_for_each_file_of_a_frame() -> None:
    async def judge(file: FileToCommit) -> None:
        if file.filename == "2":
            raise HookRefused("not this one")

    async with serving(hooks=CommitHooks(before=[judge])) as served:
        peer = await served.peer(HELLO)
        await peer.say(1, *files_of(samples_of(3)))
        stored = await peer.expect(Stored, 1)
        assert list(stored.statuses) == [0, Status.REFUSED, 0]
        (item,) = stored.outcomes
        assert isinstance(item, RefusalItem)
        assert (item.code, item.text) == (Code.HOOK_REFUSED, "not this one")
        assert names_in(served.store) == ["1", "3"]


@pytest.mark.clause("BP1-COM-030")
@quick
async def test_cancel_takes_back_what_waits_for_hooks() -> None:
    asked = trio.Event()

    async def think(file: FileToCommit) -> None:
        if file.filename == "2":
            asked.set()
            await trio.sleep_forever()

    async with serving(hooks=CommitHooks(before=[think])) as served:
        peer = await served.peer(HELLO)
        await peer.say(1, *files_of(samples_of(3)))
        await asked.wait()
        await wait_all_tasks_blocked()
        await peer.say(1, Cancel(Code.CANCELLED))
        stored = await peer.expect(Stored, 1)
        assert list(stored.statuses) == [0, Status.REFUSED, 0]
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert names_in(served.store) == ["1", "3"]


# ---- names


def judged(names: Sequence[str], realm: Realm | None = None) -> list[str]:
    """The names as the store gets them, or the rule that is broken."""
    samples = [replace(one, filename=name) for one, name in zip(samples_of(len(names)), names, strict=True)]
    message, payload = files_of(samples)
    found = judge_frame(message, memoryview(payload), realm or Realm())
    return [one.facts.filename.text if isinstance(one, WholeFile) else one.rule for one in found]  # type: ignore[union-attr]


NAMES = [
    "a", "a/b", "a/b c.txt", "a/.b", "語/a", "a/語", "a/..", "../a", "a/", "a/" + "x" * 255, "a/" + "x" * 256, "a\n/b",
    "/".join(["y" * 200] * 5) + "/z", "/".join(["y" * 200] * 5) + "/" + "z" * 30, ".blockproto/a", "a/.blockproto", "a//b",
]  # fmt: skip


@pytest.mark.parametrize("together", [NAMES, *[[name, "plain"] for name in NAMES]])
def test_names_are_judged_as_each_would_be_alone(together: list[str]) -> None:
    def alone(name: str) -> str:
        try:
            return SafeName.parse(name).text
        except NameRefused as error:
            return error.rule

    assert judged(together) == [alone(name) for name in together]


def test_names_of_a_realm_lie_in_its_folder() -> None:
    realm = Realm(folder=SafeName.parse("home/alice"))
    assert judged(["a", "b/c", "b/.d"], realm) == ["home/alice/a", "home/alice/b/c", "home/alice/b/.d"]


def test_plain_components() -> None:
    assert are_plain(["a", "b c", "x" * 255])
    for one in ("", ".a", "a/b", "x" * 256, "語", "a\n", ".."):
        assert not are_plain(["a", one])
    assert leaves_room("y" * 768 + "/")
    assert not leaves_room("y" * 769 + "/")
    assert join_plain("a/", "b") == SafeName.parse("a/b")


def _raw(message: Files, payload: bytes, stream: int = 1) -> tuple[bytes, bytes]:
    return encode_frame(stream, message, len(payload)), payload


@quick
async def test_credit_for_files_counts_as_that_of_blocks() -> None:
    async with serving() as served:
        peer = await served.peer(HELLO)
        for number in range(4):
            await peer.say(1, *files_of(samples_of(1, 64 * KIB, first=number), number))
            await peer.expect(Stored, 1)
        await peer.wait_credited(4 * 64 * KIB)
        assert all(isinstance(credit, Credit) for _, credit in peer.credits)
