"""Whole files, several in one work: the order of their writes, kills and failures at every call, and what each crash leaves.

A scene is what is there, what comes, and what is there in the end, however often the process died or a call failed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import blockproto.store.folder_io as disk_module
import blockproto.store.local.file_batch as file_batch_module
from blockproto.common.blocks import EMPTY_DIGEST, digest_of
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError, NotPermitted, StoreFailed, StoreFull, TooFewFiles
from blockproto.store import (
    FOLDER_FILETYPE,
    Facts,
    FileOutcome,
    IfExists,
    RecordB3sum,
    StoredFile,
    StoreFiles,
    Undecided,
    UploadKey,
    WholeFile,
)
from blockproto.store.local.batch import Batch
from blockproto.store.local.check import check_store
from blockproto.store.local.file_batch import FileBatch
from blockproto.store.local.prepared import PreparedFiles
from blockproto.store.local.store import LocalStore

from .checks import Executioner, Killed, abandon, killing, now_ms
from .client import ANYBODY, Commit
from .trace import recording, violations

KEEP, REFUSE, REPLACE, SKIP, UPDATE = IfExists
MTIME_NS = 1_000_000_000_000_000_000
LATER_NS = 4_000_000_000_000_000_000


@dataclass(frozen=True)
class Coming:
    """One file that comes; a folder has no content."""

    name: str
    content: bytes | None
    rule: IfExists = KEEP
    mtime_ns: int = MTIME_NS

    def file(self, number: int) -> WholeFile:
        content, folder = self.content or b"", self.content is None
        filetype = FOLDER_FILETYPE if folder else "application/x-test"
        name = SafeName.parse(self.name)
        facts = Facts(name, filetype, len(content), self.mtime_ns, 0o750 if folder else 0o640, self.rule)
        key = UploadKey(ANYBODY, number.to_bytes(16, "big"))
        return WholeFile(key, facts, digest_of(content) if content else EMPTY_DIGEST, content)


@dataclass(frozen=True)
class Scene:
    """What is there (past the store), what comes, and the files that are there in the end.

    Attributes:
        refused: names of those that are refused each time.
        partials: whether the file system makes no files without a name.
        prepared: whether the store makes what it can before it decides.
    """

    there: dict[str, bytes]
    coming: tuple[Coming, ...]
    wanted: dict[str, bytes]
    refused: frozenset[str] = frozenset()
    portable: bool = False
    partials: bool = False
    reader: bool = True
    prepared: bool = False

    def begin(self, folder: Path) -> LocalStore:
        for name, content in self.there.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.open(folder)

    def open(self, folder: Path) -> LocalStore:
        store = LocalStore.open(folder, now_ms=now_ms, portable=self.portable)
        store.context.makes_unnamed = not self.partials
        return store


NEW = (
    Coming("one", b"1" * 900),
    Coming("deep/er/two", b"2" * 5000),
    Coming("deep/empty", b""),
    Coming("folder/in it", None),
    Coming("folder/in it/three", b"3"),
)
NEW_FILES = {one.name: one.content for one in NEW if one.content is not None}
MANY = tuple(Coming(f"many{number % 4}/{number}", b"%d" % number * 40) for number in range(12))
TAKEN = {name: b"theirs " + name.encode() for name in ("kept", "refused", "replaced", "left", "updated")}
COMING_TO_TAKEN = (
    Coming("kept", b"ours"),
    Coming("refused", b"ours", REFUSE),
    Coming("replaced", b"ours", REPLACE),
    Coming("left", b"ours", SKIP),
    Coming("updated", b"ours", UPDATE, LATER_NS),
    Coming("same", b"the same"),
    Coming("same", b"another"),
)

SCENES = {
    "new": Scene({}, NEW, NEW_FILES),
    "many": Scene({}, MANY, {one.name: one.content or b"" for one in MANY}),
    "taken": Scene(
        TAKEN | {"same": b"the same"},
        COMING_TO_TAKEN,
        TAKEN
        | dict.fromkeys(("kept (1)", "replaced", "updated"), b"ours")
        | {"same": b"the same", "same (1)": b"another"},
        frozenset({"refused"}),
    ),
    "prepared": Scene(
        TAKEN,
        (*NEW, *COMING_TO_TAKEN[:5]),
        TAKEN | NEW_FILES | dict.fromkeys(("kept (1)", "replaced", "updated"), b"ours"),
        frozenset({"refused"}),
        prepared=True,
    ),
    "partials": Scene(
        TAKEN,
        (*NEW, *COMING_TO_TAKEN[:3]),
        TAKEN | NEW_FILES | {"kept (1)": b"ours", "replaced": b"ours"},
        frozenset({"refused"}),
        partials=True,
    ),
    "portable": Scene(
        {"Folder/There": b"theirs", "Other": b"theirs"},
        (Coming("folder/x", b"x"), Coming("Folder/there", b"y"), Coming("New", b"1"), Coming("oTher", b"2")),
        {"Folder/There": b"theirs", "Other": b"theirs", "New": b"1"},
        frozenset({"folder/x", "Folder/there", "oTher"}),
        portable=True,
    ),
}


# -- sending


@dataclass
class Sender:
    """Sends the files of a scene and remembers what it was told.

    Attributes:
        said: the root of each file that was said to be stored, by its sourceid; what was left is none.
        refused: the names of those that were refused, with why.
    """

    scene: Scene
    said: dict[bytes, bytes] = field(default_factory=dict)
    refused: dict[str, BlockprotoError] = field(default_factory=dict)

    def send(self, store: LocalStore, commit: Commit | None = None) -> None:
        commit = store.decide if commit is None else commit
        left = tuple(one.file(number) for number, one in enumerate(self.scene.coming, 1))
        rounds = 0
        while left:
            prepared = prepared_now(store, left) if self.scene.prepared else None
            work = StoreFiles(ANYBODY, left, self.scene.reader, rounds, prepared=prepared)
            try:
                [found] = commit([work])
            except StoreFailed:
                if prepared is not None:
                    prepared.close()  # as ``LocalStore.close`` does
                raise
            assert isinstance(found, tuple)
            again = []
            for file, outcome in zip(left, found, strict=True):
                self._hear(file, outcome)
                if isinstance(outcome, Undecided):
                    again.append(file)
                    for name in outcome.names:
                        with suppress(
                            NotPermitted, StoreFull, TooFewFiles
                        ):  # it is tried again, and then another file
                            _read(store, SafeName.parse(name), commit)
            left, rounds = tuple(again), rounds + 1

    def _hear(self, file: WholeFile, outcome: FileOutcome) -> None:
        name = file.facts.filename.text
        if isinstance(outcome, StoredFile):
            self.refused.pop(name, None)
            if not outcome.left and file.content:  # the receipts of folders are not kept through a crash
                self.said[file.key.sourceid] = outcome.root
        elif not isinstance(outcome, Undecided):
            assert isinstance(outcome, BlockprotoError), outcome
            self.refused[name] = outcome


def prepared_now(store: LocalStore, files: Sequence[WholeFile]) -> PreparedFiles:
    """What ``LocalStore.prepare`` returns, once its thread has come to it."""
    prepared = PreparedFiles(files, lambda: None, lambda *_: None)
    prepared.make(store.context.root_fd)
    return prepared


def _read(store: LocalStore, name: SafeName, commit: Commit) -> None:
    with closing(store.open_file(name, None)) as reader:
        entry = reader.entry
        content = bytearray(entry.filesize)
        reader.sync()
        reader.read_into(0, memoryview(content))
    commit([RecordB3sum(name, entry.version, root=digest_of(content), stamp=entry.stamp)])


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file that is served, with its bytes."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".blockproto" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def require_the_end(folder: Path, scene: Scene, said: dict[bytes, bytes]) -> None:
    """After whatever happened: what was said is there, the same sender finishes, and no second copy is there."""
    assert check_store(folder, read=True) == []
    for name, content in files_in(folder).items():
        assert content in {scene.there.get(name), scene.wanted.get(name)}, f"{name} is not whole"
    store = scene.open(folder)
    try:
        assert store.findings == []
        there = {receipt.sourceid: receipt.root for receipt in store.receipts(ANYBODY, said)}
        assert there == said, "a receipt that was said is lost"
        sender = Sender(scene)
        sender.send(store)
        assert set(sender.refused) == scene.refused
        assert files_in(folder) == scene.wanted
        assert store.uploads(ANYBODY, "", 10) == ([], "")
        for made in (one.name for one in scene.coming if one.content is None):
            assert store.stat(SafeName.parse(made)).mtime_ns == MTIME_NS
    finally:
        store.close()
    assert check_store(folder, read=True) == []


# -- checks, each a function of an empty folder that raises AssertionError


def check_order_of_whole_files(folder: Path) -> None:
    """No power cut at any point could break a promise."""
    for name, scene in SCENES.items():
        place = folder / name
        place.mkdir()
        with recording() as trace:
            store = scene.begin(place)
            try:
                Sender(scene).send(store, partial(trace.commit, store))
            finally:
                store.close()
        assert violations(trace) == [], name
        assert files_in(place) == scene.wanted, name


def check_kills_of_whole_files(folder: Path) -> None:
    """A process killed before or after any call loses no promise, and the same client finishes without a second copy."""
    for name, scene in SCENES.items():
        calls = 0
        for after in (False, True):
            at = 0
            while _killed_once(folder / f"{name}-{after}-{at}", scene, Executioner(at, after=after)):
                at += 1
            calls += at
        assert calls > 15, f"{name}: the calls are not caught any more"


def _killed_once(folder: Path, scene: Scene, executioner: Executioner) -> bool:
    folder.mkdir()
    store = scene.begin(folder)
    sender = Sender(scene)
    try:
        with killing(executioner):
            sender.send(store)
    except Killed:
        pass
    abandon(store)
    require_the_end(folder, scene, sender.said)
    return executioner.killed


class Failure(Executioner):
    """Lets a certain call fail, instead of ending the process.

    Args:
        at: which call, from 0.
        number: the errno.
    """

    def __init__(self, at: int, number: int) -> None:
        super().__init__(at, after=False)
        self._number = number

    def run(self, call: Callable[[], Any]) -> Any:
        with self._lock:
            mine, self._left = self._left == 0, self._left - 1
        if mine:
            self.killed = True
            raise OSError(self._number, os.strerror(self._number))
        return call()


def check_failures_of_whole_files(folder: Path, numbers: tuple[int, ...]) -> None:
    """Any call may fail in any way: that file is refused, or the store has failed; nothing that was said is lost."""
    for name, scene in SCENES.items():
        for number in numbers:
            at = 0
            while _failed_once(folder / f"{name}-{number}-{at}", scene, Failure(at, number)):
                at += 1
            assert at > 10, f"{name}: the calls are not caught any more"


def _failed_once(folder: Path, scene: Scene, failure: Failure) -> bool:
    folder.mkdir()
    store = scene.begin(folder)
    before = len(os.listdir("/proc/self/fd"))
    sender = Sender(scene)
    try:
        with killing(failure, looking=True):
            sender.send(store)
    except StoreFailed:
        pass
    assert len(os.listdir("/proc/self/fd")) <= before, "a file was left open"
    abandon(store)
    require_the_end(folder, scene, sender.said)
    return failure.killed


LINES = {
    # where the process or the power goes: (files that are there then, whether the receipt counts after recovery)
    "before the first sync": (set(), False),
    "before the transaction": (set(), False),
    "before the names": (set(), False),
    "after one name": ({"a"}, False),
    "before the second sync": ({"a", "b"}, True),
    "before the outcomes": ({"a", "b"}, True),
}
"""The lines of the crash table in spec/store.md, for files that are new."""


@contextmanager
def dying(where: str) -> Iterator[None]:
    """Die at a line of the table."""
    with pytest.MonkeyPatch.context() as patch:
        if where == "before the first sync":
            patch.setattr(Batch, "_sync_bytes", _die)
        elif where == "before the transaction":
            patch.setattr(FileBatch, "record", _die)
        elif where == "before the names":
            patch.setattr(FileBatch, "publish", _die)
        elif where == "after one name":
            patch.setattr(FileBatch, "_publish", _once(FileBatch._publish))
        elif where == "before the second sync":
            patch.setattr(disk_module.Folders, "sync", _die)
        else:
            patch.setattr(FileBatch, "end", _die)
        yield


def _die(*_: object) -> None:
    raise Killed


def _once(real: Callable[..., bool]) -> Callable[..., bool]:
    calls: list[int] = []

    def call(*args: Any) -> bool:
        if calls:
            raise Killed
        calls.append(1)
        return real(*args)

    return call


def check_the_crash_table(folder: Path) -> None:
    """Each line: what is there, and what recovery makes of it."""
    scene = Scene({}, (Coming("a", b"a" * 100), Coming("b", b"b" * 100)), {"a": b"a" * 100, "b": b"b" * 100})
    for where, (there, counts) in LINES.items():
        place = folder / where
        place.mkdir()
        store = scene.begin(place)
        with dying(where), pytest.raises(Killed):
            Sender(scene).send(store)
        abandon(store)
        assert set(files_in(place)) == there, where
        _look_after(place, scene, there, counts)
        require_the_end(place, scene, {})


def _look_after(place: Path, scene: Scene, there: set[str], counts: bool) -> None:
    """After recovery: only files that are there have a receipt, and nothing is known of the others."""
    with recording() as trace:
        store = scene.open(place)
    keys = [one.file(number).key for number, one in enumerate(scene.coming, 1)]
    found = {one.stored_as for one in store.receipts(ANYBODY, [key.sourceid for key in keys])}
    assert found == there
    with store.context.ledger.read() as view:
        known = [view.receipt(store.context.state.file_id(key)) for key in keys]
    assert len([one for one in known if one is not None]) == len(there), "a receipt of nothing is kept"
    if counts:
        assert any(event.kind == "sync" and event.path == "*" for event in trace.events), (
            "names are not synced"
        )
    store.close()


def check_replacing_is_atomic(folder: Path) -> None:
    """A crash while a file is replaced leaves the old one or the new one, and its receipt only with it."""
    scene = Scene({"a": b"old"}, (Coming("a", b"new", REPLACE),), {"a": b"new"})
    for number, step in enumerate(("give_name", "move_over")):
        for after in (False, True):
            place = folder / f"{step}-{after}"
            place.mkdir()
            store = scene.begin(place)
            sender = Sender(scene)
            with killing(Named(step, after=after)), pytest.raises(Killed):
                sender.send(store)
            abandon(store)
            moved = number == 1 and after
            assert files_in(place) == {"a": b"new" if moved else b"old"}
            store = scene.open(place)
            assert len(store.receipts(ANYBODY, [(1).to_bytes(16, "big")])) == moved
            store.close()
            require_the_end(place, scene, {})


class Named(Executioner):
    """Kills the process at the first call of a certain function."""

    def __init__(self, name: str, *, after: bool) -> None:
        super().__init__(0, after=after)
        self._name = name

    def of(self, name: str) -> bool:
        return name == self._name


def check_whole_files_overwrite_nothing(folder: Path) -> None:
    """Somebody else takes the name between its choice and the link: both stay, and the other name is recorded before."""
    for partials in (False, True):
        place = folder / f"{partials}"
        place.mkdir()
        scene = Scene({}, (Coming("a", b"ours"),), {"a": b"theirs", "a (1)": b"ours"}, partials=partials)
        store = scene.begin(place)
        with pytest.MonkeyPatch.context() as patch:
            real = FileBatch.publish

            def publish(batch: FileBatch, place: Path = place, real: Any = real) -> None:
                if not (place / "a").exists():
                    (place / "a").write_bytes(b"theirs")
                real(batch)

            patch.setattr(FileBatch, "publish", publish)
            sender = Sender(replace(scene, reader=False))
            sender.send(store)
        assert files_in(place) == scene.wanted
        store.close()
        require_the_end(place, replace(scene, there=scene.wanted, reader=False), sender.said)


def check_another_device_is_refused(folder: Path) -> None:
    """A folder on another file system, which our syncs do not cover: the file is refused, the others are stored."""
    (folder / "mounted").mkdir()
    store = LocalStore.open(folder, now_ms=now_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_batch_module, "os", OsWithMount(str(folder / "mounted")))
        scene = Scene({}, (Coming("mounted/a", b"a"), Coming("b", b"b")), {"b": b"b"})
        sender = Sender(scene)
        sender.send(store)
    store.close()
    assert [type(error) for error in sender.refused.values()] == [NotPermitted]
    assert files_in(folder) == scene.wanted


class OsWithMount:
    """The module ``os``, for which a folder is on another device."""

    def __init__(self, mounted: str) -> None:
        self._mounted = mounted

    def fstat(self, fd: int) -> os.stat_result:
        found = os.fstat(fd)
        if os.readlink(f"/proc/self/fd/{fd}") != self._mounted:
            return found
        fields = list(found)
        fields[2] += 1
        return os.stat_result(fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def check_twins_are_one_file(folder: Path) -> None:
    """The same upload twice in one batch is one file."""
    scene = Scene({}, (Coming("a", b"a"),), {"a": b"a"})
    store = scene.begin(folder)
    twin = scene.coming[0].file(1)
    [found] = store.decide([StoreFiles(ANYBODY, (twin, twin))])
    assert isinstance(found, tuple)
    first, second = found
    if isinstance(second, Undecided):
        [[second]] = store.decide([StoreFiles(ANYBODY, (twin,), rounds=1)])  # type: ignore[misc]
    store.close()
    assert files_in(folder) == scene.wanted
    assert first == second


NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
