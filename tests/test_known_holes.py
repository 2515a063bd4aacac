"""Holes that other transfer programs have had, each tried here: what would succeed on a program that has it.

The table in SECURITY.md names them. A test plants what the attack would reach, does what the attack did, and looks at
whether it was reached.
"""

from __future__ import annotations

import ast
import os
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest
from fuzz import sealed
from partials import partials_of
from peers import Sample, run, serving

import blockproto
from blockproto import wire
from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError, Code, NotPermitted, RemoteProtocolError, Scope, UnknownFile
from blockproto.identity.certificates import client_context
from blockproto.protocol.session import Session, Side
from blockproto.serving.handlers import brief_fetch, fetch
from blockproto.store import IfExists
from blockproto.store.folder_io import Folders
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.steps import opened, outcomes, put, written
from blockproto.wire import PREFACE, Committed, Error, Hello, Type, encode_frame

quick = pytest.mark.trio(run=run)
SECRET = b"planted"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What an attack would reach: beside the served folder."""
    folder = tmp_path / "outside"
    (folder / ".ssh").mkdir(parents=True)
    for name in ("target", "secret", ".ssh/authorized_keys"):
        (folder / name).write_bytes(SECRET)
    return folder


@pytest.fixture
def store(tmp_path: Path, outside: Path) -> Iterator[LocalStore]:
    (tmp_path / "served").mkdir()
    store = LocalStore.open(tmp_path / "served")
    yield store
    store.close()
    for name in ("target", "secret", ".ssh/authorized_keys"):
        assert (outside / name).read_bytes() == SECRET
    assert len(list(outside.rglob("*"))) == 4


# ---- links (the rsync family: a component or the target becomes a link between the check and the use)


@pytest.mark.clause("BP1-NAM-006")
@pytest.mark.parametrize("when", ["before the commit", "between its folder and its name"])
def test_a_link_that_appears_under_way_is_not_followed(
    store: LocalStore, outside: Path, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = tmp_path / "served" / "way"
    way.mkdir()

    def become_a_link() -> None:
        if not way.is_symlink():
            way.rename(tmp_path / "served" / "was")
            way.symlink_to(outside)

    if when == "before the commit":
        become_a_link()
    else:
        walk = Folders._walk

        def opened(self: Folders, folder: str, make: bool) -> int:
            fd = walk(self, folder, make)
            if folder == "way":
                become_a_link()
            return fd

        monkeypatch.setattr(Folders, "_walk", opened)
    for name in ("way/target", "way/new"):
        try:
            put(store, name, b"from the client", number=len(name), if_exists=IfExists.REPLACE)
        except (BlockprotoError, AssertionError):
            continue
        assert (tmp_path / "served" / "was" / name.partition("/")[2]).read_bytes() == b"from the client"


@pytest.mark.clause("BP1-NAM-006")
def test_a_link_in_the_place_of_the_target_is_replaced_and_not_written_through(
    store: LocalStore, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "served" / "target").symlink_to(outside / "target")
    with pytest.raises(UnknownFile):
        store.open_file(SafeName("target"), None)
    try:
        put(store, "target", b"from the client", if_exists=IfExists.REPLACE)
    except (BlockprotoError, AssertionError):
        return
    assert not (tmp_path / "served" / "target").is_symlink()


def test_a_link_in_the_place_of_a_partial_is_not_written_through(
    store: LocalStore, outside: Path, tmp_path: Path
) -> None:
    """Whoever may write in the folder of partials could else direct a resume anywhere."""
    content = bytes(BLOCK_LENGTH) + b"the rest"
    first = opened(store, len(content))
    assert outcomes(store, *written(first, content)[:1]) == [None]
    first.close()
    partials = partials_of(tmp_path / "served" / ".blockproto")
    [partial] = partials.iterdir()
    partial.unlink()
    partial.symlink_to(outside / "target")
    again = opened(store, len(content), attempt=2)
    try:
        with pytest.raises(BlockprotoError):
            again.write(0, memoryview(b"from the client"))
    finally:
        again.close()
    assert (outside / "target").read_bytes() == SECRET


@pytest.mark.clause("BP1-NAM-006")
def test_a_link_that_takes_the_place_of_a_file_that_is_opened_is_not_read(
    store: LocalStore, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look, which sees an ordinary file, and the opening."""
    note = tmp_path / "served" / "note"
    note.write_bytes(b"ordinary")
    look = os.stat

    def looked(path: object, **options: object) -> os.stat_result:
        found = look(path, **options)  # type: ignore[arg-type]
        if path == b"note":
            note.unlink(missing_ok=True)
            note.symlink_to(outside / "secret")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looked)
        with pytest.raises((UnknownFile, NotPermitted)):
            store.open_file(SafeName("note"), None)


# ---- what a small input becomes when it is decompressed (archivers, and protocols that compress)

DECOMPRESSORS = {
    "brotli", "bz2", "gzip", "lz4", "lzma", "snappy", "tarfile", "zipfile", "zlib", "zstandard",
}  # fmt: skip
HARMLESS = {("zlib", "crc32")}


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports; the name is empty where it is the module itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (((node.module or "").partition(".")[0], alias.name) for alias in node.names)


def test_nothing_is_decompressed() -> None:
    """There is nothing here that could: neither in what is received, nor in files, nor in TLS."""
    package = Path(blockproto.__file__).parent
    found = {
        (path.relative_to(package), module, name)
        for path in package.rglob("*.py")
        for module, name in imported(path)
        if module in DECOMPRESSORS and (module, name) not in HARMLESS
    }
    assert found == set()
    for context in (client_context(pinned=True), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)):
        assert context.options & ssl.OP_NO_COMPRESSION


# ---- ids as paths (a tus server was traversed through its upload id)


