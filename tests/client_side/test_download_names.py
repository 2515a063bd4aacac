"""Downloads on their way to a name: never another file than the one that was verified, and never out of their folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from test_store_part_file import LABEL, LEDGER, LOCK, PARTIAL

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName, fold, holds_in_progress, is_in_progress
from blockproto.errors import BlockprotoError, FileExists, InTheWay, NotPermitted, StoreInUse
from blockproto.store import (
    BlockDone,
    Destination,
    Facts,
    Finish,
    IfExists,
    StoredFile,
    Upload,
    Verdict,
    folder_io,
    judge_taken,
)
from blockproto.store.part_file.brief_downloads import OPEN_MAX, BriefDownloads
from blockproto.store.part_file.part_names import PartFileLock, is_held
from blockproto.store.part_file.store import PartFileStore
from blockproto.store.part_file.target_folder import TargetFolder
from blockproto.testing.store_contract.steps import (
    facts_of,
    finish_of,
    key_of,
    opened,
    outcomes,
    pattern,
    stored,
    written,
)

CONTENT = pattern(200_000)
OURS, THEIRS = b"ours".ljust(len(CONTENT)), b"theirs"
OLD_NS, NEW_NS = 1_500_000_000_000_000_000, 1_600_000_000_000_000_000
KINDS = ["sidecar", "brief"]
Begun = tuple[Any, Finish]


def begin(
    kind: str, dest: Destination, rule: IfExists, content: bytes = CONTENT, mode: int | None = None
) -> Begun:
    """A store and the work that gives a complete file its name."""
    facts = Facts(SafeName.parse(dest.path.name), "", len(content), NEW_NS, mode, rule)
    root = digest_of(content)
    if kind == "sidecar":
        store: Any = PartFileStore(dest)
        upload: Upload = store.open_upload(key_of(1), facts, 1)
    else:
        store = BriefDownloads()
        upload = store.begin_at(dest, key_of(1), facts)
    upload.write(0, memoryview(content))
    block = BlockDone(upload, 1, 0, len(content), root)
    return store, Finish(upload, 1, root, len(content), facts, (block,))


def end(store: Any, work: Finish) -> StoredFile | BlockprotoError:
    [outcome] = store.decide([work])
    work.upload.close()
    store.close()
    assert isinstance(outcome, StoredFile | BlockprotoError)
    return outcome


def partial_of(folder: Path) -> Path:
    (found,) = folder.glob(".blockproto-*.part")
    return found


@pytest.fixture
def dest(tmp_path: Path) -> Destination:
    folder = tmp_path / "here"
    folder.mkdir()
    return Destination(folder / "file.bin", LABEL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "equal", "newer", "verdict"),
    [
        (IfExists.KEEP, None, False, Verdict.COMPARE),
        (IfExists.KEEP, True, True, Verdict.THERE),
        (IfExists.KEEP, False, True, Verdict.NEXT),
        (IfExists.REFUSE, None, True, Verdict.COMPARE),
        (IfExists.REFUSE, True, True, Verdict.THERE),
        (IfExists.REFUSE, False, True, Verdict.REFUSE),
        (IfExists.REPLACE, None, True, Verdict.COMPARE),
        (IfExists.REPLACE, True, True, Verdict.THERE),
        (IfExists.REPLACE, False, False, Verdict.REPLACE),
        (IfExists.SKIP, None, True, Verdict.LEAVE),
        (IfExists.SKIP, True, True, Verdict.LEAVE),
        (IfExists.UPDATE, None, True, Verdict.REPLACE),
        (IfExists.UPDATE, True, False, Verdict.LEAVE),
        (IfExists.UPDATE, False, False, Verdict.LEAVE),
    ],
)
def test_the_rule(rule: IfExists, equal: bool | None, newer: bool, verdict: Verdict) -> None:
    assert judge_taken(rule, equal=equal, newer=newer) is verdict


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list(IfExists))
@pytest.mark.parametrize("newer", [False, True])
def test_a_name_that_is_taken_meanwhile(kind: str, rule: IfExists, newer: bool, dest: Destination) -> None:
    """What the caller saw does not count: the rule is applied when the name is given."""
    store, work = begin(kind, dest, rule)
    dest.path.write_bytes(OURS)
    os.utime(dest.path, ns=(0, OLD_NS if newer else NEW_NS))
    outcome = end(store, work)
    replaced = rule is IfExists.REPLACE or (rule is IfExists.UPDATE and newer)
    assert dest.path.read_bytes() == (CONTENT if replaced else OURS)
    if rule is IfExists.KEEP:
        assert isinstance(outcome, StoredFile)
        assert outcome.stored_as == "file (1).bin"
        assert dest.path.with_name("file (1).bin").read_bytes() == CONTENT
    elif not replaced:
        assert isinstance(outcome, FileExists)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [IfExists.KEEP, IfExists.REFUSE])
def test_the_same_content_that_came_meanwhile_is_the_file(
    kind: str, rule: IfExists, dest: Destination
) -> None:
    store, work = begin(kind, dest, rule)
    dest.path.write_bytes(OURS)
    other = dest.path.with_name("file (1).bin") if rule is IfExists.KEEP else dest.path
    other.write_bytes(CONTENT)
    inode = other.stat().st_ino
    outcome = end(store, work)
    assert isinstance(outcome, StoredFile)
    assert (outcome.stored_as, other.stat().st_ino) == (other.name, inode)
    assert names(dest.path.parent) == sorted({dest.path.name, other.name})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [IfExists.REPLACE, IfExists.UPDATE])
def test_files_of_one_run_do_not_replace_each_other(kind: str, rule: IfExists, dest: Destination) -> None:
    assert isinstance(end(*begin(kind, dest, rule)), StoredFile)
    os.utime(dest.path, ns=(0, OLD_NS))
    second = Destination(dest.path, "ab" * 8, None, dest.made)
    assert isinstance(end(*begin(kind, second, rule, OURS)), FileExists)
    assert dest.path.read_bytes() == CONTENT
    another_run = Destination(dest.path, "cd" * 8)
    assert isinstance(end(*begin(kind, another_run, rule, OURS)), StoredFile)
    assert dest.path.read_bytes() == OURS


@pytest.fixture
def no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that takes names for the same that differ only in case or normalisation."""
    for method in ("open_new", "open_existing", "open_to_read", "look", "remove", "move_new", "move_over"):
        real = getattr(TargetFolder, method)

        def folded(place: TargetFolder, *names: str, _real: Any = real) -> Any:
            return _real(place, *map(fold, names))

        monkeypatch.setattr(TargetFolder, method, folded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("one", "other"), [("film", "FILM"), ("caf\u00e9", "cafe\u0301")])
