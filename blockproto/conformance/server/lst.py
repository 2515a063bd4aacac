"""LST: list, result, remove."""

from __future__ import annotations

from ... import wire
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, begun, refused_stream

cases = Chapter("lst", Side.SERVER)
FOLDER = moves.FILETYPE_FOLDER


def tree(trial: Trial, count: int = 5) -> tuple[Peer, str, list[str]]:
    """A folder with files, and one in a folder below it: the connection, the folder's name, everything below it."""
    peer = trial.dial()
    folder = trial.name("")
    names = [f"{folder}/{letter}" for letter in "cabde"[:count]] + [
        f"{folder}/sub/deep",
        f"{folder}/Z",
        f"{folder}/ä",
    ]
    for no, name in enumerate(names):
        moves.brief(peer, trial.sample(10, filename=name), 2 * no + 1)
    return peer, folder, sorted([*names, f"{folder}/sub"], key=str.encode)


def pages(peer: Peer, stream: int, **fields: object) -> list[str]:
    """All pages of a LIST of files: the filenames, in the order in which they came."""
    names: list[str] = []
    cursor = ""
    while True:
        result = moves.list_(peer, stream, **{"cursor": cursor, **fields})
        names += [item.filename for item in result.items if isinstance(item, wire.FileItem)]
        cursor = result.cursor
        stream += 2
        if not cursor:
            return names


# ---- files


@cases.table(
    "files/{}",
    "LST-004 LST-001",
    {"a-folder-s-own-entries": False, "recursive": True},
    why="Byte order is the only order that is the same in every language; locale order breaks cursors.",
)
def entries(trial: Trial, recursive: bool) -> None:
    """Names are whole paths, in byte order; folders too."""
    peer, folder, names = tree(trial)
    expected = [name for name in names if recursive or name.count("/") == folder.count("/") + 1]
    got = pages(peer, 101, name=folder, recursive=recursive)
    require(
        got == expected,
        "the listing has other names, or in another order",
        expected=str(expected),
        got=str(got),
    )


@cases.table(
    "files/folder-beside-its-longer-namesakes/pages-of-{}",
    "LST-004",
    {"1": 1, "100": 100},
    why="Walking folder by folder is not byte order: a space, '-' and '.' stand before '/'.",
)
def namesakes(trial: Trial, limit: int) -> None:
    """What is in a folder comes after those of its neighbours whose names go on with a byte below "/"."""
    peer = trial.dial()
    folder = trial.sample(0).filename
    wanted = [f"{folder}/{name}" for name in ("a", "a b", "a-b", "a.b", "a/x", "a0")]
    for no, name in enumerate(name for name in wanted if not name.endswith("/a")):
        moves.brief(peer, trial.sample(1, filename=name), 2 * no + 1)
    got: list[str] = []
    cursor, stream = "", 101
    while not got or cursor:
        result = moves.list_(peer, stream, name=folder, recursive=True, limit=limit, cursor=cursor)
        got += [item.filename for item in result.items if isinstance(item, wire.FileItem)]
        cursor, stream = result.cursor, stream + 2
    require(
        got == wanted,
        "the listing is not in the byte order of whole names",
        expected=str(wanted),
        got=str(got),
    )


@cases.table(
    "pages/of-{}",
    "LST-002 LST-001 LST-003",
    {"1": 1, "2": 2, "8": 8, "9": 9, "65535": 65_535},
    why="A page that ends exactly at the last entry is where cursors go wrong.",
)
def limits(trial: Trial, limit: int) -> None:
    """At most `limit` items on a page, at least one; the cursor is empty if and only if nothing is left."""
    peer, folder, names = tree(trial)
    got: list[str] = []
    cursor, stream = "", 101
    while True:
        result = moves.list_(peer, stream, name=folder, recursive=True, limit=limit, cursor=cursor)
        require(
            1 <= len(result.items) <= limit,
            "a page has more items than asked for, or none",
            got=str(len(result.items)),
        )
        require(
            len(result.cursor.encode("utf-8", "surrogateescape")) <= 1_100,
            "a cursor has more than 1,100 bytes",
        )
        got += [item.filename for item in result.items if isinstance(item, wire.FileItem)]
        cursor, stream = result.cursor, stream + 2
        if not cursor:
            break
        require(len(got) < len(names), "there is a cursor though nothing is left")
    require(got == names, "the pages together are not the listing", expected=str(names), got=str(got))


