"""What a listing passes over is told, each thing once: by the store, on the wire, and to the user of ``get`` and ``ls``."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_server import Asked, HostileServer, frame
from peers import RawPeer, run, serving
from processes import Ran, Server
from test_connection_auth import say_who
from test_realm_cursors import policy

from blockproto import wire
from blockproto.cli import main
from blockproto.cli.left_out import NAMED_MAX
from blockproto.cli.output import Status
from blockproto.errors import BlockprotoError, Code
from blockproto.results import LeftOut as Told
from blockproto.store import LEFT_OUT_NAMES_MAX, LeftOut, Reason
from blockproto.store.local import listing
from blockproto.store.local.listing import Listings
from blockproto.store.local.store import LocalStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import FileItem, List, ListKind, Result

quick = pytest.mark.trio(run=run)
Run = Callable[..., Ran]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A folder that may hold names of any length: its own removal must not depend on pytest."""
    folder = tmp_path / "served"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def listings(served: Path) -> Iterator[Listings]:
    fd = os.open(served, os.O_RDONLY)
    yield Listings(fd)
    os.close(fd)


def odd(folder: Path) -> dict[Reason, set[str]]:
    """Fill a folder with what travels and what does not; returns the latter, relative to it."""
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "m", "z", "sub/inside", "sub/z"):
        (folder / name).write_bytes(b"x")
    (folder / "link").symlink_to("a")
    (folder / "sub/broken").symlink_to("nowhere")
    (folder / "to sub").symlink_to("sub")
    os.mkfifo(folder / "sub/pipe")
    (folder / "line\nend").write_bytes(b"x")
    (folder / "folder\t").mkdir()
    (folder / "folder\t/one").write_bytes(b"x")
    (folder / "folder\t/two").symlink_to("one")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).write_bytes(b"x")
    (folder / ".blockproto").mkdir(exist_ok=True)
    (folder / "sub/.blockproto").mkdir()
    (folder / "sub/.blockproto/link").symlink_to("x")
    return {
        Reason.LINK: {"link", "sub/broken", "to sub"},
        Reason.SPECIAL: {"sub/pipe"},
        Reason.NAME: {"line\nend", "folder\t", "caf\udce9"},
    }


def told_by(
    listings: Listings, folder: str, recursive: bool, limit: int
) -> tuple[list[str], dict[Reason, list[str]], Counter[Reason]]:
    """Over all pages: the names listed, those left out, and how many."""
    names: list[str] = []
    left: dict[Reason, list[str]] = {}
    counts: Counter[Reason] = Counter()
    cursor = ""
    while True:
        left_out = LeftOut()
        page, cursor = listings.page(folder, recursive, cursor, limit, left_out)
        names += [name.text for name, _ in page]
        counts.update(left_out.counts)
        for reason, some in left_out.names.items():
            left.setdefault(reason, []).extend(name.decode("utf-8", "surrogateescape") for name in some)
        if not cursor:
            return names, left, counts


@pytest.mark.clause("BP1-LST-017")
@pytest.mark.parametrize("window", [1, 2, 3, 1000])
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_each_is_told_once_over_all_pages(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch, window: int, limit: int
) -> None:
    monkeypatch.setattr(listing, "WINDOW", window)
    monkeypatch.setattr(listing, "KEPT_NAMES_MAX", 2 * window)
    expected = odd(served)
    names, left, counts = told_by(listings, "", True, limit)
    assert names == ["a", "m", "sub", "sub/inside", "sub/z", "z"]
    assert {reason: sorted(some) for reason, some in left.items()} == {
        reason: sorted(some) for reason, some in expected.items()
    }
    assert counts == {reason: len(some) for reason, some in expected.items()}
    _, left, _ = told_by(listings, "", False, limit)
    assert {name for some in left.values() for name in some} == {
        name for some in expected.values() for name in some if "/" not in name
    }
    _, left, _ = told_by(listings, "sub", True, limit)
    assert left == {Reason.LINK: ["sub/broken"], Reason.SPECIAL: ["sub/pipe"]}