@pytest.mark.usefixtures("no_case")
def test_names_that_are_one_to_the_file_system(kind: str, one: str, other: str, tmp_path: Path) -> None:
    made: set[tuple[int, int]] = set()
    first = Destination(tmp_path / one, LABEL, None, made)
    second = Destination(tmp_path / other, "ab" * 8, None, made)
    assert isinstance(end(*begin(kind, first, IfExists.REPLACE)), StoredFile)
    outcome = end(*begin(kind, second, IfExists.REPLACE, OURS))
    assert isinstance(outcome, FileExists)
    assert (tmp_path / fold(one)).read_bytes() == CONTENT
    kept = end(*begin(kind, second, IfExists.KEEP, OURS))
    assert isinstance(kept, StoredFile)
    assert kept.stored_as == f"{other} (1)"
    assert (tmp_path / fold(kept.stored_as)).read_bytes() == OURS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list(IfExists))
def test_what_is_no_file_and_comes_meanwhile_stays(kind: str, rule: IfExists, dest: Destination) -> None:
    store, work = begin(kind, dest, rule)
    other = dest.path.with_name("other")
    other.write_bytes(b"other")
    dest.path.symlink_to(other)
    assert isinstance(end(store, work), InTheWay)
    assert dest.path.is_symlink()
    assert other.read_bytes() == b"other"


# ---- which file gets the name --------------------------------------------------------------------------------------------


def swap(path: Path) -> None:
    """Put another file, of the same size and times, in the place of one."""
    found = path.stat()
    path.unlink()
    path.write_bytes(b"z" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [IfExists.KEEP, IfExists.REPLACE])
def test_another_file_in_the_place_of_the_partial_gets_no_name(
    kind: str, rule: IfExists, dest: Destination
) -> None:
    dest.path.write_bytes(OURS)
    store, work = begin(kind, dest, rule)
    swap(partial_of(dest.path.parent))
    assert isinstance(end(store, work), NotPermitted)
    assert dest.path.read_bytes() == OURS
    assert not dest.path.with_name("file (1).bin").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [IfExists.KEEP, IfExists.REPLACE])
