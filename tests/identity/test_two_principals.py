"""Two principals in every combination: bob asks for what is alice's and what is nobody's, and cannot tell which is which.

Each row is a question that can be asked about a file of alice's, an upload she has begun, or nothing. Bob's answers are
compared field by field, but for ids and times that every answer makes up anew, and alice's things stay as they were. That
foreign and unknown take the same time is held by what takes it, and not by a clock: the store does call by call the same.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from peers import MIB, RawPeer, Sample, Served, bytes_of, content_of, names_in, run, serving
from test_connection_auth import Town, enter, upload

import blockproto.store
from blockproto.common.names import SafeName
from blockproto.errors import UnknownFile
from blockproto.identity import principals
from blockproto.store.local.finished_files import FinishedFiles
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.steps import put
from blockproto.wire import (
    Ack,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    Have,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    Remove,
    RemoveKind,
    Result,
)

quick = pytest.mark.trio(run=run)

SECRET = Sample(bytes_of(3000, 5), "diary/secret.txt", "text/plain", b"a secret source.")
BEGUN = Sample(bytes_of(2 * MIB + 9, 6), "diary/begun.bin", sourceid=b"a begun source..")
SOURCE_OF_NOBODY = b"nobody's source."
ID_OF_NOBODY = b"nobody's file id"
NAME_OF_NOBODY = "diary/nothing.txt"


@dataclass(frozen=True)
class Known:
    """What a question is about: all of it is alice's, or nobody's."""

    sourceid: bytes
    file_id: bytes
    filename: str
    digest: bytes
    root: bytes


NOTHING = Known(SOURCE_OF_NOBODY, ID_OF_NOBODY, NAME_OF_NOBODY, bytes_of(32, 77), bytes_of(32, 77))
STORE = os.path.dirname(blockproto.store.__file__) + os.sep

Said = list[tuple[Message, bytes]]
Question = Callable[[Known], Said]


def said(*messages: Message | tuple[Message, bytes]) -> Said:
    return [one if isinstance(one, tuple) else (one, b"") for one in messages]


def mine(known: Known) -> Sample:
    """A file of bob's under a sourceid and a name that are known."""
    return Sample(bytes_of(2000, 9), known.filename, sourceid=known.sourceid)


def opening(known: Known, attempt: int, **changes: Any) -> Open:
    return replace(mine(known).open(attempt), **changes)


QUESTIONS: dict[str, Question] = {
    "see by name": lambda known: said(List(ListKind.FILES, name=known.filename, exact=True)),
    "see with its b3sum": lambda known: said(
        List(ListKind.FILES, name=known.filename, exact=True, b3sum=True)
    ),
    "list its folder": lambda known: said(List(ListKind.FILES, name=known.filename.partition("/")[0])),
    "list everything": lambda known: said(List(ListKind.FILES, recursive=True)),
    "list after its name": lambda known: said(List(ListKind.FILES, recursive=True, cursor=known.filename)),
    "list uploads": lambda known: said(List(ListKind.UPLOADS)),
    "list uploads after it": lambda known: said(List(ListKind.UPLOADS, cursor=known.sourceid.hex())),
    "see its receipt": lambda known: said(List(ListKind.RECEIPTS, ids=(known.sourceid,))),
    "read by name": lambda known: said(Fetch(known.filename)),
    "read by file id": lambda known: said(Fetch("", file_id=known.file_id)),
    "read by file id as its version": lambda known: said(
        Fetch("", file_id=known.file_id, version=known.file_id)
    ),
    "read by file id and name": lambda known: said(Fetch(known.filename, file_id=known.file_id)),
    "resume": lambda known: said(opening(known, 1)),
    "join": lambda known: said(opening(known, 1, filesize=None, blocknum=None)),
    "take over": lambda known: said(opening(known, 1 << 40)),
    "take over and look at digests": lambda known: said(opening(known, 2), Have(((0, known.digest),))),
    "take over and cancel": lambda known: said(opening(known, 3), Cancel(0, discard=True)),
    "send one block": lambda known: said(mine(known).block(0, commit=True)),
    "commit by root alone": lambda known: said(
        opening(known, 4, filesize=3000, blocknum=1, root=known.root, b3sum=known.root),
        Commit(known.sourceid, known.root, 3000, 1, b3sum=known.root),
        Cancel(0, discard=True),
    ),
    "claim every digest": lambda known: said(
        opening(known, 5, filesize=3000, blocknum=1, root=known.root, b3sum=known.root),
        Have(((0, known.digest),)),
        Cancel(0, discard=True),
    ),
    "remove by name": lambda known: said(Remove(RemoveKind.FILE, filename=known.filename)),
    "remove by file id": lambda known: said(Remove(RemoveKind.FILE, known.file_id)),
    "remove its folder": lambda known: said(
        Remove(RemoveKind.FILE, filename=known.filename.partition("/")[0], recursive=True)
    ),
    "remove the upload": lambda known: said(Remove(RemoveKind.UPLOAD, known.sourceid)),
}


