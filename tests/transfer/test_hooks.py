"""Hooks of a server: asked before each file gets its name, whatever way it comes, and told of it afterwards."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import (
    MIB,
    Gate,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    bytes_of,
    names_in,
    run,
    serving,
    uploads_in,
)
from struct82_peers import Sender, Sent
from trio.testing import wait_all_tasks_blocked

from blockproto.common.names import SafeName
from blockproto.dialects.registry import dialects_of
from blockproto.errors import Code, HookRefused, Scope
from blockproto.results import UploadJob
from blockproto.transfer import hooks as hooks_module
from blockproto.transfer.hooks import CommitHooks, CommittedFile, FileToCommit
from blockproto.wire import Cancel, Committed, Error, List, ListKind, Opened, Remove, RemoveKind, Result

quick = pytest.mark.trio(run=run)
BOTH = dialects_of(["sourceid", "struct82"])
CONTENT = bytes_of(2 * MIB + 5)
SAMPLE = Sample(CONTENT, "a.bin")
SMALL = Sample(bytes_of(3000), "a.bin")


class Recorder:
    """A hook that remembers its files; and does not agree while it has a reason."""

    def __init__(self, reason: str = "") -> None:
        self.files: list[FileToCommit] = []
        self.reason = reason

    async def __call__(self, file: FileToCommit) -> None:
        await trio.lowlevel.checkpoint()
        self.files.append(file)
        if self.reason:
            raise HookRefused(self.reason)


class Held(Recorder):
    """One that answers when it is told to.

    Attributes:
        asked, go: set while it is being asked; to be set.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.asked, self.go = trio.Event(), trio.Event()
        self.cancelled = 0

    async def __call__(self, file: FileToCommit) -> None:
        self.asked.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        await super().__call__(file)


class Told:
    """An after hook that remembers its files."""

    def __init__(self) -> None:
        self.files: list[CommittedFile] = []

    async def __call__(self, file: CommittedFile) -> None:
        self.files.append(file)
        await trio.lowlevel.checkpoint()


async def wait_s(seconds: float) -> None:
    """Let time go by; the clock jumps."""
    with trio.move_on_after(seconds):
        await trio.Event().wait()


# ---- every way in ----------------------------------------------------------------------------------------------


async def whole(served: Served, sample: Sample = SAMPLE) -> str:
    """Send a file with OPEN and COMMIT, or what is missing of it; the code of its refusal, or nothing."""
    peer = await served.peer()
    await peer.say(1, sample.open())
    message = (await peer.hear()).message
    if isinstance(message, Opened):
        held = {no for first, count in message.held for no in range(first, first + count)}
        for blockno in set(range(sample.blocknum)) - held:
            await peer.say(1, *sample.block(blockno))
        await peer.say(1, sample.commit())
    return await outcome(peer, 1, message)


async def outcome(peer: RawPeer, stream: int, message: object = None) -> str:
    """How a stream ends: the code of an ERROR, or nothing for COMMITTED."""
    while not isinstance(message, Committed | Error):
        heard = await peer.hear()
        message = heard.message if heard.stream == stream else None
    return Code(message.code).name if isinstance(message, Error) else ""


async def briefly(served: Served) -> str:
    peer = await served.peer()
    await peer.say(1, *SMALL.block(0, commit=True))
    return await outcome(peer, 1)


async def folder(served: Served) -> str:
    peer = await served.peer()
    sample = Sample(b"", "a.bin", "inode/directory")
    await peer.say(1, *sample.block(0, commit=True))
    return await outcome(peer, 1)


async def in_a_line(served: Served) -> str:
    """Bring it in the dialect sourceid, then ask again: what happens after the bytes is heard only then."""
    answers = []
    for _ in range(2):
        stream = served.connect()
        await stream.send_all(b"Content-Length=%d;filename=a.bin;sourceid=7\r\n" % len(CONTENT))
        answers.append(bytes(await stream.receive_some()))
        with suppress(trio.BrokenResourceError):
            await stream.send_all(CONTENT if b"position=0" in answers[-1] else b"")
        assert isinstance(stream, trio.StapledStream)
        await stream.send_eof()
        while await stream.receive_some():
            pass
    return answers[1].partition(b"name=")[2].partition(b";")[0].decode()


