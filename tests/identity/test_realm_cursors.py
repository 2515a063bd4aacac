"""Who has a folder is never told where it lies: not by a cursor, not by an error, whatever is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers import RawPeer, Sample, run, serving
from test_connection_auth import say_who

from blockproto.common.names import FILENAME_LENGTH_MAX, SafeName
from blockproto.errors import NameRefused
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING, Realm
from blockproto.store.local.store import LocalStore
from blockproto.wire import Committed, FileItem, List, ListKind, Result

quick = pytest.mark.trio(run=run)
FOLDER = "customers/acme gmbh"


def policy() -> tuple[AuthPolicy, str]:
    register, token = Register({}).with_token(
        "acme", folder=FOLDER, quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    return AuthPolicy(register, None), token


async def pages(peer: RawPeer, stream: int, **fields: Any) -> tuple[list[str], list[str]]:
    """The names of a listing with one entry on each page, and all cursors."""
    names: list[str] = []
    cursors = [""]
    while True:
        await peer.say(stream, List(ListKind.FILES, limit=1, cursor=cursors[-1], **fields))
        page = await peer.expect(Result, stream)
        names += [item.filename for item in page.items if isinstance(item, FileItem)]
        if not page.cursor:
            return names, cursors[1:]
        cursors.append(page.cursor)
        stream += 2


@pytest.mark.parametrize("kind", ["local", "memory"])
@quick
async def test_a_cursor_begins_where_the_realm_does(kind: str, tmp_path: Path) -> None:
    store: Any = LocalStore.open(tmp_path) if kind == "local" else None
    the_policy, token = policy()
    names = ["a", "b", "sub/x", "sub/y", "sub.z", "ü"]
    async with serving(store, policy=the_policy) as served:
        peer = await served.peer()
        await say_who(peer, token)
        for at, name in enumerate(names):
            sample = Sample(name.encode(), name, sourceid=bytes([at + 1] * 16))
            await peer.say(3 + 2 * at, *sample.block(0, commit=True))
            await peer.expect(Committed, 3 + 2 * at)
        whole, cursors = await pages(peer, 101, recursive=True)
        assert whole == sorted([*names, "sub"], key=str.encode)
        assert cursors == whole[:-1]
        assert await pages(peer, 201, recursive=True, name="sub") == (["sub/x", "sub/y"], ["sub/x"])
        top, _ = await pages(peer, 301)
        assert top == sorted(["a", "b", "sub", "sub.z", "ü"], key=str.encode)
        await peer.say(3001, List(ListKind.FILES, limit=1, cursor="../../zzz"))
        assert (await peer.expect(Result, 3001)).items


@pytest.mark.parametrize("length", [FILENAME_LENGTH_MAX - 5, FILENAME_LENGTH_MAX])
def test_a_name_that_is_too_long_only_below_the_folder_does_not_name_it(length: int) -> None:
    name = "/".join(["x" * 255] * 4)[:length]
    with pytest.raises(NameRefused) as caught:
        Realm(folder=SafeName(FOLDER)).inward(name)
    assert "customers" not in str(caught.value)
    assert caught.value.rule == "name-length"
