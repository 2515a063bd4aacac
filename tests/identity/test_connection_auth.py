"""AUTH and what it opens: who may ask for what, on a real server over a memory stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from peers import MIB, RawPeer, Sample, Served, assert_untouched, names_in, run, serving
from trio.testing import MockClock

from blockproto.errors import Code, Scope, Unauthenticated
from blockproto.identity.auth_policy import DENY_ALL, AuthPolicy
from blockproto.identity.connection_auth import ConnectionAuth
from blockproto.identity.principals import Register
from blockproto.identity.realm import ANONYMOUS, EVERYTHING
from blockproto.identity.tokens import new_token
from blockproto.serving.connection_limits import ConnectionLimits
from blockproto.wire import (
    FEATURE_AUTH,
    FEATURE_AUTH_REQUIRED,
    FEATURE_FILES,
    FEATURE_IF_EXISTS,
    FEATURE_WANTED,
    Auth,
    Block,
    Commit,
    Committed,
    Error,
    Fetch,
    FileItem,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    PrincipalItem,
    Remove,
    RemoveKind,
    Result,
    Scopes,
)

quick = pytest.mark.trio(run=run)
NOTE = Sample(b"hello", "note.txt", "text/plain")


class Town:
    """A register with alice, bob, a reader in alice's folder, and one who may see everything."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.register = Register({})
        self.tokens: dict[str, str] = {}
        for name, folder, scopes in (
            ("alice", "homes/alice", EVERYTHING),
            ("bob", "homes/bob", EVERYTHING),
            ("reader", "homes/alice", Scopes.READ),
            ("writer", "homes/alice", Scopes.WRITE),
            ("admin", None, EVERYTHING),
        ):
            self.tokens[name] = self.add(name, folder=folder, scopes=scopes)
        self.policy = AuthPolicy(self.register, None, lambda: self.now_ms)

    def add(self, name: str, **changed: Any) -> str:
        values = {
            "folder": None, "quota": None, "scopes": EVERYTHING, "now_ms": self.now_ms, "expires_ms": None,
        }  # fmt: skip
        self.register, token = self.register.with_token(name, **(values | changed))
        return token

    @asynccontextmanager
    async def serving(self, store: Any = None) -> Any:
        self.policy.register = self.register
        async with serving(store, policy=self.policy) as served:
            yield served


@pytest.fixture
def town() -> Iterator[Town]:
    return Town()


async def say_who(peer: RawPeer, token: str, stream: int = 1) -> PrincipalItem:
    await peer.say(stream, Auth(token))
    result = await peer.expect(Result, stream)
    assert result.kind == 0
    assert result.cursor == ""
    [item] = result.items
    assert isinstance(item, PrincipalItem)
    return item


async def enter(served: Served, token: str) -> RawPeer:
    peer = await served.peer()
    await say_who(peer, token)
    return peer


async def upload(peer: RawPeer, stream: int, sample: Sample = NOTE) -> Committed:
    await peer.say(stream, *sample.block(0, commit=True))
    return await peer.expect(Committed, stream)


# ---- coming in


@quick
@pytest.mark.clause("BP1-AUT-001", "BP1-AUT-002")
async def test_hello_says_what_is_wanted(town: Town) -> None:
    async with town.serving() as served:
        hello = await RawPeer(served.connect()).greet()
        assert (
            hello.features
            == FEATURE_AUTH | FEATURE_AUTH_REQUIRED | FEATURE_IF_EXISTS | FEATURE_FILES | FEATURE_WANTED
        )
    town.policy.anonymous = ANONYMOUS
    async with town.serving() as served:
        hello = await RawPeer(served.connect()).greet()
        assert hello.features == FEATURE_AUTH | FEATURE_IF_EXISTS | FEATURE_FILES | FEATURE_WANTED
    async with serving() as served:
        peer = RawPeer(served.connect())
        assert (await peer.greet()).features == FEATURE_IF_EXISTS | FEATURE_FILES | FEATURE_WANTED
        await peer.say(1, Auth(town.tokens["alice"]))
        await peer.expect_error(Code.UNSUPPORTED, Scope.STREAM, 1)


