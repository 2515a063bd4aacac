"""What all stores decide alike, and the ledger's records."""

from __future__ import annotations

import struct
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto.common.blocks import BlockSet
from blockproto.common.names import (
    COMPONENT_LENGTH_MAX,
    FILENAME_LENGTH_MAX,
    SafeName,
    free_entries,
    split_ending,
)
from blockproto.common.times import LATEST_KEPT_NS
from blockproto.errors import FileExists, NameRefused, NotPermitted
from blockproto.store import Facts, IfExists, Prefix, UploadKey, Verdict
from blockproto.store.local.records import (
    PAGE_BLOCKS,
    Finalising,
    Identity,
    ReceiptRecord,
    State,
    UploadRecord,
    held_runs,
    mark,
    pack_prefixes,
    unpack_prefixes,
    upload_key,
)
from blockproto.store.name_rules import Kind, decide_name, is_later
from blockproto.store.rules import TRIED_IN_TURN, first_free, free_names
from blockproto.store.upload_state import Shape


@pytest.mark.parametrize(
    ("name", "stem", "ending"),
    [
        ("a.txt", "a", ".txt"),
        ("a.b.txt", "a.b", ".txt"),
        ("a.tar.gz", "a", ".tar.gz"),
        ("A.TAR.XZ", "A", ".TAR.XZ"),
        (".tar.gz", ".tar", ".gz"),
        (".bashrc", ".bashrc", ""),
        ("..x", "..x", ""),
        ("no ending", "no ending", ""),
        ("Dr. Who", "Dr. Who", ""),
        ("dot.", "dot.", ""),
        ("x." + "y" * 40, "x." + "y" * 40, ""),
        ("照片.jpg", "照片", ".jpg"),
    ],
)
def test_endings(name: str, stem: str, ending: str) -> None:
    assert split_ending(name) == (stem, ending)


def test_free_names() -> None:
    names = [name.text for name in islice(free_names(SafeName.parse("a/b/c.tar.gz")), 3)]
    assert names == ["a/b/c (1).tar.gz", "a/b/c (2).tar.gz", "a/b/c (3).tar.gz"]