@dataclass
class Place:
    """A server with a finished file and a begun upload of alice's, and bob at the door."""

    served: Served
    bob: RawPeer
    known: dict[str, Known]

    async def work_of(self, stream: int, question: Said) -> Counter[str]:
        """What the store called while it answered, and how often: its own functions, the ledger's and the system's."""
        calls: Counter[str] = Counter()

        def note(frame: FrameType, event: str, function: Any) -> None:
            code = frame.f_code
            if code.co_filename.startswith(STORE) and event in ("call", "c_call"):
                called = "" if event == "call" else f" → {function.__qualname__}"
                calls[f"{code.co_filename.removeprefix(STORE)} {code.co_qualname}{called}"] += 1

        sys.setprofile(note)
        try:
            await self.ask(stream, question)
        finally:
            sys.setprofile(None)
        return calls

    async def ask(self, stream: int, question: Said) -> list[Message]:
        """Everything bob hears in answer, as far as it is not made up anew each time."""
        for message, payload in question:
            await self.bob.say(stream, message, payload)
        heard: list[Message] = []
        with trio.move_on_after(10):  # no time at all: the clock jumps as soon as nothing more is to come
            while True:
                frame = await self.bob.hear()
                if not isinstance(frame.message, Credit):
                    heard.append(plain(frame.message))
        return heard


def plain(message: Message) -> Message:
    if isinstance(message, Opened):
        return replace(message, file_id=bytes(16), sourceid=bytes(16), expires_ms=None, incarnation=0)
    if isinstance(message, Committed):
        return replace(message, file_id=bytes(16), sourceid=bytes(16))
    if isinstance(message, Result):
        return replace(message, items=tuple(_plain_item(item) for item in message.items))
    return message


def _plain_item(item: Any) -> Any:
    anew = {"mtime_ns": 0, "version": bytes(16), "file_id": bytes(16), "sourceid": bytes(16), "expires_ms": 0}
    return replace(item, **{name: value for name, value in anew.items() if hasattr(item, name)})


@asynccontextmanager
async def place(store: LocalStore | None = None) -> AsyncIterator[Place]:
    """Alice's things and bob, in a store that is looked through at the end, unless it is another one."""
    town = Town()
    async with town.serving(store) as served:
        alice = await enter(served, town.tokens["alice"])
        secret = await upload(alice, 3, SECRET)
        await alice.say(5, BEGUN.open())
        begun = await alice.expect(Opened, 5)
        await alice.say(5, *BEGUN.block(0))
        await alice.wait_acked(0)
        finished = Known(SECRET.sourceid, secret.file_id, SECRET.filename, SECRET.root, SECRET.root)
        known = {
            "finished": finished,
            "begun": replace(
                finished,
                sourceid=BEGUN.sourceid,
                file_id=begun.file_id,
                filename=BEGUN.filename,
                digest=BEGUN.block(0)[0].digest or b"",
            ),
            "nobody's": NOTHING,
        }
        await alice.stream.aclose()
        yield Place(served, await enter(served, town.tokens["bob"]), known)
        if store is not None:
            return
        assert content_of(served.store, "homes/alice/diary/secret.txt") == SECRET.content
        again = await enter(served, town.tokens["alice"])
        await again.say(3, BEGUN.open(2))
        assert (await again.expect(Opened, 3)).position == MIB


def same_but_for_the_name(heard: list[Message], known: Known) -> str:
    return repr(heard).replace(known.filename, "FILE").replace(known.sourceid.hex(), "SOURCE")


@quick
@pytest.mark.clause("BP1-PRN-001", "BP1-PRN-002", "BP1-PRN-003", "BP1-PRN-006")
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
async def test_foreign_is_answered_as_unknown(question: Question) -> None:
    answers: dict[str, str] = {}
    for what in ("finished", "begun", "nobody's"):
        async with place() as here:
            known = here.known[what]
            heard = await here.ask(3, question(known))
            assert heard, "no answer at all"
            for message in heard:
                assert SECRET.content not in repr(message).encode()
            answers[what] = same_but_for_the_name(heard, known)
    assert answers["finished"] == answers["begun"] == answers["nobody's"]


# ---- a digest is no key


@quick
@pytest.mark.clause("BP1-PRN-006")
async def test_who_knows_only_digests_gets_no_file_and_no_hint() -> None:
    """A digest of what is there is answered as one of what is not; nothing is committed without bytes."""
    async with place() as here:
        told = []
        for stream, what in ((3, "finished"), (5, "nobody's")):
            known = replace(here.known[what], sourceid=b"%016d" % stream, filename="claimed.txt")
            heard = await here.ask(stream, QUESTIONS["claim every digest"](known))
            told.append([message for message in heard if not isinstance(message, Error)])
            assert isinstance(heard[0], Opened)
            assert not heard[0].held
            assert not any(isinstance(message, Committed | Ack) for message in heard)
        assert told[0] == told[1]
        assert "homes/bob/claimed.txt" not in names_in(here.served.store)