@cases.add(
    "pages/fit-the-client-s-head-length-max",
    "LST-002 HEL-010",
    why="A page that is longer than the client takes ends the connection at the first large folder.",
    layer=4,
)
def fit(trial: Trial) -> None:
    """A client that takes heads of 4,096 bytes lists 60 entries of long names."""
    folder = trial.name("")
    names = [f"{folder}/{no:03}{'x' * 120}" for no in range(60)]
    filler = trial.dial()
    for no, name in enumerate(names):
        moves.say_brief(filler, trial.sample(1, filename=name), 2 * no + 1)
    for _ in names:
        filler.expect(wire.Committed)
    peer = trial.dial(hello=wire.Hello(head_length_max=4_096))
    require(pages(peer, 1, name=folder) == names, "the pages together are not the listing")


@cases.table(
    "pages/files-that-{}",
    "LST-003",
    {"go": (2, 0), "come": (0, 2), "come-and-go": (1, 1)},
    why="A cursor that is an offset leaves out or repeats an entry as soon as somebody adds or removes a file.",
    layer=2,
)
def come_and_go(trial: Trial, what: tuple[int, int]) -> None:
    """Between two pages entries before the cursor go or come: what was there all the time is listed once."""
    going, coming = what
    peer, folder, names = tree(trial)
    first = moves.list_(peer, 101, name=folder, recursive=True, limit=4)
    got = [item.filename for item in first.items if isinstance(item, wire.FileItem)]
    for no in range(going):
        peer.say(103 + 2 * no, wire.Remove(wire.RemoveKind.FILE, filename=got[no]))
        peer.expect(wire.Result, 103 + 2 * no)
    for no in range(coming):
        moves.brief(peer, trial.sample(1, filename=f"{folder}/{no}-new"), 111 + 2 * no)
    stayed = [name for name in names if name not in got[:going]]
    got += pages(peer, 121, name=folder, recursive=True, cursor=first.cursor)
    require(
        [name for name in got if name in stayed] == stayed,
        "an entry that stayed is listed twice or not at all",
        got=str(got),
    )


@cases.add(
    "pages/a-cursor-of-somebody-else",
    "LST-003",
    why="A cursor comes from outside; a server that trusts it reads what it was not asked for.",
    layer=5,
)
def strange_cursor(trial: Trial) -> None:
    """A cursor that the server never gave: a page from somewhere, or NOT_PERMITTED; the connection goes on."""
    peer, folder, names = tree(trial)
    for no, cursor in enumerate(("x", "../../etc", f"{folder}/c", "\udcff\udcfe", "\0", "z" * 1_100)):
        stream = 101 + 2 * no
        peer.say(stream, wire.List(wire.ListKind.FILES, folder, cursor, recursive=True))
        heard = peer.expect_any(stream)
        if isinstance(heard.message, wire.Result):
            got = [item.filename for item in heard.message.items if isinstance(item, wire.FileItem)]
            require(set(got) <= set(names), "a strange cursor lists what is not in the folder", got=str(got))
        else:
            peer.judge_error(heard, Code.NOT_PERMITTED)
    peer.ping()


@cases.table(
    "pages/a-cursor-of-somebody-else-of-{}",
    "LST-003",
    {"uploads": wire.ListKind.UPLOADS, "receipts": wire.ListKind.RECEIPTS},
    why="A cursor comes from outside; a server that takes it for its own may not survive it.",
    layer=5,
)
def strange_cursor_of(trial: Trial, kind: int) -> None:
    """Cursors that no listing gave: a page, or NOT_PERMITTED; the connection goes on, and so does the server."""
    peer = trial.dial()
    for no, cursor in enumerate(("x", "-1", "9" * 1_100, "٣", "\udcff\udcfe", "\0", "ff" * 16, "0" * 33)):
        stream = 2 * no + 1
        peer.say(stream, wire.List(kind, cursor=cursor, ids=(bytes(16),)))
        heard = peer.expect_any(stream)
        if not isinstance(heard.message, wire.Result):
            peer.judge_error(heard, Code.NOT_PERMITTED)
    peer.ping()