async def in_blocks(served: Served) -> str:
    sender, file = Sender(served.connect()), Sent(CONTENT, name=b"a.bin")  # type: ignore[arg-type]
    assert (await sender.ask(file)).reply.code == 0
    replies = [await sender.put(file, number) for number in file.numbers]
    assert [reply.code for reply in replies[:-1]] == [0, 0]
    return Code(replies[-1].code).name if replies[-1].code else ""


async def by_root(served: Served) -> str:
    """Say the root of a file that is there, in OPEN."""
    peer = await served.peer()
    await peer.say(1, replace(SAMPLE, sourceid=b"another sourceid").open(root=SAMPLE.root))
    return await outcome(peer, 1)


async def once_more(served: Served) -> str:
    """Send the bytes of a file that is there under another sourceid."""
    return await whole(served, replace(SAMPLE, sourceid=b"another sourceid"))


Send = Callable[[Served], Awaitable[str]]
NEW: list[Send] = [whole, briefly, folder, in_a_line, in_blocks]
THERE: list[Send] = [by_root, once_more]


async def prepare(served: Served, send: Send, hook: Recorder) -> list[str]:
    """Let the file be there where that is what ``send`` is about; returns what has a name then."""
    reason, hook.reason = hook.reason, ""
    if send in THERE:
        assert await whole(served) == ""
    hook.files.clear()
    hook.reason = reason
    return names_in(served.store)


@quick
@pytest.mark.clause("BP1-COM-029")
@pytest.mark.parametrize("send", [*NEW, *THERE])
async def test_every_way_in_is_refused(send: Send) -> None:
    hook, told = Recorder("not today"), Told()
    async with serving(dialects=BOTH, hooks=CommitHooks(before=[hook], after=[told])) as served:
        before = await prepare(served, send, hook)
        await wait_all_tasks_blocked()
        told.files.clear()
        assert await send(served) == "HOOK_REFUSED"
        assert {file.filename for file in hook.files} == {"a.bin"}
        assert names_in(served.store) == before
        hook.reason = ""
        assert await send(served) == "", "the hook agrees now"
        assert names_in(served.store) == ["a.bin"]
        await wait_all_tasks_blocked()
        assert [file.filename for file in told.files] == ["a.bin"]


@quick
@pytest.mark.clause("BP1-COM-029")
@pytest.mark.parametrize("send", [*NEW, *THERE])
async def test_hooks_hear_of_a_file_once_before_and_once_after(send: Send) -> None:
    hook, told = Recorder(), Told()
    async with serving(dialects=BOTH, hooks=CommitHooks(before=[hook], after=[told])) as served:
        await prepare(served, send, hook)
        await wait_all_tasks_blocked()
        told.files.clear()
        for _ in range(3):  # a receipt is answered without asking again
            assert await send(served) == ""
        await wait_all_tasks_blocked()
        (asked,), (heard,) = hook.files, told.files
        entry = served.store.stat(SafeName.parse("a.bin"))
        for file in (asked, heard):
            assert (file.filename, file.filesize, file.root) == ("a.bin", entry.filesize, entry.root)
            assert (file.file_id, file.principal) == (asked.file_id, bytes(16))
        assert heard.there is (send in THERE)
        if send not in THERE:
            assert asked.file_id == entry.file_id


@quick
@pytest.mark.clause("BP1-COM-015", "BP1-COM-029")
async def test_what_was_refused_need_not_be_sent_again() -> None:
    hook = Recorder("not today")
    async with serving(WatchedStore(), hooks=CommitHooks(before=[hook])) as served:
        assert await whole(served) == "HOOK_REFUSED"
        (kept,) = uploads_in(served.store)
        assert (kept.held_count, kept.filename.text) == (3, "a.bin")
        hook.reason = ""
        assert await whole(served) == ""
        assert isinstance(served.store, WatchedStore)
        assert sorted(served.store.durable) == [("a.bin", blockno) for blockno in range(3)]


@quick
@pytest.mark.clause("BP1-COM-029")
async def test_a_brief_file_that_is_refused_leaves_nothing() -> None:
    async with serving(hooks=CommitHooks(before=[Recorder("no")])) as served:
        assert await briefly(served) == "HOOK_REFUSED"
        assert (names_in(served.store), uploads_in(served.store)) == ([], [])