@given(
    st.text("ab長é", min_size=1, max_size=80), st.sampled_from(["", ".txt", ".tar.gz"]), st.integers(0, 900)
)
def test_free_names_are_never_too_long(stem: str, ending: str, above: int) -> None:
    folders = "/".join(["f" * 100] * (above // 100))
    name = f"{folders}/{stem}{ending}" if folders else stem + ending
    if len(name.encode()) > FILENAME_LENGTH_MAX or len((stem + ending).encode()) > COMPONENT_LENGTH_MAX:
        return
    for free in islice(free_names(SafeName.parse(name)), 12):
        assert len(free.text.encode()) <= FILENAME_LENGTH_MAX
        assert len(free.components[-1].encode()) <= COMPONENT_LENGTH_MAX
        assert free.text.endswith(")" + ending)


@given(st.sets(st.integers(1, 60), max_size=60), st.integers(0, 5000))
def test_the_first_free_name_is_found_with_few_looks(gaps: set[int], taken: int) -> None:
    filename = SafeName.parse("a/b.txt")
    others = {f"a/b ({number}).txt" for number in range(1, taken + 1) if number not in gaps}
    asked: list[str] = []

    def is_free(name: SafeName) -> bool:
        asked.append(name.text)
        return name.text not in others

    found = first_free(filename, is_free)
    assert found.text not in others
    assert len(asked) <= TRIED_IN_TURN + 2 * max(taken, 1).bit_length()
    first = min(number for number in range(1, taken + 2) if f"a/b ({number}).txt" not in others)
    if first < TRIED_IN_TURN or not gaps:
        assert found.text == f"a/b ({first}).txt"


def test_no_room_for_a_number() -> None:
    with pytest.raises(NameRefused):
        next(free_entries("name.txt", 7))


@given(st.sets(st.integers(0, 3 * PAGE_BLOCKS), max_size=300), st.sets(st.integers(0, 300), max_size=50))
def test_bitmaps_tell_what_was_marked(held: set[int], dropped: set[int]) -> None:
    pages: dict[int, bytearray] = {}
    for blocknos, value in ((held, True), (dropped, False)):
        for blockno in blocknos:
            page = pages.setdefault(blockno // PAGE_BLOCKS, bytearray(PAGE_BLOCKS // 8))
            mark(page, blockno, value)
    found = BlockSet(held_runs((page, bytes(bitmap)) for page, bitmap in sorted(pages.items())))
    assert set(found) == held - dropped


def test_a_full_page() -> None:
    assert list(held_runs([(2, b"\xff" * (PAGE_BLOCKS // 8))])) == [(2 * PAGE_BLOCKS, PAGE_BLOCKS)]
    assert list(held_runs([(0, b"\x80" + bytes(PAGE_BLOCKS // 8 - 2) + b"\x01")])) == [
        (0, 1),
        (PAGE_BLOCKS - 1, 1),
    ]


@pytest.mark.parametrize(
    "facts",
    [
        Facts(SafeName.parse("長/x"), "text/plain", 0, -1, 0, IfExists.KEEP),
        Facts(SafeName.parse("x"), "", None, None, None, IfExists.REPLACE),
        Facts(SafeName.parse("x"), "a/b", (1 << 63) - 1, (1 << 63) - 1, 0o777, IfExists.REFUSE),
    ],
)
def test_records_come_back(facts: Facts) -> None:
    key = UploadKey(b"p" * 16, b"s" * 16)
    shape = Shape(0, facts.filesize, None if facts.filesize is not None else 77)
    upload = UploadRecord(key, facts, b"i" * 16, b"f" * 16, 1 << 62, 1 << 61, shape)
    assert UploadRecord.unpack(upload_key(key), upload.pack()) == upload
    receipt = ReceiptRecord(
        key, b"f" * 16, b"r" * 32, 5, Identity(1, 2, 3, -4), 9, facts.filename.text, facts.filetype
    )
    assert ReceiptRecord.unpack(b"f" * 16, receipt.pack()) == receipt
    finalising = Finalising(b"i" * 16, facts.if_exists)
    assert Finalising.unpack(finalising.pack()) == finalising
    state = State(7, b"s" * 32)
    assert State.unpack(state.pack()) == state
    assert (state.raised(5).incarnation, state.raised(100).incarnation) == (8, 100)
    prefixes = {3: Prefix(5, b"d" * 32), 1: Prefix(1 << 20, b"e" * 32)}
    assert unpack_prefixes(pack_prefixes(prefixes)) == prefixes


def test_a_state_of_another_format() -> None:
    with pytest.raises(ValueError, match="format"):
        State.unpack(struct.pack(">IQ32s", 99, 1, b""))


@pytest.mark.clause("BP1-COM-013", "BP1-COM-022", "BP1-COM-025")
@pytest.mark.parametrize(
    ("rule", "there", "equal", "newer", "verdict"),
    [
        (IfExists.KEEP, Kind.FILE, None, False, Verdict.COMPARE),
        (IfExists.KEEP, Kind.FILE, True, True, Verdict.THERE),
        (IfExists.KEEP, Kind.FILE, False, True, Verdict.NEXT),
        (IfExists.KEEP, Kind.FOLDER, None, False, Verdict.NEXT),
        (IfExists.KEEP, Kind.OTHER, None, False, Verdict.NEXT),
        (IfExists.REFUSE, Kind.FILE, None, False, Verdict.COMPARE),
        (IfExists.REFUSE, Kind.FILE, True, False, Verdict.THERE),
        (IfExists.REFUSE, Kind.FILE, False, True, Verdict.REFUSE),
        (IfExists.REFUSE, Kind.FOLDER, None, False, Verdict.REFUSE),
        (IfExists.REPLACE, Kind.FILE, None, False, Verdict.COMPARE),
        (IfExists.REPLACE, Kind.FILE, True, False, Verdict.THERE),
        (IfExists.REPLACE, Kind.FILE, False, False, Verdict.REPLACE),
        (IfExists.SKIP, Kind.FILE, None, True, Verdict.LEAVE),
        (IfExists.SKIP, Kind.FOLDER, None, True, Verdict.LEAVE),
        (IfExists.SKIP, Kind.OTHER, None, True, Verdict.LEAVE),
        (IfExists.UPDATE, Kind.FILE, None, False, Verdict.LEAVE),
        (IfExists.UPDATE, Kind.FILE, True, False, Verdict.LEAVE),
        (IfExists.UPDATE, Kind.FILE, None, True, Verdict.COMPARE),
        (IfExists.UPDATE, Kind.FILE, True, True, Verdict.THERE),
        (IfExists.UPDATE, Kind.FILE, False, True, Verdict.REPLACE),
    ],
)
def test_a_name_that_is_taken(
    rule: IfExists, there: Kind, equal: bool | None, newer: bool, verdict: Verdict
) -> None:
    assert decide_name(rule, there, equal=equal, newer=newer) is verdict


@pytest.mark.clause("BP1-COM-013", "BP1-COM-025")
@pytest.mark.parametrize("rule", list(IfExists))
def test_a_folder_whose_name_is_taken(rule: IfExists) -> None:
    left = rule in (IfExists.SKIP, IfExists.UPDATE)
    verdict = decide_name(rule, Kind.FOLDER, folder=True, equal=None, newer=True)
    assert verdict is (Verdict.LEAVE if left else Verdict.THERE)
    for there in (Kind.FILE, Kind.OTHER):
        with pytest.raises(FileExists):
            decide_name(rule, there, folder=True, equal=None, newer=True)


@pytest.mark.parametrize("rule", [IfExists.REPLACE, IfExists.UPDATE])
@pytest.mark.parametrize("there", [Kind.FOLDER, Kind.OTHER])
def test_what_is_no_file_is_not_replaced(rule: IfExists, there: Kind) -> None:
    with pytest.raises(NotPermitted):
        decide_name(rule, there, equal=None, newer=False)


def test_later_is_strict_and_within_what_can_be_kept() -> None:
    def facts(mtime_ns: int | None) -> Facts:
        return Facts(SafeName.parse("a"), "a/b", 1, mtime_ns)

    assert is_later(facts(2), 1)
    assert is_later(facts(-4), -5)
    assert not is_later(facts(1), 1)
    assert not is_later(facts(None), -5)
    assert not is_later(facts(1 << 62), LATEST_KEPT_NS[1])
