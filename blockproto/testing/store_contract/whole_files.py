"""The rules of several whole files in one work: each has its own outcome, as if it had come alone (BP1-BLK, BP1-COM)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, digest_of
from ...common.names import SafeName
from ...errors import FileExists, NotPermitted, QuotaExceeded, SourceChanged, StoreFailed, StoreFull
from ...store import (
    FOLDER_FILETYPE,
    AskFirst,
    Facts,
    FileOutcome,
    IfExists,
    KeepPrefixes,
    Outcome,
    Prefix,
    Remove,
    StoredFile,
    StoreFiles,
    Undecided,
    WholeFile,
)
from .place import FilePlace
from .same_files import names, read_named
from .steps import ANYBODY, NAME, clause, facts_of, key_of, opened, outcome, outcomes, pattern, written

KEEP, REFUSE, REPLACE, SKIP, UPDATE = IfExists
EARLIER_NS, LATER_NS = 1_600_000_000_000_000_000, 1_700_000_000_000_000_000
RULES = [
    (KEEP, "file (1).bin", b"new"),
    (REFUSE, FileExists, b"old"),
    (REPLACE, NAME, b"new"),
    (SKIP, NAME, b"old"),
    (UPDATE, NAME, b"new"),
]


def whole(
    name: str = NAME, content: bytes = b"content", number: int = 1, rule: IfExists = KEEP, **facts: object
) -> WholeFile:
    """A file that has come whole, with a late mtime."""
    stated = replace(facts_of(len(content), name, rule), mtime_ns=LATER_NS)
    stated = replace(stated, **facts)  # type: ignore[arg-type]
    return WholeFile(key_of(number), stated, digest_of(content), memoryview(content))


def folder(name: str, number: int = 1, **facts: object) -> WholeFile:
    """A folder that comes among files."""
    stated = replace(Facts(SafeName.parse(name), FOLDER_FILETYPE, 0), **facts)  # type: ignore[arg-type]
    return WholeFile(key_of(number), stated, EMPTY_DIGEST, b"")


def outcomes_of(
    place: FilePlace, *files: WholeFile, reader: bool = False, rounds: int = 0
) -> list[FileOutcome]:
    """The outcomes of files that come in one work."""
    found = outcome(place.store, StoreFiles(ANYBODY, files, reader, rounds))
    assert isinstance(found, tuple)
    assert len(found) == len(files)
    return list(found)


def all_outcomes(place: FilePlace, *files: WholeFile) -> list[FileOutcome]:
    """The outcomes for a principal that may read, once everything that had to be read was read."""
    found = outcomes_of(place, *files, reader=True)
    rounds = 0
    while again := [at for at, one in enumerate(found) if isinstance(one, Undecided)]:
        rounds += 1
        for at in again:
            undecided = found[at]
            assert isinstance(undecided, Undecided)
            read_named(place, undecided)
        left = (files[at] for at in again)
        for at, one in zip(again, outcomes_of(place, *left, reader=True, rounds=rounds), strict=True):
            found[at] = one
    return found


def stored_as(outcome: Outcome) -> object:
    """The name a file was stored under, or why it was not."""
    return outcome.stored_as if isinstance(outcome, StoredFile) else type(outcome)


class WholeFileRules:
    """For what also serves finished files."""

    def test_many_files_and_their_facts_survive_a_crash(self, place: FilePlace) -> None:
        files = [
            whole(f"d{number % 3}/sub/{number}", pattern(7 * number), number, mode=0o640)
            for number in range(60)
        ]
        found = outcomes_of(place, *files)
        place.crash()
        assert place.files.receipts(ANYBODY, [file.key.sourceid for file in files]) == found
        for file, receipt in zip(files, found, strict=True):
            assert isinstance(receipt, StoredFile)
            assert (receipt.root, receipt.filesize) == (file.root, len(file.content))
            entry = place.files.stat(file.facts.filename)
            assert (entry.file_id, entry.mtime_ns, entry.mode) == (receipt.file_id, LATER_NS, 0o640)
            assert entry.filetype == "application/x-test"
            assert place.content(entry.filename.text) == file.content
        assert place.leftovers() == 0

    def test_files_that_were_prepared_are_stored_as_others_are(self, place: FilePlace) -> None:
        contents = {f"d{number % 3}/{number}": pattern(7 * number) for number in range(1, 41)}
        files = [whole(name, content, at) for at, (name, content) in enumerate(contents.items(), 1)]
        prepared = place.files.prepare(files, lambda: None)
        assert names(place) == []
        found = outcome(place.store, StoreFiles(ANYBODY, tuple(files), prepared=prepared))
        assert isinstance(found, tuple)
        assert [stored_as(one) for one in found] == list(contents)
        place.crash()
        assert {name: place.content(name) for name in contents} == contents

    def test_nothing_stays_of_files_that_were_only_prepared(self, place: FilePlace) -> None:
        place.files.prepare(
            [whole(f"d/{number}", b"content", number) for number in range(1, 41)], lambda: None
        )
        place.crash()
        assert names(place) == []
        assert place.leftovers() == 0

    def test_a_file_that_was_stored_is_answered_by_its_receipt(self, place: FilePlace) -> None:
        first = outcomes_of(place, whole("a"), whole("b", number=2))
        assert outcomes_of(place, whole("a"), whole("b", number=2)) == first
        place.crash()
        assert outcomes_of(place, whole("a"), whole("b", number=2)) == first
        assert names(place) == ["a", "b"]
        assert isinstance(outcomes_of(place, whole("a", b"other"))[0], SourceChanged)

    def test_a_receipt_whose_file_is_gone_does_not_count(self, place: FilePlace) -> None:
        outcomes_of(place, whole("a"))
        assert outcome(place.store, Remove(SafeName.parse("a"))) is None
        assert stored_as(outcomes_of(place, whole("a"))[0]) == "a"
        assert place.content("a") == b"content"

    def test_one_that_fails_fails_alone(self, place: FilePlace) -> None:
        outcomes_of(place, whole("taken", b"old"))
        veto = QuotaExceeded("no more bytes", current=0)
        vetoed = whole("vetoed", number=6)._replace(veto=veto)
        found = outcomes_of(
            place,
            whole("first", number=2),
            whole("taken", b"new", 3, REFUSE),
            whole("taken/inside", number=4),
            folder("taken", number=5),
            vetoed,
            whole("last", number=7),
        )
        wanted = ["first", FileExists, NotPermitted, FileExists, QuotaExceeded, "last"]
        assert [stored_as(one) for one in found] == wanted
        assert names(place) == ["first", "last", "taken"]
        assert place.content("taken") == b"old"

    def test_a_veto_does_not_concern_what_is_there(self, place: FilePlace) -> None:
        first = outcomes_of(place, whole("a"))
        again = whole("a")._replace(veto=QuotaExceeded("no more bytes", current=0))
        assert outcomes_of(place, again) == first

    def test_files_without_bytes_and_folders(self, place: FilePlace) -> None:
        found = outcomes_of(
            place,
            whole("empty", b""),
            folder("some/folder", 2, mode=0o750, mtime_ns=EARLIER_NS),
            whole("some/folder/in", number=3),
            folder("some/folder", 4, mode=0o750, mtime_ns=EARLIER_NS),
        )
        assert [stored_as(one) for one in found] == ["empty", "some/folder", "some/folder/in", "some/folder"]
        assert names(place) == ["empty", "some", "some/folder", "some/folder/in"]
        entry = place.files.stat(SafeName.parse("some/folder"))
        assert (entry.folder, entry.mode, entry.filetype) == (True, 0o750, FOLDER_FILETYPE)
        assert entry.mtime_ns == EARLIER_NS, "it has its own time, whatever was put into it in the same batch"

    @pytest.mark.parametrize("there", ["stored", "by hand"])
    @pytest.mark.parametrize(("rule", "name", "content"), RULES, ids=[rule.name for rule, *_ in RULES])
    def test_a_name_that_is_taken(
        self, place: FilePlace, rule: IfExists, name: object, content: bytes, there: str
    ) -> None:
        if there == "stored":
            outcomes_of(place, whole(NAME, b"old", mtime_ns=EARLIER_NS))
        else:
            place.put_there(NAME, b"old")
        before = place.files.stat(SafeName.parse(NAME))
        (found,) = outcomes_of(place, whole(NAME, b"new", 2, rule, mtime_ns=before.mtime_ns + 1_000_000_000))
        assert stored_as(found) == name
        assert isinstance(found, FileExists) or getattr(found, "left", None) is (rule is SKIP)
        where = name if isinstance(name, str) else NAME
        assert place.content(where) == content
        place.crash()
        assert place.content(where) == content
        assert len(names(place)) == (2 if rule is KEEP else 1)
        assert place.leftovers() == 0

    def test_an_older_file_is_left_out_of_an_update(self, place: FilePlace) -> None:
        outcomes_of(place, whole(NAME, b"old"))
        (found,) = outcomes_of(place, whole(NAME, b"new", 2, UPDATE, mtime_ns=EARLIER_NS))
        assert isinstance(found, StoredFile)
        assert (found.left, place.content(NAME)) == (True, b"old")

    def test_files_of_one_batch_see_each_other(self, place: FilePlace) -> None:
        files = [whole(NAME, bytes([number]), number) for number in range(1, 4)]
        works = StoreFiles(ANYBODY, tuple(files[:2])), StoreFiles(ANYBODY, tuple(files[2:]))
        first, second = outcomes(place.store, *works)
        assert isinstance(first, tuple)
        assert isinstance(second, tuple)
        found = sorted(str(stored_as(one)) for one in (*first, *second))
        assert found == ["file (1).bin", "file (2).bin", "file.bin"]

    def test_a_file_that_comes_twice_at_once_is_stored_once(self, place: FilePlace) -> None:
        found = all_outcomes(place, whole("a"), whole("a"), whole("b", number=2))
        assert found[0] == found[1]
        assert names(place) == ["a", "b"]
        found = all_outcomes(place, whole("c", b"one", 3), whole("c", b"two", 3))
        assert sorted(stored_as(one) == "c" for one in found) == [False, True]
        assert [type(one) for one in found if stored_as(one) != "c"] == [SourceChanged]

    @pytest.mark.parametrize("there", ["stored", "by hand"])
    @pytest.mark.parametrize("rule", [KEEP, REFUSE, REPLACE])
    def test_whole_files_of_the_same_content_are_the_file(
        self, place: FilePlace, rule: IfExists, there: str
    ) -> None:
        if there == "stored":
            outcomes_of(place, whole(NAME, mode=0o600))
        else:
            place.put_there(NAME, b"content")
        coming = whole(NAME, number=2, rule=rule, mode=0o640)
        different = whole(NAME, b"another", 3, KEEP)
        found, other = all_outcomes(place, coming, different)
        assert isinstance(found, StoredFile)
        assert (found.there, found.stored_as) == (True, NAME)
        assert stored_as(other) == "file (1).bin"
        assert names(place) == ["file (1).bin", NAME]
        if rule is REPLACE:
            assert place.files.stat(SafeName.parse(NAME)).mode == 0o640
        place.crash()
        again = place.files.receipts(ANYBODY, [key_of(2).sourceid])
        assert [one.stored_as for one in again] == [NAME]

    def test_a_replaced_file_is_the_file_from_then_on(self, place: FilePlace) -> None:
        outcomes_of(place, whole(NAME, b"one"))
        for number in range(2, 5):
            (found,) = all_outcomes(place, whole(NAME, bytes([number]), number, REPLACE))
            assert stored_as(found) == NAME
        assert place.content(NAME) == bytes([4])
        assert place.files.receipts(ANYBODY, [key_of(1).sourceid]) == []
        assert names(place) == [NAME]

    def test_two_of_a_batch_replace_one_file(self, place: FilePlace) -> None:
        outcomes_of(place, whole(NAME, b"one"))
        found = all_outcomes(place, whole(NAME, b"two", 2, REPLACE), whole(NAME, b"three", 3, REPLACE))
        assert [stored_as(one) for one in found] == [NAME, NAME]
        assert place.content(NAME) in (b"two", b"three")
        assert names(place) == [NAME]
        assert place.leftovers() == 0

    def test_it_ends_an_upload_of_the_same_key(self, place: FilePlace) -> None:
        content = pattern(100)
        upload = opened(place.store, len(content))
        upload.write(0, memoryview(content[:50]))
        assert outcome(place.store, KeepPrefixes(upload, 1, {0: Prefix(50, digest_of(content[:50]))})) is None
        upload.close()
        assert stored_as(outcomes_of(place, whole(NAME, content))[0]) == NAME
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        place.crash()
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        assert place.leftovers() == 0

    def test_they_come_beside_other_works(self, place: FilePlace) -> None:
        content = pattern(100)
        upload = opened(place.store, len(content), number=9, name="big")
        blocks = written(upload, content)
        files = StoreFiles(ANYBODY, (whole("a"), whole("b", number=2)))
        *others, found = outcomes(place.store, *blocks, files)
        assert others == [None]
        assert isinstance(found, tuple)
        assert [stored_as(one) for one in found] == ["a", "b"]
        upload.close()

    @clause("BP1-COM-029")
    def test_hooks_are_asked_before_a_file_gets_its_name(self, place: FilePlace) -> None:
        first = outcomes_of(place, whole("there"))
        place.put_there("same", b"content")
        files = (
            whole("there"),
            whole("a", number=2),
            folder("f", 3),
            whole("there", b"refused", 4, REFUSE),
            whole("there", b"left", 5, SKIP),
        )
        unasked = StoreFiles(ANYBODY, files, unasked=True)
        found = outcome(place.store, unasked)
        assert isinstance(found, tuple)
        assert [stored_as(one) for one in found] == ["there", AskFirst, AskFirst, FileExists, "there"]
        assert found[0] == first[0]
        assert [one.file_id for one in found if isinstance(one, AskFirst)] == [
            one.file_id for one in outcomes_of(place, *files[1:3]) if isinstance(one, StoredFile) and one.new
        ]
        assert names(place) == ["a", "f", "same", "there"]

    def test_only_what_is_new_says_so(self, place: FilePlace) -> None:
        files = whole("a"), folder("f", 2)
        assert [getattr(one, "new", None) for one in outcomes_of(place, *files)] == [True, True]
        assert [getattr(one, "new", None) for one in outcomes_of(place, *files)] == [False, False]
        again = all_outcomes(place, whole("a", number=3))
        assert [(getattr(one, "new", None), getattr(one, "there", None)) for one in again] == [(True, True)]
        left = outcomes_of(place, whole("a", b"left", 4, SKIP))
        assert [getattr(one, "new", None) for one in left] == [False]

    def test_a_full_disk(self, place: FilePlace) -> None:
        outcomes_of(place, whole("before"))
        place.fill_disk()
        files = [whole(f"{number}", pattern(BLOCK_LENGTH, number), number) for number in range(2, 9)]
        found = outcomes_of(place, *files)
        assert StoreFull in [stored_as(one) for one in found]
        there = {str(stored_as(one)) for one in found if isinstance(one, StoredFile)}
        assert set(names(place)) == {"before", *there}
        assert place.leftovers() == 0

    def test_a_medium_that_reports_an_error_stores_nothing(self, place: FilePlace) -> None:
        place.break_medium()
        with pytest.raises(StoreFailed):
            outcomes_of(place, whole("a"), whole("b", number=2))
        with pytest.raises(StoreFailed):
            outcomes_of(place, whole("c", number=3))