@pytest.mark.parametrize("seed", range(8))
def test_each_lies_on_the_page_of_its_range(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(listing, "WINDOW", rng.choice((1, 3, 1000)))
    links = set()
    for _ in range(60):
        parts = [rng.choice(("a", "a.b", "a-", "b", "é", "~", "a0")) for _ in range(rng.randrange(1, 5))]
        path = served.joinpath(*parts)
        way = [served.joinpath(*parts[:at]) for at in range(1, len(parts))]
        if any(os.path.lexists(above) and (above.is_symlink() or not above.is_dir()) for above in way):
            continue
        if os.path.lexists(path):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if rng.random() < 0.5:
            path.symlink_to("nowhere")
            links.add("/".join(parts))
        else:
            path.mkdir() if rng.random() < 0.5 else path.touch()
    for limit in (1, 2, 7):
        found = []
        cursor, before = "", b""
        while True:
            left_out = LeftOut()
            _, cursor = listings.page("", True, cursor, limit, left_out)
            names = left_out.names.get(Reason.LINK, [])
            assert all(name > before for name in names)
            assert not cursor or all(name <= cursor.encode() for name in names)
            found += [name.decode() for name in names]
            before = cursor.encode()
            if not cursor:
                break
        assert sorted(found) == sorted(links)


def test_many_are_counted_without_looking_at_each(served: Path, listings: Listings) -> None:
    for number in range(300):
        (served / f"b{number:03}").symlink_to("a")
    (served / "a").touch()
    (served / "c").touch()
    left_out = LeftOut()
    assert listings.page("", False, "", 1, left_out)[1] == "a"
    assert left_out.counts == {}
    listings.page("", False, "a", 1, left_out)
    assert left_out.counts == {Reason.LINK: 300}
    assert left_out.names[Reason.LINK] == [f"b{n:03}".encode() for n in range(LEFT_OUT_NAMES_MAX)]


def test_names_that_are_kept_are_bounded_with_links_too(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "WINDOW", 20)
    monkeypatch.setattr(listing, "KEPT_NAMES_MAX", 40)
    for number in range(10):
        (served / str(number)).mkdir()
        for inside in range(50):
            (served / str(number) / f"{inside:02}").symlink_to("x")
    _, _, counts = told_by(listings, "", True, 3)
    assert counts == {Reason.LINK: 500}
    assert sum(window.cost for windows in listings._kept.values() for window in windows) <= 40


def test_a_folder_that_leaves_no_room_for_names_below_it(served: Path, listings: Listings) -> None:
    components = [*["x" * 255] * 4, "y"]
    fd = os.open(served, os.O_RDONLY)
    for component in components[:4]:
        os.mkdir(component, dir_fd=fd)
        below = os.open(component, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert told_by(listings, "", True, 1)[1] == {}  # it is empty
    os.close(os.open(components[4], os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    names, left, _ = told_by(listings, "", True, 1)
    assert len(names) == 4
    assert left == {Reason.NAME: ["/".join(components[:4]) + "/"]}


def refuse_folder(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let the system refuse to read one folder, as it does for those who may not: tests run as root."""
    scandir, wanted = os.scandir, path.stat()

    def refusing(fd: Any) -> Any:
        found = os.fstat(fd) if isinstance(fd, int) else os.stat(fd)
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            raise OSError(number, os.strerror(number))
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("limit", [1, 100])
def test_a_folder_that_cannot_be_read(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch, number: int, limit: int
) -> None:
    for folder in ("a", "b", "c"):
        (served / folder).mkdir()
        (served / folder / "inside").touch()
    refuse_folder(monkeypatch, served / "b", number)
    names, left, _ = told_by(listings, "", True, limit)
    assert names == ["a", "a/inside", "b", "c", "c/inside"]
    assert left == {Reason.UNREADABLE: ["b"]}
    assert told_by(listings, "", False, limit)[1] == {}


def test_an_entry_that_the_system_does_not_show(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (served / name).touch()
    look = listing.look

    def refusing(fd: int, name: bytes) -> os.stat_result | None:
        if name == b"a":
            raise PermissionError(errno.EACCES, "no")
        return look(fd, name)

    monkeypatch.setattr(listing, "look", refusing)
    assert told_by(listings, "", True, 1)[:2] == (["b"], {Reason.UNREADABLE: ["a"]})


def test_what_is_gone_is_not_told_and_want_of_descriptors_is_said(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served / "a").mkdir()
    refuse_folder(monkeypatch, served / "a", errno.ENOENT)
    assert told_by(listings, "", True, 1)[1] == {}
    refuse_folder(monkeypatch, served / "a", errno.EMFILE)
    with pytest.raises(BlockprotoError) as raised:
        told_by(listings, "", True, 1)
    assert raised.value.code is Code.BUSY


def test_what_became_a_link_between_two_pages_is_not_listed(served: Path, listings: Listings) -> None:
    for name in ("a", "b", "c"):
        (served / name).touch()
    _, cursor = listings.page("", False, "", 1)
    (served / "b").unlink()
    (served / "b").symlink_to("a")
    left_out = LeftOut()
    page, _ = listings.page("", False, cursor, 10, left_out)
    assert [name.text for name, _ in page] == ["c"]
    assert left_out.names == {Reason.LINK: [b"b"]}


def test_the_memory_store_leaves_nothing_out() -> None:
    left_out = LeftOut()
    assert MemoryStore().files("", True, "", 10, left_out) == ([], "")
    assert left_out.counts == {}


# ---- on the wire


async def pages(peer: RawPeer, stream: int, **fields: Any) -> list[Result]:
    found: list[Result] = []
    cursor = ""
    while True:
        await peer.say(stream, List(ListKind.FILES, recursive=True, cursor=cursor, **fields))
        found.append(await peer.expect(Result, stream))
        cursor, stream = found[-1].cursor, stream + 2
        if not cursor:
            return found


def groups_of(found: list[Result]) -> dict[int, list[str]]:
    left: dict[int, list[str]] = {}
    for page in found:
        for group in page.left_out:
            assert group.count == len(group.names)
            left.setdefault(group.reason, []).extend(group.names)
    return left


SHOWN = {
    1: ["link", "sub/broken", "to sub"],
    2: ["sub/pipe"],
    3: ["caf\\xe9", "folder\\x09", "line\\x0aend"],
}


@pytest.mark.clause("BP1-LST-017")
@pytest.mark.clause("BP1-LST-018")
@pytest.mark.parametrize("limit", [1, 1000])
@quick
async def test_pages_say_what_they_passed_over(limit: int, served: Path) -> None:
    odd(served)
    async with serving(LocalStore.open(served)) as running:
        peer = await running.peer()
        found = await pages(peer, 1, limit=limit)
        assert groups_of(found) == SHOWN
        names = [item.filename for page in found for item in page.items if isinstance(item, FileItem)]
        assert names == ["a", "m", "sub", "sub/inside", "sub/z", "z"]
        await peer.say(501, List(ListKind.FILES, "a", exact=True))
        assert (await peer.expect(Result, 501)).left_out == ()


@quick
async def test_who_has_a_folder_is_not_told_where_it_lies(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_policy, token = policy()
    top = served / "customers/acme gmbh"
    odd(top)
    (served / "link above").symlink_to("x")
    async with serving(LocalStore.open(served), policy=the_policy) as running:
        peer = await running.peer()
        await say_who(peer, token)
        assert groups_of(await pages(peer, 101, limit=1)) == SHOWN
        assert groups_of(await pages(peer, 301, limit=9, name="sub")) == {1: ["sub/broken"], 2: ["sub/pipe"]}
        (top / "new").touch()  # or the names that are kept would do
        refuse_folder(monkeypatch, top, errno.EIO)
        assert groups_of(await pages(peer, 501, limit=9)) == {4: [""]}


def test_names_give_way_where_the_head_is_short() -> None:
    long = tuple("n" * 240 for _ in range(32))
    page = Result(1, (), "c", (wire.LeftOut(1, 99, long), wire.LeftOut(3, 40, long)))
    for head_length_max in (100, 4096, 65_535):
        fitted = wire.fit_left_out(page, head_length_max)
        assert len(wire.encode_frame(1, fitted)) - wire.HEADER_LENGTH <= head_length_max
        assert [(group.reason, group.count) for group in fitted.left_out] == [(1, 99), (3, 40)]
        assert len(fitted.left_out[1].names) >= len(fitted.left_out[0].names)
    assert fitted == page


@pytest.mark.parametrize(
    "value", ["01", "0100000001", "01000000010001", "0100000001000100", "01000000010001000261"]
)
def test_a_group_that_does_not_end_with_its_value_is_malformed(value: str) -> None:
    with pytest.raises(BlockprotoError) as raised:
        wire.TLV_LEFT_OUT.decode(bytes.fromhex(value))
    assert raised.value.code is Code.MALFORMED


# ---- people


def test_get_names_what_does_not_come(server: Server, tmp_path: Path, run: Run) -> None:
    odd(server.folder / "tree")
    ran = run("get", server.address + "/tree", tmp_path / "copy", "--json")
    assert ran.status == Status.FAILED
    for line in (
        "tree/link: a symbolic link, left out",
        "tree/sub/pipe: a special file, left out",
        "blockproto: tree/caf\\xe9: its name cannot travel; rename it there",
        "blockproto: tree/line\\x0aend: its name cannot travel; rename it there",
    ):
        assert line in ran.err.splitlines()
    assert "4 left out; 3 failed" in ran.err
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == [
        "a",
        "inside",
        "m",
        "sub",
        "z",
        "z",
    ]
    failed = [one for one in ran.objects if one["outcome"] == "failed"]
    assert [one["filename"] for one in failed] == ["tree/caf\\xe9", "tree/folder\\x09", "tree/line\\x0aend"]
    assert {one["code"] for one in failed} == {"NAME_REFUSED"}


def test_links_and_special_files_alone_are_no_failure(server: Server, tmp_path: Path, run: Run) -> None:
    (server.folder / "tree").mkdir()
    (server.folder / "tree/link").symlink_to("nowhere")
    os.mkfifo(server.folder / "tree/pipe")
    for number in range(40):
        (server.folder / f"tree/many {number:02}").symlink_to("nowhere")
    ran = run("get", server.address + "/tree", tmp_path / "copy", "--json")
    assert ran.status == Status.DONE, ran.err
    assert ran.objects == []
    assert "tree/many 00: a symbolic link, left out" in ran.err
    assert ran.err.count(", left out\n") == NAMED_MAX
    assert "and 32 more left out; -v names more\n" in ran.err
    assert "42 left out" in ran.err
    told = run("get", server.address + "/tree", tmp_path / "copy", "-v").err
    assert told.count(", left out\n") == 33  # the server names 32 links, and a pipe
    assert "and 9 more left out\n" in told
    assert "and 32 more left out; -v names more\n" in run("ls", server.address + "/tree").err
    assert run("put", tmp_path / "copy", server.address + "/").status == Status.DONE


def test_ls_names_what_it_does_not_list(server: Server, run: Run) -> None:
    odd(server.folder / "tree")
    ran = run("ls", "-r", server.address + "/tree", "--json")
    assert ran.status == Status.DONE, ran.err
    assert len(ran.objects) == 6
    assert "tree/sub/broken: a symbolic link, left out" in ran.err
    assert "tree/caf\\xe9: its name cannot travel; rename it there" in ran.err
    flat = run("ls", server.address + "/tree")
    assert "tree/link: a symbolic link, left out" in flat.err
    assert "broken" not in flat.err


@pytest.mark.parametrize(("reason", "status"), [(1, 0), (2, 0), (3, 0), (4, 1), (99, 1)])
def test_ls_fails_only_where_the_server_could_not_read(
    reason: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What hides behind a reason that nobody knows may be anything, too."""
    passed = wire.LeftOut(reason, 1, ("x",))

    def answer(asked: Asked) -> Iterator[object]:
        yield frame(asked.stream, Result(ListKind.FILES, (), "", (passed,)))

    with HostileServer(answer) as server:
        assert main(["ls", "-r", server.address]) == status
    assert "x: " in capsys.readouterr().err


def test_put_names_the_first_of_many_and_what_was_typed(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "many").mkdir()
    for number in range(15):
        (tmp_path / f"many/{number:02}").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    ran = run("put", "many", "pipe", server.address + "/", cwd=tmp_path)
    assert ran.status == Status.FAILED  # of the pipe, which was typed
    lines = ran.err.splitlines()
    assert lines[:NAMED_MAX] == [f"many/{number:02}: a symbolic link, left out" for number in range(10)]
    assert lines[NAMED_MAX:-1] == ["pipe: a pipe, left out", "and 5 more left out; -v names all"]
    assert "16 left out" in lines[-1]
    told = run("put", "-v", "many", server.address + "/", cwd=tmp_path).err
    assert told.count("a symbolic link, left out") == 15
    assert "more left out" not in told


def test_a_queue_tells_what_does_not_come(server: Server, tmp_path: Path, run: Run) -> None:
    """What should have come fails the folder, and only that: what is in it goes."""
    odd(server.folder / "tree")
    queue = ("--queue", tmp_path / "queue")
    run("queue", "get", server.address + "/tree", tmp_path / "copy", *queue)
    ran = run("queue", "run", "--until-empty", *queue)
    assert ran.status == Status.FAILED
    assert "tree/link: a symbolic link, left out\n" in ran.err
    assert "tree/sub/pipe: a special file, left out\n" in ran.err
    assert "tree/caf\\xe9: its name cannot travel; rename it there\n" in ran.err
    assert "1: tree: 3 of what is in it did not come; tree/caf\\xe9: its name cannot travel\n" in ran.err
    assert (tmp_path / "copy/sub/inside").read_bytes() == b"x"
    (folder,) = (one for one in run("queue", "list", "--json", *queue).objects if one["state"] == "failed")
    assert (folder["became"], folder["code"], folder["retryable"]) == (5, Code.NAME_REFUSED, False)
    for name in ("caf\udce9", "line\nend"):
        (server.folder / "tree" / name).unlink()
    shutil.rmtree(server.folder / "tree/folder\t")
    run("queue", "retry", folder["id"], *queue)
    again = run("queue", "run", "--until-empty", *queue)
    assert again.status == Status.DONE, again.err


def test_a_queue_names_the_links_that_stay_here(server: Server, tmp_path: Path, run: Run) -> None:
    odd(tmp_path / "here/tree")
    for name in ("caf\udce9", "line\nend"):
        (tmp_path / "here/tree" / name).unlink()
    shutil.rmtree(tmp_path / "here/tree/folder\t")
    queue = ("--queue", tmp_path / "queue")
    run("queue", "add", tmp_path / "here/tree", server.address + "/", *queue)
    ran = run("queue", "run", "--until-empty", *queue)
    assert ran.status == Status.DONE, ran.err
    assert f"{tmp_path}/here/tree/link: a symbolic link, left out\n" in ran.err
    assert ran.err.count(", left out\n") == 4


def test_reasons_that_nobody_knows_are_failures() -> None:
    assert [Told(reason, 1, ()).missed for reason in ("link", "special", "name", "unreadable", "other")] == [
        False, False, True, True, True,
    ]  # fmt: skip