@cases.table(
    "files/{}",
    "LST-004",
    {"no-such-folder": "no such folder of conform", "a-file": "file"},
    why="An empty listing and a folder that is not there are two answers.",
)
def not_a_folder(trial: Trial, what: str) -> None:
    """LIST of what is no folder."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample)
    peer.say(3, wire.List(wire.ListKind.FILES, sample.filename if what == "file" else what))
    refused_stream(peer, Code.UNKNOWN_FILE, 3)


@cases.add("files/empty-folder", "LST-002 LST-004", why="Nothing is an answer, too.")
def empty_folder(trial: Trial) -> None:
    """LIST of a folder without entries: no item, no cursor."""
    peer, folder = trial.dial(), trial.sample(0, filetype=FOLDER)
    moves.brief(peer, folder)
    result = moves.list_(peer, 3, name=folder.filename)
    require(
        result.items == () and result.cursor == "",
        "an empty folder is listed with something",
        got=str(result),
    )


@cases.add(
    "files/the-served-folder",
    "LST-004 NAM-002",
    why="The empty name is the served folder itself; LIST is the only message that may say it.",
)
def served_folder(trial: Trial) -> None:
    """LIST with an empty name names the folder of this run, and nothing of the server's own."""
    peer, sample = trial.dial(), trial.sample(1)
    moves.brief(peer, sample)
    got = pages(peer, 3)
    require(
        trial.target.folder in got, "the served folder's listing lacks a folder", got=f"{len(got)} entries"
    )
    require(
        not any(name.startswith(".blockproto") for name in got),
        "the server's own folder is listed",
        got=str(got[:9]),
    )