@quick
async def test_the_answer_says_who_that_is(town: Town) -> None:
    token = town.add("alice", folder="homes/alice", quota=1 << 30, expires_ms=town.now_ms + 60_000)
    async with town.serving() as served:
        item = await say_who(await served.peer(), token)
        assert (item.name, item.quota, item.scopes) == ("alice", 1 << 30, 3)
        assert (item.expires_ms, item.server_time_ms) == (town.now_ms + 60_000, town.now_ms)
        assert item.principal == bytes.fromhex(town.register.principals["alice"].principal)


REQUESTS: list[Message] = [
    NOTE.open(), NOTE.block(0, commit=True)[0], Fetch("note.txt"), List(ListKind.FILES), List(ListKind.UPLOADS),
    List(ListKind.RECEIPTS), Remove(RemoveKind.FILE, filename="../what is no name"),
]  # fmt: skip


@quick
@pytest.mark.clause("BP1-AUT-004")
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
async def test_nothing_is_answered_before_auth(town: Town, request_: Message) -> None:
    async with town.serving() as served:
        peer = await served.peer()
        payload = b"hello" if isinstance(request_, Block) else b""
        await peer.say(1, request_, payload)
        await peer.expect_error(Code.UNAUTHENTICATED, Scope.STREAM, 1)
        assert_untouched(served.store)


@quick
@pytest.mark.clause("BP1-AUT-003")
async def test_a_request_behind_auth_does_not_wait(town: Town) -> None:
    async with town.serving() as served:
        peer = await served.peer()
        await peer.say(1, Auth(town.tokens["alice"]))
        await peer.say(3, *NOTE.block(0, commit=True))
        await peer.expect(Result, 1)
        assert (await peer.expect(Committed, 3)).stored_as == "note.txt"
        assert "homes/alice/note.txt" in names_in(served.store)


@quick
@pytest.mark.clause("BP1-AUT-006")
@pytest.mark.parametrize("what", ["unknown", "revoked", "truncated", "scheme", "long", "empty", "no text"])
async def test_what_is_no_credential_is_refused_in_the_same_words(town: Town, what: str) -> None:
    token = town.tokens["alice"]
    if what == "revoked":
        town.register, _ = town.register.without("alice")
    said = {
        "unknown": Auth(new_token()), "revoked": Auth(token), "truncated": Auth(token[:-1]), "scheme": Auth(token, scheme=2),
        "long": Auth(token + "a" * 3000), "empty": Auth(""), "no text": Auth("\udcff"),
    }[what]  # fmt: skip
    async with town.serving() as served:
        peer = await served.peer()
        await peer.say(1, said)
        error = await peer.expect_error(Code.UNAUTHENTICATED, Scope.STREAM, 1)
        assert error.text == "there is no credential, or it is not accepted"
        assert not error.retryable
        await say_who(peer, town.tokens["bob"], 3)


@quick
@pytest.mark.clause("BP1-AUT-007")
async def test_the_third_refused_auth_ends_the_connection(town: Town) -> None:
    async with town.serving() as served:
        peer = await enter(served, town.tokens["alice"])
        for stream in (3, 7):
            await peer.say(stream, Auth(new_token()))
            await peer.expect_error(Code.UNAUTHENTICATED, Scope.STREAM, stream)
            assert (await upload(peer, stream + 2)).stored_as == "note.txt"
        await peer.say(11, Auth(new_token()))
        await peer.expect_error(Code.UNAUTHENTICATED, Scope.CONNECTION, 0)


@quick
@pytest.mark.clause("BP1-AUT-008")
async def test_auth_again(town: Town) -> None:
    newer = town.add("alice", folder="homes/alice", expires_ms=town.now_ms + 5)
    async with town.serving() as served:
        peer = await enter(served, town.tokens["alice"])
        await peer.say(3, Auth(town.tokens["bob"]))
        await peer.expect_error(Code.FORBIDDEN, Scope.STREAM, 3)
        await upload(peer, 5)
        assert "homes/alice/note.txt" in names_in(served.store)
        assert (await say_who(peer, newer, 7)).expires_ms == town.now_ms + 5