@quick
@pytest.mark.parametrize(
    "id_", [b"../../out/target", b"/../../../secret", b"..\0/..\0/secrets\0", bytes(15) + b"/"]
)
async def test_an_id_is_never_part_of_a_path(id_: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "target").write_bytes(SECRET)
    (tmp_path / "a" / "served").mkdir(parents=True)
    store = LocalStore.open(tmp_path / "a" / "served")
    async with serving(store) as served:  # type: ignore[arg-type]
        peer = await served.peer()
        sample = Sample(b"from the client", "note", sourceid=id_)
        await peer.say(1, sample.open())
        await peer.expect(wire.Opened, 1)
        await peer.say(1, *sample.block(0))
        await peer.wait_acked(0)
        await peer.say(3, wire.Fetch("", file_id=id_))
        await peer.expect(Error, 3)
        await peer.say(5, wire.Remove(wire.RemoveKind.FILE, id_))
        await peer.expect(Error, 5)
        await peer.say(1, sample.commit())
        assert (await peer.expect(Committed, 1)).stored_as == "note"
        names = [path.name for path in partials_of(tmp_path / "a" / "served" / ".blockproto").iterdir()]
        assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)
    assert (tmp_path / "out" / "target").read_bytes() == SECRET
    assert files_below(tmp_path) == ["note", "target"]


def files_below(folder: Path) -> list[str]:
    """The names of all files but those of the store."""
    found = (path for path in folder.rglob("*") if ".blockproto" not in path.parts)
    return sorted(path.name for path in found if path.is_file())


# ---- names of the other side (magic-wormhole's basename, croc's .ssh/authorized_keys, LocalSend, scp)


@quick
@pytest.mark.parametrize(
    "name",
    ["../outside/.ssh/authorized_keys", "../../x", "/etc/cron.d/x", "a/../../outside/target", "..", "a\0b"],
)
async def test_a_name_of_the_client_leads_nowhere_else(name: str) -> None:
    async with serving() as served:
        peer = await served.peer()
        for stream, message, payload in (
            (1, *Sample(b"x", name).block(0, commit=True)),
            (3, Sample(b"x", name).open(), b""),
        ):
            await peer.say(stream, message, payload)
            await peer.expect_error(Code.NAME_REFUSED, Scope.STREAM, stream)


@quick
@pytest.mark.parametrize("name", ["../outside/.ssh/authorized_keys", "/etc/passwd", ".bashrc", "other.txt"])
async def test_a_server_that_answers_with_another_name_chooses_no_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for decides where it goes, whatever the answer calls itself."""
    answer = fetch.open_message
    for module in (fetch, brief_fetch):
        monkeypatch.setattr(module, "open_message", lambda *args: replace(answer(*args), filename=name))
    async with serving() as served, served.client() as client:
        source = tmp_path / "asked.txt"
        source.write_bytes(b"what was asked for")
        await client.upload(source)
        dest = tmp_path / "here" / "asked.txt"
        dest.parent.mkdir()
        try:
            await client.download("asked.txt", dest)
        except BlockprotoError:
            return
        assert served.downloaded(dest) == b"what was asked for"
        assert [Path(key[0]) for key in served.sidecars] == [dest]


# ---- counts (a five-byte input made another Python protocol allocate 2.1 GB)

COUNTED: dict[str, Callable[[], bytes]] = {
    "runs of OPENED": lambda: bytes(16 + 16 + 8 * 4) + pack(">H", 0xFFFF),
    "digests of HAVE": lambda: pack(">H", 0xFFFF),
    "runs of ACK": lambda: bytes(8) + pack(">H", 0xFFFF),
    "items of RESULT": lambda: b"\1" + pack(">H", 0xFFFF),
    "string of FETCH": lambda: pack(">H", 0xFFFF),
    "length of a TLV": lambda: bytes(52) + pack(">HHHH", 0, 0, 1, 0xFFFF),
}
_TYPES = {
    "runs of OPENED": Type.OPENED, "digests of HAVE": Type.HAVE, "runs of ACK": Type.ACK, "items of RESULT": Type.RESULT,
    "string of FETCH": Type.FETCH, "length of a TLV": Type.OPEN,
}  # fmt: skip


@pytest.mark.clause("BP1-FRM-009")
@pytest.mark.parametrize("what", COUNTED)
@pytest.mark.parametrize("side", list(Side))
def test_a_count_allocates_nothing_that_has_not_come(what: str, side: Side) -> None:
    session = Session(side)
    session.greeting()
    _hear(session, PREFACE + encode_frame(0, Hello(agent="x")))
    head = COUNTED[what]()
    raw = sealed(len(head) << 8 | _TYPES[what], 0, head, 1 if side is Side.SERVER else 2)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            _hear(session, raw)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.clause("BP1-FRM-009")
def test_a_length_allocates_nothing_that_has_not_come() -> None:
    """A header that announces sixteen megabytes, as a stranger's first frame."""
    session = Session(Side.SERVER)
    session.greeting()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            _hear(session, PREFACE + sealed(0xFFFFFF << 8 | Type.HELLO, 0, b"", 0))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def _hear(session: Session, raw: bytes) -> None:
    while raw:
        view = session.receive_buffer()
        count = min(len(view), len(raw))
        view[:count], raw = raw[:count], raw[count:]
        session.bytes_received(count)
        while session.next_event() is not None:
            pass


# ---- content as state (a block of zeros taken for a missing one)


def test_a_file_of_zeros_is_not_missing(store: LocalStore, tmp_path: Path) -> None:
    content = bytes(3000)
    put(store, "zeros", content)
    assert (tmp_path / "served" / "zeros").read_bytes() == content
    assert digest_of(content) != digest_of(b"")
    assert os.stat(tmp_path / "served" / "zeros").st_size == 3000