@cases.add(
    "exact/file-folder-and-nothing",
    "LST-006",
    why="One question about one name; most programs ask it before they do anything.",
)
def exact(trial: Trial) -> None:
    """EXACT: the one entry, or UNKNOWN_FILE."""
    peer, sample = trial.dial(), trial.sample(700, filetype="text/plain")
    committed = moves.brief(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(item is not None, "a file that was stored is not known")
    assert item is not None
    expected = (1, 700, committed.file_id, sample.filename, "text/plain")
    got = (item.kind, item.filesize, item.file_id, item.filename, item.filetype)
    require(got == expected, "the entry of a file has other values", expected=str(expected), got=str(got))
    folder = moves.stat(peer, trial.target.folder, 5)
    require(
        folder is not None and (folder.kind, folder.filesize) == (2, 0),
        "the entry of a folder is wrong",
        got=str(folder),
    )
    moves.require_absent(trial, sample.filename + "x", "an entry that is not there is known")


@cases.add(
    "b3sum/of-one-file",
    "LST-007 DIG-002",
    why="People compare it with what b3sum prints.",
)
def b3sum(trial: Trial) -> None:
    """EXACT and B3SUM: the answer carries it; without EXACT the flag is ignored."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.upload(peer, sample)
    peer.say(3, wire.List(wire.ListKind.FILES, trial.target.folder, b3sum=True, limit=1))
    peer.expect(wire.Result, 3)
    item = moves.stat(peer, sample.filename, 5, b3sum=True)
    require(
        item is not None and item.b3sum == sample.b3sum,
        "b3sum is not BLAKE3 of the file's bytes",
        got=str(item),
    )


@cases.add(
    "b3sum/others-do-not-wait",
    "LST-007 STR-007",
    why="Reading a large file takes long; nobody else should notice.",
)
def others_do_not_wait(trial: Trial) -> None:
    """A small file is stored and fetched while a b3sum is computed; the answer comes in any order."""
    peer, sample = trial.dial(), trial.sample(8 << 20)
    moves.upload(peer, sample)
    peer.say(3, wire.List(wire.ListKind.FILES, sample.filename, exact=True, b3sum=True))
    small = trial.sample(10)
    moves.brief(peer, small, 5)
    moves.fetch(peer, 7, wire.Fetch(small.filename), small)
    peer.expect(wire.Result, 3)


# ---- uploads and receipts


@cases.add(
    "uploads/what-is-unfinished",
    "LST-005 RES-016",
    why="What is unfinished takes room; people must be able to see and end it.",
)
def uploads(trial: Trial) -> None:
    """Kind 2: an upload with a held block, with its position and count; it is gone when it is committed."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample, 1, 0, 2)
    peer.expect_acked(1, 0, 2)
    item = moves.unfinished(peer, sample.sourceid, 3)
    require(item is not None, "an upload with held blocks is not listed")
    assert item is not None
    expected = (sample.filesize, 3, 1 << 20, 2, sample.filename, sample.filetype)
    got = (item.filesize, item.blocknum, item.position, item.held_count, item.filename, item.filetype)
    require(got == expected, "the entry of an upload has other values", expected=str(expected), got=str(got))
    moves.send_block(peer, sample, 1)
    moves.commit(peer, sample)
    require(
        moves.unfinished(peer, sample.sourceid, 1_001) is None, "a committed upload is listed as unfinished"
    )


@cases.add(
    "uploads/name-is-not-looked-at",
    "LST-005 NAM-002",
    why="Uploads are asked for all together; a name there is no name of a file.",
)
def name_not_looked_at(trial: Trial) -> None:
    """Kind 2 with a name that would be refused."""
    peer = trial.dial()
    moves.list_(peer, 1, kind=wire.ListKind.UPLOADS, name="../../x")


@cases.add(
    "receipts/among-ids",
    "LST-008 COM-010",
    why="A client that sends a thousand files again asks once which are there.",
)
def receipts(trial: Trial) -> None:
    """Kind 3: the receipts among the ids, in any order; what has none is left out."""
    peer, samples = trial.dial(), [trial.sample(50) for _ in range(3)]
    committed = [moves.brief(peer, sample, 2 * no + 1) for no, sample in enumerate(samples)]
    ids = (trial.sourceid(), *(sample.sourceid for sample in samples), trial.sourceid())
    items: set[tuple[bytes, bytes, bytes, int, str]] = set()
    cursor, stream = "", 11
    while True:
        result = moves.list_(peer, stream, kind=wire.ListKind.RECEIPTS, ids=ids, cursor=cursor)
        for one in result.items:
            assert isinstance(one, wire.ReceiptItem)
            items.add((one.sourceid, one.file_id, one.root, one.filesize, one.stored_as))
        cursor, stream = result.cursor, stream + 2
        if not cursor:
            break
    expected = {(one.sourceid, one.file_id, one.root, one.filesize, one.stored_as) for one in committed}
    require(
        items == expected, "the receipts are not those of COMMITTED", expected=str(expected), got=str(items)
    )


@cases.add("receipts/without-ids", "LST-008", why="All receipts of everybody are nobody's business.")
def receipts_without_ids(trial: Trial) -> None:
    """Kind 3 without IDS: empty."""
    result = moves.list_(trial.dial(), 1, kind=wire.ListKind.RECEIPTS)
    require(
        result.items == () and result.cursor == "",
        "receipts that nobody named are listed",
        got=str(len(result.items)),
    )


@cases.table(
    "unsupported/{}",
    "LST-009",
    {"inbox": 4, "events": 5, "follow": -1},
    why="What a later profile adds is refused, not answered by something that looks like it.",
)
def unsupported(trial: Trial, kind: int) -> None:
    """Kinds that are reserved, and FOLLOW."""
    peer = trial.dial()
    peer.opened(1)
    message = wire.List(1, follow=True) if kind < 0 else forge.unjudged(wire.List(1), kind=kind)
    peer.send(forge.frame(1, message))
    refused_stream(peer, Code.UNSUPPORTED)


# ---- remove


@cases.table(
    "remove/file-by-{}",
    "LST-010 LST-011",
    {"name": False, "id": True},
    why="A client that knows the id need not know the name.",
)
def remove(trial: Trial, by_id: bool) -> None:
    """REMOVE of a file: RESULT without items and cursor; the file is gone, and a second REMOVE says so."""
    peer, sample = trial.dial(), trial.sample(10)
    committed = moves.brief(peer, sample)
    question = (
        wire.Remove(1, committed.file_id, "../x") if by_id else wire.Remove(1, filename=sample.filename)
    )
    peer.say(3, question)
    peer.expect(wire.Result, 3, kind=1, items=(), cursor="")
    moves.require_absent(trial, sample.filename, "a removed file is listed")
    peer.say(7, question)
    refused_stream(peer, Code.UNKNOWN_FILE, 7)


@cases.add(
    "remove/receipt-does-not-count-any-more",
    "LST-010 LST-008 COM-011",
    why="A receipt for a file that is gone would keep a client from sending it again.",
)
def receipt_gone(trial: Trial) -> None:
    """After REMOVE the receipt is not listed."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample)
    peer.say(3, wire.Remove(1, filename=sample.filename))
    peer.expect(wire.Result, 3)
    result = moves.list_(peer, 5, kind=wire.ListKind.RECEIPTS, ids=(sample.sourceid,))
    require(result.items == (), "the receipt of a removed file is listed", got=str(result.items))


@cases.table(
    "remove/{}",
    "LST-012",
    {"empty-folder": (0, False), "full-folder": (1, False), "full-folder-recursively": (1, True)},
    why="One word too few must not cost a folder full of files.",
)
def remove_folder(trial: Trial, what: tuple[int, bool]) -> None:
    """REMOVE of a folder: with entries only when RECURSIVE is set."""
    full, recursive = what
    peer, folder = trial.dial(), trial.sample(0, filetype=FOLDER)
    moves.brief(peer, folder)
    if full:
        moves.brief(peer, trial.sample(10, filename=f"{folder.filename}/a/b"), 3)
    peer.say(5, wire.Remove(1, filename=folder.filename, recursive=recursive))
    if full and not recursive:
        refused_stream(peer, Code.NOT_EMPTY, 5)
        require(
            moves.stat(peer, f"{folder.filename}/a/b", 7) is not None, "a refused REMOVE removed something"
        )
    else:
        peer.expect(wire.Result, 5, items=(), cursor="")
        moves.require_absent(trial, folder.filename, "a removed folder is listed")


@cases.table(
    "remove/the-served-folder{}",
    "LST-012 NAM-004",
    {"": False, "-recursively": True},
    why="Nobody removes everything by leaving a name out.",
    layer=5,
)
def remove_everything(trial: Trial, recursive: bool) -> None:
    """REMOVE with an empty filename."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample)
    peer.say(3, wire.Remove(1, recursive=recursive))
    refused_stream(peer, Code.NAME_REFUSED, 3)
    require(moves.stat(peer, sample.filename, 5) is not None, "REMOVE of nothing removed something")


@cases.add(
    "remove/upload",
    "LST-013 LST-011 COM-017",
    why="An upload whose client is lost can be ended by another.",
    layer=2,
)
def remove_upload(trial: Trial) -> None:
    """REMOVE of kind 2: the upload's streams get CANCELLED, it is gone; again it is UNKNOWN_UPLOAD."""
    first, sample = begun(trial)
    moves.send_block(first, sample, 0)
    first.expect_acked(1, 0)
    second = trial.dial()
    second.say(1, wire.Remove(wire.RemoveKind.UPLOAD, sample.sourceid))
    second.expect(wire.Result, 1, items=(), cursor="")
    first.expect_error(Code.CANCELLED, stream=1)
    require(moves.unfinished(second, sample.sourceid, 3) is None, "a removed upload is listed")
    second.say(1_001, wire.Remove(wire.RemoveKind.UPLOAD, sample.sourceid))
    refused_stream(second, Code.UNKNOWN_UPLOAD, 1_001)


@cases.add(
    "remove/unknown-upload", "LST-013", why="What is not there cannot be ended; a client must hear it."
)
def unknown_upload(trial: Trial) -> None:
    """REMOVE of kind 2 with a sourceid that nobody has, and with zeros."""
    peer = trial.dial()
    for stream, sourceid in ((1, trial.sourceid()), (3, bytes(16))):
        peer.say(stream, wire.Remove(wire.RemoveKind.UPLOAD, sourceid))
        refused_stream(peer, Code.UNKNOWN_UPLOAD, stream)