@quick
@pytest.mark.clause("BP1-AUT-006", "BP1-AUT-009")
async def test_a_credential_that_ends_lets_go_on_what_is_open_and_begins_nothing(town: Town) -> None:
    ending = town.add("alice", folder="homes/alice", expires_ms=town.now_ms + 10)
    async with town.serving() as served:
        peer = await enter(served, ending)
        await peer.say(3, NOTE.open())
        await peer.expect(Opened, 3)
        town.now_ms += 10
        await peer.say(5, List(ListKind.FILES))
        await peer.expect_error(Code.CREDENTIAL_EXPIRED, Scope.STREAM, 5)
        await peer.say(3, *NOTE.block(0))
        await peer.say(3, NOTE.commit())
        await peer.expect(Committed, 3)
        await peer.say(7, Auth(ending))
        await peer.expect_error(Code.CREDENTIAL_EXPIRED, Scope.STREAM, 7)
        await say_who(peer, town.tokens["alice"], 9)
        await peer.say(11, List(ListKind.FILES))
        assert len((await peer.expect(Result, 11)).items) == 1


@quick
@pytest.mark.clause("BP1-AUT-009")
async def test_a_revoked_credential_ends_its_connections_and_no_other(town: Town) -> None:
    async with town.serving() as served:
        alice, bob = await enter(served, town.tokens["alice"]), await enter(served, town.tokens["bob"])
        left, _ = town.register.without("alice")
        served.server.use_register(left)
        await alice.expect_error(Code.UNAUTHENTICATED, Scope.CONNECTION, 0)
        await upload(bob, 3)


@quick
@pytest.mark.clause("BP1-AUT-010")
async def test_who_does_not_say_in_time_who_it_is_has_to_leave(town: Town) -> None:
    async with town.serving() as served:
        silent, polite = await served.peer(), await enter(served, town.tokens["alice"])
        await silent.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        await silent.stream.aclose()
        await upload(polite, 3)


@quick
@pytest.mark.clause("BP1-PRN-009")
async def test_one_connection_more_ends_the_one_that_was_silent_longest(
    town: Town, autojump_clock: MockClock
) -> None:
    """The upload of the one that has to go is held; those of others are left alone."""
    async with town.serving() as served:
        served.server._connection_limits = ConnectionLimits(2)
        bob = await enter(served, town.tokens["bob"])
        silent = await enter(served, town.tokens["alice"])
        sample = Sample(b"x" * MIB + b"y", "two blocks", sourceid=b"another upload..")
        await silent.say(3, sample.open())
        await silent.expect(Opened, 3)
        await silent.say(3, *sample.block(0))
        await silent.wait_acked(0)
        autojump_clock.jump(1)
        active = await enter(served, town.tokens["alice"])
        autojump_clock.jump(1)
        newest = await enter(served, town.tokens["alice"])
        await silent.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        await upload(active, 3)
        await upload(bob, 3)
        await newest.say(3, sample.open(attempt=2))
        assert (await newest.expect(Opened, 3)).held == ((0, 1),)


# ---- realms


@quick
@pytest.mark.clause("BP1-PRN-001", "BP1-PRN-002")
async def test_the_same_sourceid_of_two_principals_is_two_files(town: Town) -> None:
    async with town.serving() as served:
        alice, bob = await enter(served, town.tokens["alice"]), await enter(served, town.tokens["bob"])
        one, two = await upload(alice, 3), await upload(bob, 3)
        assert one.file_id != two.file_id
        assert one.stored_as == two.stored_as == "note.txt"
        assert {"homes/alice/note.txt", "homes/bob/note.txt"} <= set(names_in(served.store))


@quick
@pytest.mark.clause("BP1-PRN-002")
async def test_names_are_relative_to_the_folder_everywhere(town: Town) -> None:
    async with town.serving() as served:
        alice, admin = await enter(served, town.tokens["alice"]), await enter(served, town.tokens["admin"])
        await alice.say(3, List(ListKind.FILES, recursive=True))
        assert (await alice.expect(Result, 3)).items == ()
        stored = await upload(alice, 5, Sample(b"x", "photos/sea.jpg"))
        assert stored.stored_as == "photos/sea.jpg"
        assert await listed(alice, 7) == ["photos", "photos/sea.jpg"]
        assert await listed(admin, 3) == [
            "homes", "homes/alice", "homes/alice/photos", "homes/alice/photos/sea.jpg",
        ]  # fmt: skip
        assert await fetched(alice, 9, Fetch("photos/sea.jpg")) == "photos/sea.jpg"
        assert await fetched(admin, 5, Fetch("", file_id=stored.file_id)) == "homes/alice/photos/sea.jpg"
        await alice.say(11, List(ListKind.RECEIPTS, ids=(NOTE.sourceid,)))
        [receipt] = (await alice.expect(Result, 11)).items
        assert receipt.stored_as == "photos/sea.jpg"  # type: ignore[union-attr]
        await alice.say(13, NOTE.open(sourceid=b"another sourceid"))
        await alice.expect(Opened, 13)
        await alice.say(13, *NOTE.block(0, sourceid=b"another sourceid"))
        await alice.wait_acked(0)
        await alice.say(15, List(ListKind.UPLOADS))
        [begun] = (await alice.expect(Result, 15)).items
        assert begun.filename == "note.txt"  # type: ignore[union-attr]
        await admin.say(7, List(ListKind.UPLOADS))
        assert (await admin.expect(Result, 7)).items == ()