@quick
async def test_what_is_left_is_no_matter_of_hooks() -> None:
    hook = Recorder()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        assert await whole(served) == ""
        peer = await served.peer()
        other = Sample(bytes_of(9, 2), "a.bin", sourceid=b"another sourceid")
        await peer.say(1, *other.block(0, commit=True, if_exists=3))
        assert (await peer.expect(Committed, 1)).left
        assert len(hook.files) == 1


# ---- hooks that fail, are late, or several --------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-COM-029")
async def test_a_hook_that_fails_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: FileToCommit) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("a secret of the server")

    async with serving(hooks=CommitHooks(before=[broken])) as served:
        peer = await served.peer()
        await peer.say(1, *SMALL.block(0, commit=True))
        error = await peer.expect_error(Code.HOOK_REFUSED, Scope.STREAM, 1)
        assert error.retryable
        assert "secret" not in error.text
        assert names_in(served.store) == []
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert "broken" in record.getMessage()


@quick
@pytest.mark.clause("BP1-COM-029")
@pytest.mark.parametrize("minds", [True, False])
async def test_a_hook_that_is_late_refuses(minds: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that goes on after it was cancelled, and then agrees."""
    ended: list[float] = []

    async def slow(_: FileToCommit) -> None:
        begun = trio.current_time()
        with trio.CancelScope(shield=not minds):
            await wait_s(7)
        ended.append(trio.current_time() - begun)

    async with serving(hooks=CommitHooks(before=[slow], deadline_s=5)) as served:
        peer = await served.peer()
        begun = trio.current_time()
        await peer.say(1, *SMALL.block(0, commit=True))
        error = await peer.expect_error(Code.HOOK_REFUSED, Scope.STREAM, 1)
        assert error.retryable
        assert "5 s" in error.text
        assert trio.current_time() - begun == pytest.approx(5 if minds else 7)
        assert names_in(served.store) == []
        assert len(ended) == (not minds)
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["ERROR"]


@quick
async def test_the_deadline_is_that_of_all_hooks_together() -> None:
    async def slow(_: FileToCommit) -> None:
        await wait_s(2)

    for number, code in ((2, ""), (3, "HOOK_REFUSED")):
        async with serving(hooks=CommitHooks(before=[slow] * number, deadline_s=5)) as served:
            assert await briefly(served) == code


@quick
@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
async def test_a_deadline_is_positive(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        CommitHooks(deadline_s=deadline_s)


@quick
async def test_the_first_refusal_decides() -> None:
    hooks = [Recorder(), Recorder("the second says no"), Recorder("the third says no")]
    async with serving(hooks=CommitHooks(before=hooks)) as served:
        peer = await served.peer()
        await peer.say(1, *SMALL.block(0, commit=True))
        error = await peer.expect_error(Code.HOOK_REFUSED, Scope.STREAM, 1)
        assert (error.text, error.retryable) == ("the second says no", False)
        assert [len(hook.files) for hook in hooks] == [1, 1, 0]


@quick
async def test_a_hook_says_itself_whether_and_when_to_try_again() -> None:
    async def busy(_: FileToCommit) -> None:
        raise HookRefused("ask again", retryable=True, retry_after_ms=700)

    async with serving(hooks=CommitHooks(before=[busy])) as served:
        peer = await served.peer()
        await peer.say(1, *SMALL.block(0, commit=True))
        error = await peer.expect_error(Code.HOOK_REFUSED, Scope.STREAM, 1)
        assert (error.retryable, error.retry_after_ms) == (True, 700)


# ---- meanwhile -------------------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-COM-029")
async def test_other_uploads_do_not_wait_for_a_hook() -> None:
    held = Held()

    async def only_one(file: FileToCommit) -> None:
        if file.filename == "a.bin":
            await held(file)

    async with serving(hooks=CommitHooks(before=[only_one])) as served:
        peer = await served.peer()
        await peer.say(1, *SMALL.block(0, commit=True))
        await held.asked.wait()
        other = Sample(bytes_of(9), "b.bin", sourceid=b"another sourceid")
        await peer.say(3, *other.block(0, commit=True))
        await peer.expect(Committed, 3)
        assert names_in(served.store) == ["b.bin"]
        held.go.set()
        await peer.expect(Committed, 1)


@quick
@pytest.mark.clause("BP1-COM-029")
@pytest.mark.parametrize("code", ["", "HOOK_REFUSED"])
@pytest.mark.parametrize("brief", [True, False])
async def test_the_same_upload_twice_is_one_question(brief: bool, code: str) -> None:
    """Two streams say COMMIT, or send the brief file: both hear the same."""
    hook = Held("no" if code else "")
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        sample = SMALL if brief else SAMPLE
        peers = [await served.peer() for _ in range(2)]
        for peer in peers:
            if brief:
                await peer.say(1, *sample.block(0, commit=True))
                continue
            await peer.say(1, sample.open())
            await peer.expect(Opened, 1)
        for blockno in range(0 if brief else sample.blocknum):
            await peers[0].say(1, *sample.block(blockno))
        for peer in peers if not brief else ():
            await peer.say(1, sample.commit())
        await hook.asked.wait()
        await wait_all_tasks_blocked()
        hook.go.set()
        assert [await outcome(peer, 1) for peer in peers] == [code, code]
        assert len(hook.files) == 1
        assert names_in(served.store) == ([] if code else ["a.bin"])


async def committing(served: Served, hook: Held, *, brief: bool) -> RawPeer:
    """A peer that has sent all of a file, and the hook is being asked."""
    peer = await served.peer()
    if brief:
        await peer.say(1, *SMALL.block(0, commit=True))
    else:
        await peer.say(1, SAMPLE.open())
        await peer.expect(Opened, 1)
        for blockno in range(SAMPLE.blocknum):
            await peer.say(1, *SAMPLE.block(blockno))
        await peer.say(1, SAMPLE.commit())
        await peer.wait_acked(*range(SAMPLE.blocknum))
    await hook.asked.wait()
    return peer


@quick
@pytest.mark.clause("BP1-COM-018", "BP1-COM-030")
@pytest.mark.parametrize("brief", [True, False])
@pytest.mark.parametrize("discard", [True, False])
async def test_cancel_is_in_time_while_a_hook_is_asked(discard: bool, brief: bool) -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        peer = await committing(served, hook, brief=brief)
        await peer.say(1, Cancel(Code.CANCELLED, discard=discard))
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert hook.cancelled == 1
        hook.go.set()
        await wait_all_tasks_blocked()
        assert names_in(served.store) == []
        assert [one.held_count for one in uploads_in(served.store)] == ([] if discard or brief else [3])
        assert await (briefly(served) if brief else whole(served)) == "", "it can be committed later"


@quick
@pytest.mark.clause("BP1-COM-030")
async def test_a_hook_is_not_asked_on_while_an_upload_is_being_removed() -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        peer = await committing(served, hook, brief=False)
        gate = Gate(served.server)
        await peer.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        assert hook.cancelled == 1
        gate.open()
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)


@quick
@pytest.mark.clause("BP1-COM-030")
async def test_cancel_of_one_stream_leaves_the_commit_of_the_other() -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        peer = await committing(served, hook, brief=False)
        other = await served.peer()
        await other.say(1, SAMPLE.open())
        await other.expect(Opened, 1)
        await other.say(1, SAMPLE.commit())
        await wait_all_tasks_blocked()
        await peer.say(1, Cancel(Code.CANCELLED))
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        hook.go.set()
        await other.expect(Committed, 1)
        assert len(hook.files) == 1


@quick
@pytest.mark.clause("BP1-COM-030")
async def test_removing_the_upload_ends_the_question() -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        peer = await committing(served, hook, brief=False)
        other = await served.peer()
        await other.say(1, Remove(kind=RemoveKind.UPLOAD, id=SAMPLE.sourceid))
        await other.expect(Result, 1)
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        hook.go.set()
        await wait_all_tasks_blocked()
        assert (names_in(served.store), uploads_in(served.store)) == ([], [])


@quick
@pytest.mark.clause("BP1-COM-030")
@pytest.mark.parametrize("brief", [True, False])
async def test_a_connection_that_ends_stops_no_commit(brief: bool) -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook])) as served:
        peer = await committing(served, hook, brief=brief)
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        hook.go.set()
        await wait_all_tasks_blocked()
        assert names_in(served.store) == ["a.bin"]
        assert await (briefly(served) if brief else whole(served)) == ""
        assert len(hook.files) == 1


@quick
async def test_a_server_that_stops_waits_for_its_hooks() -> None:
    hook = Held()
    async with serving(hooks=CommitHooks(before=[hook], deadline_s=50)) as served:
        peer = await committing(served, hook, brief=True)
        served.server.stop()
        await peer.rest()  # by then the connection is closed
        hook.go.set()
    assert names_in(served.store) == ["a.bin"]


# ---- afterwards ------------------------------------------------------------------------------------------------


@quick
async def test_an_after_hook_that_fails_or_hangs_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()

    async def broken(_: CommittedFile) -> None:
        raise ValueError("broken")

    async def hangs(_: CommittedFile) -> None:
        await trio.Event().wait()

    hooks = CommitHooks(after=[broken, hangs, told], deadline_s=5)
    async with serving(hooks=hooks) as served:
        begun = trio.current_time()
        assert await whole(served) == ""
        peer = await served.peer()
        await peer.say(1, List(ListKind.FILES))
        await peer.expect(Result, 1)
        assert trio.current_time() == begun, "nobody has waited"
        await wait_s(6)
        assert [file.filename for file in told.files] == ["a.bin"]
    failed, hung = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert failed.exc_info is not None
    assert "hangs" in hung.getMessage()


@quick
async def test_an_after_hook_is_told_when_the_file_is_there() -> None:
    found: list[list[str]] = []

    async def look(file: CommittedFile) -> None:
        found.append(names_in(served.store))

    async with serving(hooks=CommitHooks(after=[look])) as served:
        assert await whole(served) == ""
        await wait_all_tasks_blocked()
    assert found == [["a.bin"]]


@quick
async def test_more_than_can_wait_are_said_not_to_be_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks_module, "AFTER_QUEUED_MAX", 2)
    monkeypatch.setattr(hooks_module, "AFTER_AT_ONCE", 1)

    async def hangs(_: CommittedFile) -> None:
        await trio.Event().wait()

    async with serving(hooks=CommitHooks(after=[hangs], deadline_s=1e6)) as served:
        peer = await served.peer()
        for number in range(4):
            sample = Sample(b"1", f"{number}.bin", sourceid=b"%016d" % number)
            await peer.say(1 + 2 * number, *sample.block(0, commit=True))
            await peer.expect(Committed, 1 + 2 * number)
            await wait_all_tasks_blocked()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "3.bin" in record.getMessage()


# ---- clients ---------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


@quick
@pytest.mark.clause("BP1-COM-031")
async def test_a_client_says_why_and_leaves_the_upload(path: Path) -> None:
    hook = Recorder("not on a Sunday")
    async with serving(hooks=CommitHooks(before=[hook])) as served, served.client() as client:
        with pytest.raises(HookRefused, match="not on a Sunday") as refused:
            await client.upload(path)
        assert not refused.value.retryable
        assert len(hook.files) == 1
        assert [one.held_count for one in uploads_in(served.store)] == [3]
        hook.reason = ""
        assert (await client.upload(path)).payload_bytes_sent == 0


@quick
@pytest.mark.clause("BP1-COM-031")
async def test_a_client_tries_again_when_a_hook_failed_and_gives_up_in_the_end(path: Path) -> None:
    failures = 0

    async def broken(_: FileToCommit) -> None:
        nonlocal failures
        await trio.lowlevel.checkpoint()
        if failures:
            failures -= 1
            raise ValueError("broken")

    async with serving(hooks=CommitHooks(before=[broken])) as served, served.client(tries=3) as client:
        failures = 2
        assert (await client.upload(path)).stored_as == "a.bin"
        failures = 1000
        with pytest.raises(HookRefused):
            await client.upload(path, name="b.bin")
        assert 1000 - failures == 3


@quick
async def test_of_many_files_only_those_that_are_refused_fail(tmp_path: Path) -> None:
    async def not_b(file: FileToCommit) -> None:
        if file.filename == "b":
            raise HookRefused("no b")

    jobs = []
    for name in "abc":
        (tmp_path / name).write_bytes(bytes_of(100))
        jobs.append(UploadJob(tmp_path / name, name))
    async with serving(hooks=CommitHooks(before=[not_b])) as served, served.client() as client:
        failed = {
            job.name: outcome
            async for job, outcome in client.upload_all(jobs)
            if isinstance(outcome, Exception)
        }
        assert [(name, str(error)) for name, error in failed.items()] == [("b", "no b")]
        assert names_in(served.store) == ["a", "c"]
