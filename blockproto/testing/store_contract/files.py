"""The rules of finished files: looking, listing, reading, removing, receipts, and what expires."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ...common.blocks import BLOCK_LENGTH, digest_of
from ...common.names import SafeName
from ...errors import (
    DigestsDiffer,
    FileExists,
    NotEmpty,
    NotPermitted,
    UnknownFile,
)
from ...store import (
    FOLDER_FILETYPE,
    Adopt,
    AskFirst,
    IfExists,
    KeepPrefixes,
    Prefix,
    RecordB3sum,
    Remove,
    StoredFile,
)
from ...store.rules import EXPIRY_MS
from .place import FilePlace, Place
from .steps import (
    ANYBODY,
    NAME,
    brief_of,
    clause,
    committing,
    facts_of,
    finish_of,
    key_of,
    make_folder,
    names_in,
    opened,
    outcome,
    outcomes,
    pattern,
    put,
    read_all,
    refused,
    stored,
    written,
)


class FileRules:
    """For what also serves finished files."""

    def take_away(self, place: Place) -> None:
        assert outcome(place.store, Remove(SafeName.parse(NAME))) is None

    def mode_and_mtime(self, place: Place) -> tuple[int, int]:
        entry = place.store.stat(SafeName.parse(NAME))  # type: ignore[attr-defined]
        return entry.mode, entry.mtime_ns

    # -- one entry

    def test_stat(self, place: FilePlace) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        receipt = put(place.store, NAME, content)
        entry = place.files.stat(SafeName.parse(NAME))
        assert (entry.folder, entry.filesize, entry.filetype) == (False, len(content), "application/x-test")
        assert (entry.file_id, entry.root, entry.b3sum) == (receipt.file_id, receipt.root, None)
        with pytest.raises(UnknownFile):
            place.files.stat(SafeName.parse("other"))

    @clause("BP1-FET-004")
    def test_a_replaced_file_has_another_version(self, place: FilePlace) -> None:
        put(place.store, NAME, b"one")
        before = place.files.stat(SafeName.parse(NAME)).version
        put(place.store, NAME, b"two!", number=2, if_exists=IfExists.REPLACE)
        assert place.files.stat(SafeName.parse(NAME)).version != before

    def test_reading(self, place: FilePlace) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        receipt = put(place.store, "deep/er/file", content)
        by_name = read_all(lambda: place.files.open_file(SafeName.parse("deep/er/file"), None), len(content))
        by_id = read_all(lambda: place.files.open_file(None, receipt.file_id), len(content))
        assert by_name == by_id == content

    def test_an_id_means_nothing_outside_the_folder_asked_in(self, place: FilePlace) -> None:
        receipt = put(place.store, "alice/note", b"hello")
        open_file = place.files.open_file
        assert read_all(lambda: open_file(None, receipt.file_id, SafeName("alice")), 5) == b"hello"
        for folder in ("bob", "ali", "alice/note", "alice/not"):
            with pytest.raises(UnknownFile) as foreign:
                open_file(None, receipt.file_id, SafeName(folder))
            with pytest.raises(UnknownFile) as unknown:
                open_file(None, b"x" * 16, SafeName(folder))
            assert str(foreign.value) == str(unknown.value)

    def test_an_open_file_keeps_its_bytes(self, place: FilePlace) -> None:
        put(place.store, NAME, b"one")
        reader = place.files.open_file(SafeName.parse(NAME), None)
        put(place.store, NAME, b"two", number=2, if_exists=IfExists.REPLACE)
        view = memoryview(bytearray(3))
        assert reader.read_into(0, view) == 3
        assert bytes(view) == b"one"
        assert reader.unchanged()
        reader.close()
        reader.close()

    def test_the_stated_capabilities_are_true(self, place: FilePlace) -> None:
        stated = place.files.capabilities
        facts = replace(facts_of(3), mode=0o640)
        stored(place.store, replace(brief_of(place.store, b"one"), facts=facts))
        made = make_folder(place.store, "empty", number=2)
        assert (place.files.stat(SafeName.parse(NAME)).mode == 0o640) is stated.modes
        assert (isinstance(made, StoredFile) and "empty" in names_in(place.files)) is stated.folders

    def test_reading_what_is_not_there(self, place: FilePlace) -> None:
        for name, file_id in (
            (SafeName.parse("no"), None),
            (None, bytes(16)),
            (None, b"x" * 16),
            (None, None),
        ):
            with pytest.raises(UnknownFile):
                place.files.open_file(name, file_id)
        make_folder(place.store, "folder")
        with pytest.raises(NotPermitted):
            place.files.open_file(SafeName.parse("folder"), None)

    # -- folders

    def test_a_folder_is_made_once(self, place: FilePlace) -> None:
        first = make_folder(place.store, "some/folder")
        assert isinstance(first, StoredFile)
        assert isinstance(make_folder(place.store, "some/folder", number=2), StoredFile)
        assert make_folder(place.store, "some/folder") == first
        assert names_in(place.files) == ["some", "some/folder"]
        entry = place.files.stat(SafeName.parse("some/folder"))
        assert (entry.folder, entry.filetype, entry.filesize) == (True, FOLDER_FILETYPE, 0)

    def test_a_file_stands_where_a_folder_should_be(self, place: FilePlace) -> None:
        put(place.store, "thing", b"file")
        assert isinstance(make_folder(place.store, "thing", number=2), FileExists)
        assert isinstance(make_folder(place.store, "thing/inside", number=2), NotPermitted)
        upload = opened(place.store, 1, number=3, name="thing/inside")
        works = written(upload, b"x")
        found = outcomes(place.store, *works, finish_of(upload, b"x", name="thing/inside"))
        assert isinstance(found[-1], NotPermitted)
        assert names_in(place.files) == ["thing"]

    def test_a_folder_stands_where_a_file_should_be(self, place: FilePlace) -> None:
        make_folder(place.store, "thing")
        assert put(place.store, "thing", b"1", number=2).stored_as == "thing (1)"
        upload = opened(place.store, 1, number=3, name="thing")
        finish = finish_of(upload, b"x", name="thing", if_exists=IfExists.REPLACE)
        found = outcomes(place.store, *written(upload, b"x"), finish)
        assert isinstance(found[-1], NotPermitted)

    def test_a_page_that_ends_with_the_last_entry_is_the_last(self, place: FilePlace) -> None:
        for number, name in enumerate(("a", "b", "c"), 1):
            put(place.store, name, b"1", number=number)
        for limit, cursors in ((3, [""]), (2, ["b", ""]), (1, ["a", "b", ""])):
            told: list[str] = []
            cursor = ""
            while not told or cursor:
                cursor = place.files.files("", True, cursor, limit)[1]
                told.append(cursor)
            assert told == cursors

    def test_a_cursor_that_no_listing_gave(self, place: FilePlace) -> None:
        put(place.store, "thing", b"1")
        for cursor in ("\udcff\udcfe", "\0", "zz", "9" * 5000):
            place.files.files("", True, cursor, 10)
            with pytest.raises(NotPermitted, match="cursor"):
                place.files.uploads(bytes(16), cursor, 10)

    # -- two files of one name

    def test_two_of_one_name_in_one_batch(self, place: FilePlace) -> None:
        works = [brief_of(place.store, bytes([n]), number=n) for n in range(1, 5)]
        found = outcomes(place.store, *works)
        assert [getattr(one, "stored_as", one) for one in found] == [
            "file.bin",
            "file (1).bin",
            "file (2).bin",
            "file (3).bin",
        ]

    def test_a_brief_file_ends_an_upload_of_the_same_key(self, place: FilePlace) -> None:
        content = pattern(100)
        upload = opened(place.store, len(content))
        upload.write(0, memoryview(content[:50]))
        place.store.decide([KeepPrefixes(upload, 1, {0: Prefix(50, digest_of(content[:50]))})])
        upload.close()
        finish = brief_of(place.store, content)
        stored(place.store, finish)
        finish.upload.close()
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        assert place.leftovers() == 0

    def test_many_brief_files(self, place: FilePlace) -> None:
        works = [brief_of(place.store, pattern(n), number=n, name=f"d{n % 3}/{n}") for n in range(1, 60)]
        assert all(isinstance(one, StoredFile) for one in outcomes(place.store, *works))
        for work in works:
            work.upload.close()
        place.crash()
        assert all(place.content(f"d{n % 3}/{n}") == pattern(n) for n in range(1, 60))
        assert place.leftovers() == 0

    # -- listing

    def test_listing_is_in_byte_order_of_whole_names(self, place: FilePlace) -> None:
        wanted = ["a", "a.b", "a/x", "a/x.y", "a0", "b", "b/c", "b/c/d", "é", "中文"]
        files = [name for name in wanted if not any(other.startswith(name + "/") for other in wanted)]
        for number, name in enumerate(files, 1):
            put(place.store, name, number=number)
        assert sorted(wanted, key=str.encode) == wanted
        for limit in (1, 2, 3, 100):
            assert names_in(place.files, limit=limit) == wanted
        assert names_in(place.files, recursive=False) == ["a", "a.b", "a0", "b", "é", "中文"]
        assert names_in(place.files, "b", recursive=True, limit=1) == ["b/c", "b/c/d"]
        assert names_in(place.files, "a", recursive=False) == ["a/x", "a/x.y"]

    def test_listing_from_a_cursor_that_is_gone(self, place: FilePlace) -> None:
        for number, name in enumerate(["a", "b/1", "b/2", "c"], 1):
            put(place.store, name, number=number)
        page, cursor = place.files.files("", True, "b/15", 10)
        assert ([entry.filename.text for entry in page], cursor) == (["b/2", "c"], "")
        assert place.files.files("", True, "z", 10) == ([], "")

    def test_listing_what_is_no_folder(self, place: FilePlace) -> None:
        put(place.store, NAME)
        for folder in ("no", NAME, "no/deeper"):
            with pytest.raises(UnknownFile):
                place.files.files(folder, True, "", 10)

    # -- receipts

    def test_a_receipt_and_its_name_are_one_decision(self, place: FilePlace) -> None:
        """Neither is there before, and both after a crash."""
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        assert outcomes(place.store, *written(upload, content)) == [None, None]
        place.crash()
        again = place.store.open_upload(key_of(1), facts_of(len(content)), 2)
        assert not isinstance(again, StoredFile)
        assert place.content(NAME) is None
        receipt = stored(place.store, finish_of(again, content, attempt=2))
        place.crash()
        assert place.store.open_upload(key_of(1), facts_of(len(content)), 3) == receipt
        assert place.content(NAME) == content

    def test_receipts(self, place: FilePlace) -> None:
        first = put(place.store, "one", number=1)
        second = put(place.store, "two", number=2)
        ids = [key_of(n).sourceid for n in (1, 2, 3)]
        assert place.files.receipts(ANYBODY, ids) == [first, second]
        assert place.files.receipts(b"somebody else...", ids) == []
        place.store.decide([Remove(SafeName.parse("one"))])
        assert place.files.receipts(ANYBODY, ids) == [second]
        place.reopen()
        assert place.files.receipts(ANYBODY, ids) == [second]

    def test_b3sum(self, place: FilePlace) -> None:
        name = SafeName.parse(NAME)
        put(place.store, NAME)
        version = place.files.stat(name).version
        assert outcome(place.store, RecordB3sum(name, bytes(16), b"x" * 32)) is None
        assert place.files.stat(name).b3sum is None
        assert outcome(place.store, RecordB3sum(name, version, b"y" * 32)) is None
        place.reopen()
        assert place.files.stat(name).b3sum == b"y" * 32
        assert place.files.receipts(ANYBODY, [key_of(1).sourceid])[0].b3sum == b"y" * 32
        put(place.store, NAME, b"other bytes", number=2, if_exists=IfExists.REPLACE)
        assert place.files.stat(name).b3sum is None
        refused(place.store, RecordB3sum(SafeName.parse("no"), version, b"y" * 32), UnknownFile)

    # -- removing

    def test_remove_a_file(self, place: FilePlace) -> None:
        receipt = put(place.store, "a/b")
        other = put(place.store, "a/c", number=2)
        assert outcome(place.store, Remove(SafeName.parse("a/b"))) is None
        assert outcome(place.store, Remove(None, other.file_id)) is None
        assert names_in(place.files) == ["a"]
        refused(place.store, Remove(SafeName.parse("a/b")), UnknownFile)
        refused(place.store, Remove(None, receipt.file_id), UnknownFile)
        assert place.files.receipts(ANYBODY, [key_of(1).sourceid]) == []

    def test_remove_a_folder(self, place: FilePlace) -> None:
        put(place.store, "a/b/c")
        put(place.store, "a.b", number=2)
        refused(place.store, Remove(SafeName.parse("a")), NotEmpty)
        assert outcome(place.store, Remove(SafeName.parse("a"), recursive=True)) is None
        assert names_in(place.files) == ["a.b"]
        make_folder(place.store, "empty")
        assert outcome(place.store, Remove(SafeName.parse("empty"))) is None
        assert names_in(place.files) == ["a.b"]

    # -- hooks

    @clause("BP1-COM-029")
    @pytest.mark.parametrize("kind", ["with OPEN", "brief", "folder"])
    def test_nothing_gets_a_name_before_hooks_were_asked(self, place: FilePlace, kind: str) -> None:
        work = committing(place.store, b"content", folder=kind == "folder", brief=kind != "with OPEN")
        ask = refused(place.store, replace(work, unasked=True), AskFirst)
        assert isinstance(ask, AskFirst)
        assert ask.file_id == work.upload.file_id
        assert names_in(place.files) == []
        assert place.files.receipts(ANYBODY, [key_of(1).sourceid]) == []
        receipt = stored(place.store, work)
        assert (receipt.file_id, receipt.new) == (ask.file_id, True)
        assert names_in(place.files) == [NAME]
        again = committing(place.store, b"content", folder=kind == "folder")
        repeated = stored(place.store, replace(again, unasked=True))
        assert repeated == receipt, "a receipt needs no hook"
        assert not repeated.new

    @clause("BP1-COM-029")
    def test_no_upload_becomes_a_file_that_is_there_before_hooks_were_asked(self, place: FilePlace) -> None:
        receipt = put(place.store, NAME, b"content")
        adopt = Adopt(key_of(2), receipt.root, facts_of(7))
        finish = replace(committing(place.store, b"content", 3), reader=True)
        for work in (adopt, finish):
            refused(place.store, replace(work, unasked=True), AskFirst)
            assert place.files.receipts(ANYBODY, [key_of(2).sourceid, key_of(3).sourceid]) == []
        for work in (adopt, finish):
            found = stored(place.store, work)
            assert (found.there, found.stored_as, found.new) == (True, NAME, True)
        assert names_in(place.files) == [NAME]

    @clause("BP1-COM-029")
    def test_what_is_left_or_refused_needs_no_hook(self, place: FilePlace) -> None:
        put(place.store, NAME, b"another")
        rules = {IfExists.SKIP: None, IfExists.REFUSE: FileExists}
        for number, (rule, error) in enumerate(rules.items(), 2):
            work = replace(committing(place.store, b"content", number), reader=True, unasked=True)
            work = replace(work, facts=replace(work.facts, if_exists=rule))
            if error is None:
                receipt = stored(place.store, work)
                assert (receipt.left, receipt.new) == (True, False)
            else:
                refused(place.store, work, error)
        wrong = replace(committing(place.store, b"content", 4, brief=False), root=bytes(32), unasked=True)
        refused(place.store, wrong, DigestsDiffer)

    def test_one_of_two_works_for_the_same_file_has_the_new_receipt(self, place: FilePlace) -> None:
        works = [committing(place.store, b"content") for _ in range(2)]
        first, second = outcomes(place.store, *works)
        assert first == second
        assert [one.new for one in (first, second) if isinstance(one, StoredFile)] == [True, False]

    # -- uploads

    def test_live_uploads(self, place: FilePlace) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        for number in range(1, 6):
            upload = opened(place.store, len(content), number=number, name=f"f{number}")
            place.store.decide(written(upload, content, [0, 2]))
            upload.close()
        seen = []
        cursor = ""
        while True:
            page, cursor = place.files.uploads(ANYBODY, cursor, 2)
            seen += page
            if not cursor:
                break
        assert [entry.filename.text for entry in seen] == ["f1", "f2", "f3", "f4", "f5"]
        assert {(entry.position, entry.held_count, entry.filesize) for entry in seen} == {
            (BLOCK_LENGTH, 2, len(content))
        }
        assert seen[0].expires_ms == place.now_ms + EXPIRY_MS
        assert place.files.uploads(b"somebody else...", "", 10) == ([], "")

    def test_a_finished_upload_is_not_listed(self, place: FilePlace) -> None:
        put(place.store, NAME, pattern(2 * BLOCK_LENGTH))
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        place.crash()
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        assert place.leftovers() == 0

    @clause("BP1-RES-022")
    def test_the_sweep_takes_what_expired(self, place: FilePlace) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        upload.close()
        place.store.decide(place.files.sweep())
        assert len(place.files.uploads(ANYBODY, "", 10)[0]) == 1
        place.pass_time(EXPIRY_MS + 1)
        place.store.decide(place.files.sweep())
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        assert place.leftovers() == 0