async def fetched(peer: RawPeer, stream: int, request_: Fetch) -> str:
    """The name under which a file of one block comes: OPEN and BLOCK say the same."""
    await peer.say(stream, request_)
    opened = await peer.expect(Open, stream)
    assert (await peer.expect(Block, stream)).filename == opened.filename
    await peer.expect(Commit, stream)
    return opened.filename


async def listed(peer: RawPeer, stream: int) -> list[str]:
    await peer.say(stream, List(ListKind.FILES, recursive=True))
    items = (await peer.expect(Result, stream)).items
    return [item.filename for item in items if isinstance(item, FileItem)]


@quick
@pytest.mark.clause("BP1-PRN-003")
async def test_what_is_foreign_is_answered_as_what_is_unknown(town: Town) -> None:
    async with town.serving() as served:
        alice, bob = await enter(served, town.tokens["alice"]), await enter(served, town.tokens["bob"])
        stored = await upload(alice, 3)
        for at, (foreign, unknown) in enumerate(
            [
                (Fetch("", file_id=stored.file_id), Fetch("", file_id=b"no such file id.")),
                (Fetch("note.txt"), Fetch("nothing.txt")),
                (Remove(RemoveKind.FILE, stored.file_id), Remove(RemoveKind.FILE, b"no such file id.")),
                (Remove(RemoveKind.UPLOAD, NOTE.sourceid), Remove(RemoveKind.UPLOAD, b"no such upload..")),
                (List(1, name="note.txt", exact=True), List(1, name="nothing.txt", exact=True)),
            ]
        ):
            answers = []
            for stream, request_ in ((4 * at + 3, foreign), (4 * at + 5, unknown)):
                await bob.say(stream, request_)
                answers.append(await bob.expect(Error, stream))
            assert answers[0] == answers[1]
        assert "homes/alice/note.txt" in names_in(served.store)


@quick
@pytest.mark.clause("BP1-PRN-004")
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
async def test_a_request_without_its_scope_is_forbidden(town: Town, request_: Message) -> None:
    reads = isinstance(request_, Fetch) or (isinstance(request_, List) and request_.kind == ListKind.FILES)
    async with town.serving() as served:
        peer = await enter(served, town.tokens["writer" if reads else "reader"])
        await peer.say(3, request_, b"hello" if isinstance(request_, Block) else b"")
        await peer.expect_error(Code.FORBIDDEN, Scope.STREAM, 3)
        assert_untouched(served.store)


@quick
@pytest.mark.clause("BP1-PRN-008")
async def test_without_auth_one_is_anonymous_where_that_is_allowed(town: Town) -> None:
    town.policy.anonymous = ANONYMOUS
    async with town.serving() as served:
        peer = await served.peer(Hello(agent="raw"))
        await upload(peer, 1)
        assert names_in(served.store) == ["note.txt"]
        await say_who(peer, town.tokens["alice"], 3)
        await upload(peer, 5)
        assert "homes/alice/note.txt" in names_in(served.store)


@quick
async def test_an_ended_connection_is_forgotten(town: Town) -> None:
    async with town.serving() as served:
        peer = await enter(served, town.tokens["alice"])
        await peer.stream.aclose()
    assert served.server._connection_auths == {}


@pytest.mark.parametrize("token", [True, False])
def test_who_should_speak_tls_is_not_asked_for_a_token(token: bool) -> None:
    """It would be sent so that everybody on the way can read it."""
    connection_auth = ConnectionAuth(DENY_ALL)
    ask = partial(connection_auth.judge, Auth(new_token())) if token else connection_auth.requesting
    with pytest.raises(Unauthenticated, match="use bps:// instead of bp://"):
        ask()