def test_another_file_that_comes_at_the_last_moment_loses_the_name_again(
    kind: str, rule: IfExists, dest: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work = begin(kind, dest, rule)

    def swapped(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            monkeypatch.undo()
            swap(partial_of(dest.path.parent))
            real(*args, **options)

        return call

    monkeypatch.setattr(folder_io, "move_new", swapped(folder_io.move_new))
    monkeypatch.setattr(os, "replace", swapped(os.replace))
    outcome = end(store, work)
    assert isinstance(outcome, NotPermitted)
    assert "another file" in str(outcome)
    assert not dest.path.exists()


def test_a_partial_with_another_name_is_not_gone_on_with(dest: Destination) -> None:
    """It is a finished file by another name: what is written into it would be written into that."""
    content = pattern(2 * BLOCK_LENGTH)
    store = PartFileStore(dest)
    upload = opened(store, len(content))
    assert outcomes(store, *written(upload, content, [0])) == [None]
    store.close()
    kept = dest.path.with_name("kept")
    os.link(dest.path.parent / PARTIAL, kept)
    before = kept.read_bytes()
    store = PartFileStore(dest)
    again = opened(store, len(content))
    assert len(again.held) == 0
    stored(store, *written(again, content), finish_of(again, content))
    store.close()
    assert kept.read_bytes() == before
    assert kept.stat().st_ino != dest.path.stat().st_ino


@pytest.mark.parametrize("name", [PARTIAL, LEDGER, LOCK])
def test_a_link_under_a_name_of_ours_is_not_followed(name: str, dest: Destination) -> None:
    other = dest.path.with_name("other")
    other.write_bytes(b"precious")
    (dest.path.parent / name).symlink_to(other)
    with pytest.raises(InTheWay) if name != LEDGER else nullcontext():
        end(*begin("sidecar", dest, IfExists.KEEP))
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", KINDS)
def test_files_in_progress_are_for_their_owner_only(kind: str, dest: Destination) -> None:
    store, work = begin(kind, dest, IfExists.KEEP, CONTENT[:100_000], mode=0o644)
    if kind == "sidecar":
        store.decide([work.blocks[0]])
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in dest.path.parent.iterdir())
    end(store, work)
    assert stat.S_IMODE(dest.path.stat().st_mode) == 0o644


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "applied"), [(0o4755, 0o755), (0o6755, 0o755), (0o7777, 0o777), (0o1640, 0o640)]
)
def test_nine_bits_of_a_mode_are_applied(kind: str, mode: int, applied: int, dest: Destination) -> None:
    end(*begin(kind, dest, IfExists.KEEP, mode=mode))
    assert dest.path.stat().st_mode & 0o7777 == applied


def test_nine_bits_are_applied_to_folders(tmp_path: Path) -> None:
    place = TargetFolder(tmp_path / "folder", make=True)
    place.set_facts(0o7755, NEW_NS)
    place.close()
    assert (tmp_path / "folder").stat().st_mode & 0o7777 == 0o755


# ---- the folder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_becomes_a_link_leads_nowhere_else(kind: str, tmp_path: Path) -> None:
    top, outside = tmp_path / "top", tmp_path / "outside"
    (top / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "file.bin").write_bytes(b"precious")
    store, work = begin(kind, Destination(top / "sub" / "file.bin", LABEL, top), IfExists.REPLACE)
    (top / "sub").rename(top / "moved")
    (top / "sub").symlink_to(outside)
    end(store, work)
    assert (outside / "file.bin").read_bytes() == b"precious"
    assert names(outside) == ["file.bin"]


@pytest.mark.parametrize("kind", KINDS)
def test_links_below_are_not_followed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "top").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(InTheWay, match="keep-dirlinks"):
        begin(kind, Destination(tmp_path / "top" / "sub" / "a", LABEL, tmp_path / "top"), IfExists.KEEP)
    assert names(tmp_path / "outside") == []
    end(*begin(kind, Destination(tmp_path / "top" / "sub" / "a", LABEL), IfExists.KEEP))
    assert names(tmp_path / "outside") == ["a"]


def test_many_folders_hold_few_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with closing(BriefDownloads()) as store:
        works = []
        for number in range(3 * OPEN_MAX):
            folder = tmp_path / str(number)
            folder.mkdir()
            facts = facts_of(5, "a")
            upload = store.begin_at(Destination(folder / "a", LABEL, tmp_path), key_of(1), facts)
            upload.write(0, memoryview(b"12345"))
            works.append(
                Finish(
                    upload,
                    0,
                    digest_of(b"12345"),
                    5,
                    facts,
                    (BlockDone(upload, 0, 0, 5, digest_of(b"12345")),),
                )
            )
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_MAX + 8
        assert all(isinstance(outcome, StoredFile) for outcome in store.decide(works))
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_MAX + 8
    assert len(os.listdir("/proc/self/fd")) == before


# ---- locks and names -----------------------------------------------------------------------------------------------------


def test_a_lock_that_was_removed_is_not_a_lock(tmp_path: Path) -> None:
    """One process opens the lock, its holder removes it and lets go, a third makes it anew: two would hold one each."""
    place = TargetFolder(tmp_path)
    first = PartFileLock(place, "lock")
    assert is_held(place, "lock")
    with pytest.raises(StoreInUse):
        PartFileLock(place, "lock")
    (tmp_path / "lock").unlink()
    second = PartFileLock(place, "lock")  # of another file, which has the name now
    assert is_held(place, "lock")
    second.release()
    first.release()
    assert not is_held(place, "lock")
    assert names(tmp_path) == []
    place.close()


@pytest.mark.parametrize(
    "name",
    [
        ".blockproto-",
        ".blockproto-0123456789abcdef.part",
        ".BLOCKPROTO-x",
        ".block\u200bproto-x",
        ".ｂlockproto-x",
    ],
)
def test_names_that_some_file_system_takes_for_ours(name: str) -> None:
    assert is_in_progress(name)
    assert holds_in_progress(f"a/{name}/b")


@pytest.mark.parametrize("name", [".blockprotocol", "a.blockproto-part", "blockproto-x", "x.blockproto-x"])
def test_names_that_are_nobody_s(name: str) -> None:
    assert not is_in_progress(name)
    assert not holds_in_progress(f"a/{name}/b")