@quick
async def test_the_same_bytes_of_two_principals_are_two_files_and_both_are_sent() -> None:
    async with place() as here:
        again = replace(SECRET, filename="mine.txt", sourceid=b"bob's own source")
        await here.bob.say(3, again.open(1, root=again.root, b3sum=again.root))
        opened = await here.bob.expect(Opened, 3)
        assert (opened.held, opened.position, opened.prefixes) == ((), 0, ())
        await here.bob.say(3, *again.block(0))
        await here.bob.say(3, again.commit())
        stored = await here.bob.expect(Committed, 3)
        assert stored.file_id != here.known["finished"].file_id


# ---- the same work


@pytest.fixture
def bob_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of principals fall, so that alice's rows in the ledger come right behind where bob's would be."""
    numbers = itertools.count(0xFFFF, -1)
    monkeypatch.setattr(principals.secrets, "token_hex", lambda length: f"{next(numbers):0{2 * length}x}")


def difference(works: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """What was called how much more often, or less, than for what is nobody's."""
    least = works["nobody's"]
    found = {
        what: {
            call: work[call] - least[call] for call in sorted({*work, *least}) if work[call] != least[call]
        }
        for what, work in works.items()
    }
    return {what: calls for what, calls in found.items() if calls}


def is_open_to_all(question: Question) -> bool:
    """Whether it only looks."""
    return isinstance(question(NOTHING)[0][0], List | Fetch)


LOOKING = {name: question for name, question in QUESTIONS.items() if is_open_to_all(question)}
CHANGING = {name: question for name, question in QUESTIONS.items() if name not in LOOKING}


@quick
@pytest.mark.clause("BP1-PRN-003")
async def test_a_look_at_what_is_foreign_takes_the_same_work(tmp_path: Path, bob_is_first: None) -> None:
    told: dict[str, Any] = {}
    async with place(LocalStore.open(tmp_path)) as here:
        streams = itertools.count(3, 2)
        await here.ask(next(streams), said(List(ListKind.UPLOADS)))  # alice's upload is put to rest meanwhile
        for name, question in LOOKING.items():
            await here.ask(
                next(streams), question(here.known["nobody's"])
            )  # what is remembered, is from now on
            works = {
                what: await here.work_of(next(streams), question(known)) for what, known in here.known.items()
            }
            assert sum(works["nobody's"].values()) > 10, "the store was not asked"
            told[name] = difference(works)
    assert {name: found for name, found in told.items() if found} == {}


@quick
@pytest.mark.clause("BP1-PRN-003")
@pytest.mark.parametrize("question", CHANGING.values(), ids=CHANGING)
async def test_a_try_at_what_is_foreign_takes_the_same_work(
    question: Question, tmp_path: Path, bob_is_first: None
) -> None:
    works: dict[str, Counter[str]] = {}
    for what in ("finished", "begun", "nobody's"):
        (tmp_path / what).mkdir()
        async with place(LocalStore.open(tmp_path / what)) as here:
            works[what] = await here.work_of(3, question(here.known[what]))
    assert sum(works["nobody's"].values()) > 10, "the store was not asked"
    assert difference(works) == {}


def test_a_foreign_file_is_never_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not looked at takes no time: neither its folder, nor whether it is still there, nor its content."""
    (tmp_path / "served").mkdir()
    store = LocalStore.open(tmp_path / "served")
    try:
        receipt = put(store, "alice/note", b"hello")

        def look(*_: object) -> None:
            raise AssertionError("a foreign file was looked at")

        monkeypatch.setattr(FinishedFiles, "look", look)
        for file_id in (receipt.file_id, ID_OF_NOBODY):
            with pytest.raises(UnknownFile):
                store.open_file(None, file_id, SafeName("bob"))
        with pytest.raises(AssertionError):
            store.open_file(None, receipt.file_id, SafeName("alice"))
    finally:
        store.close()


def test_the_questions_tell_where_nobody_is_kept_apart() -> None:
    """On a server without principals the same questions do tell: so the table would notice a missing wall."""

    async def answers() -> dict[str, bool]:
        told = {}
        for name, question in QUESTIONS.items():
            heard = []
            for what in ("finished", "nobody's"):
                async with serving() as served:
                    owner, guest = await served.peer(), await served.peer()
                    stored = await upload(owner, 1, SECRET)
                    known = Known(SECRET.sourceid, stored.file_id, SECRET.filename, SECRET.root, SECRET.root)
                    if what == "nobody's":
                        known = Known(SOURCE_OF_NOBODY, ID_OF_NOBODY, NAME_OF_NOBODY, bytes(32), bytes(32))
                    here = Place(served, guest, {})
                    heard.append(same_but_for_the_name(await here.ask(1, question(known)), known))
            told[name] = heard[0] != heard[1]
        return told

    told = run(answers)
    silent = {name for name, tells in told.items() if not tells}
    assert silent <= {
        "list everything", "list after its name", "list uploads", "list uploads after it", "list its folder",
        "remove its folder", "remove the upload",
    }  # fmt: skip
