"""The rules of the same file again: what is there is the file, is replaced, or is left (BP1-COM-021 to 027)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, blocknum_of, digest_of
from ...common.names import SafeName
from ...errors import (
    FileExists,
    NotPermitted,
    SourceChanged,
    UnknownFile,
)
from ...store import (
    FOLDER_FILETYPE,
    Adopt,
    BlockDone,
    Facts,
    Finish,
    IfExists,
    RecordB3sum,
    Remove,
    StoredFile,
    Undecided,
    Upload,
)
from .place import FilePlace
from .steps import (
    NAME,
    clause,
    facts_of,
    key_of,
    outcome,
    outcomes,
    pattern,
    root_of_content,
    written,
)

KEEP, REFUSE, REPLACE, SKIP, UPDATE = IfExists
SECOND = "file (1).bin"
MTIME_NS = 1_700_000_000_000_000_000


def finishing(
    place: FilePlace, content: bytes, number: int, rule: IfExists, *, brief: bool = True, **facts: object
) -> Finish:
    """A file that has come and is to be committed, by a principal that may read."""
    stated = replace(facts_of(len(content), if_exists=rule), **facts)  # type: ignore[arg-type]
    root, store, blocks = root_of_content(content), place.store, ()
    if brief and blocknum_of(len(content)) < 2:
        upload: Upload = store.begin_brief(key_of(number), stated, 0)
        if content:
            upload.write(0, memoryview(content))
            done = BlockDone(upload, 0, 0, len(content), digest_of(content))
            return Finish(upload, 0, root, len(content), stated, (done,), True)
        return Finish(upload, 0, root, 0, stated, blocks, True)
    found = store.open_upload(key_of(number), stated, 1, True)
    assert not isinstance(found, StoredFile), found
    assert all(one is None for one in outcomes(store, *written(found, content)))
    return Finish(found, 1, root, len(content), stated, reader=True)


def read_named(place: FilePlace, undecided: Undecided) -> None:
    """What the engine does beside the committer: read the files, tell their digests."""
    for name in undecided.names:
        reader = place.files.open_file(SafeName.parse(name), None)
        content = bytearray(reader.entry.filesize)
        reader.read_into(0, memoryview(content))
        reader.sync()
        reader.close()
        root = root_of_content(bytes(content))
        entry = reader.entry
        work = RecordB3sum(entry.filename, entry.version, root=root, stamp=entry.stamp)
        assert outcome(place.store, work) is None


def decided(place: FilePlace, work: Finish | Adopt) -> object:
    """The outcome, once everything that had to be read was read."""
    found = outcome(place.store, work)
    while isinstance(found, Undecided):
        read_named(place, found)
        work = replace(work, rounds=work.rounds + 1)
        found = outcome(place.store, work)
    if isinstance(work, Finish):
        work.upload.close()
    return found


def all_decided(place: FilePlace, works: Sequence[Finish]) -> list[object]:
    """The outcomes of one batch, once everything that had to be read was read."""
    found = zip(works, outcomes(place.store, *works), strict=True)
    return [decided(place, work) if isinstance(one, Undecided) else one for work, one in found]


def send(place: FilePlace, content: bytes, number: int, rule: IfExists = KEEP, **how: object) -> StoredFile:
    """Send a file and commit it, expecting a receipt."""
    found = decided(place, finishing(place, content, number, rule, **how))  # type: ignore[arg-type]
    assert isinstance(found, StoredFile), found
    return found


def names(place: FilePlace) -> list[str]:
    """Every name there is."""
    return [entry.filename.text for entry in place.files.files("", True, "", 100)[0]]


def entry(place: FilePlace, name: str = NAME) -> tuple[int, int]:
    """The mtime (ns) and mode of a file."""
    found = place.files.stat(SafeName.parse(name))
    return found.mtime_ns, found.mode


def _folder(place: FilePlace, number: int, facts: Facts) -> Finish:
    upload = place.store.begin_brief(key_of(number), facts, 0)
    return Finish(upload, 0, EMPTY_DIGEST, 0, facts, (), True)


def adopting(number: int, content: bytes, rule: IfExists = KEEP) -> Adopt:
    """The claim that an upload is a file with these bytes."""
    return Adopt(key_of(number), root_of_content(content), facts_of(len(content), if_exists=rule))


class SameFileRules:
    """For what also serves finished files."""

    @pytest.mark.parametrize("rule", [KEEP, REFUSE])
    @pytest.mark.parametrize("brief", [True, False])
    @pytest.mark.parametrize("size", [0, 5, BLOCK_LENGTH + 1])
    def test_the_same_content_is_the_file(
        self, place: FilePlace, size: int, brief: bool, rule: IfExists
    ) -> None:
        content = pattern(size)
        first = send(place, content, 1, brief=brief, mtime_ns=MTIME_NS, mode=0o640)
        assert not first.there
        again = send(place, content, 2, rule, brief=brief, mtime_ns=MTIME_NS + 5, mode=0o600)
        assert (again.there, again.left, again.stored_as, again.root) == (True, False, NAME, first.root)
        assert again.file_id != first.file_id
        assert (names(place), entry(place)) == ([NAME], (MTIME_NS, 0o640))
        for stored in (first, again):
            found = place.files.open_file(None, stored.file_id).entry
            assert (found.filename.text, found.file_id) == (NAME, stored.file_id)
        assert place.leftovers() == 0

    @pytest.mark.parametrize("by", [0, 1, 2, "name"])
    def test_removing_it_by_either_id_ends_every_receipt(self, place: FilePlace, by: int | str) -> None:
        ids = [send(place, b"content", number).file_id for number in (1, 2, 3)]
        sourceids = [key_of(number).sourceid for number in (1, 2, 3)]
        assert len(place.files.receipts(bytes(16), sourceids)) == 3
        work = Remove(SafeName.parse(NAME)) if isinstance(by, str) else Remove(None, ids[by])
        assert outcome(place.store, work) is None
        assert (names(place), place.files.receipts(bytes(16), sourceids)) == ([], [])
        place.put_there(NAME, b"content")
        for file_id in ids:
            with pytest.raises(UnknownFile):
                place.files.open_file(None, file_id)

    def test_every_name_that_is_tried_is_compared(self, place: FilePlace) -> None:
        """Under a taken name the second version does not double every night."""
        send(place, b"first version", 1)
        assert send(place, b"other version", 2).stored_as == SECOND
        for number in (3, 4):
            again = send(place, b"other version", number)
            assert (again.there, again.stored_as) == (True, SECOND)
        assert sorted(names(place)) == [SECOND, NAME]

    def test_another_content_of_the_same_size_is_another_file(self, place: FilePlace) -> None:
        send(place, b"content 1", 1)
        assert not send(place, b"content 2", 2).there
        work = finishing(place, b"content 3", 3, REFUSE, brief=False)
        assert isinstance(decided(place, work), FileExists)
        assert sorted(names(place)) == [SECOND, NAME]
        again = place.store.open_upload(key_of(3), facts_of(9), 2, True)
        assert not isinstance(again, StoredFile)
        assert len(again.held) == 1

    @pytest.mark.parametrize("brief", [True, False])
    def test_replacing_by_the_same_bytes_sets_mtime_and_mode(self, place: FilePlace, brief: bool) -> None:
        first = send(place, b"content", 1, mtime_ns=MTIME_NS, mode=0o644)
        again = send(place, b"content", 2, REPLACE, brief=brief, mtime_ns=MTIME_NS + 7, mode=0o600)
        assert (again.there, entry(place), names(place)) == (True, (MTIME_NS + 7, 0o600), [NAME])
        for stored in (first, again):
            assert place.files.open_file(None, stored.file_id).entry.filename.text == NAME
        assert send(place, b"content", 3, REPLACE).there
        assert entry(place) == (MTIME_NS + 7, 0o600)

    def test_replacing_by_other_bytes_replaces(self, place: FilePlace) -> None:
        first = send(place, b"content 1", 1)
        again = send(place, b"content 2", 2, REPLACE)
        assert (again.there, place.content(NAME), names(place)) == (False, b"content 2", [NAME])
        with pytest.raises(UnknownFile):
            place.files.open_file(None, first.file_id)

    @pytest.mark.parametrize("rule", [KEEP, REFUSE, REPLACE])
    def test_two_of_one_batch_are_one_file(self, place: FilePlace, rule: IfExists) -> None:
        works = [finishing(place, b"content", number, rule) for number in (1, 2, 3)]
        found = all_decided(place, works)
        assert all(isinstance(one, StoredFile) and one.stored_as == NAME for one in found)
        assert names(place) == [NAME]
        assert len({one.file_id for one in found if isinstance(one, StoredFile)}) == 3
        assert len(place.files.receipts(bytes(16), [key_of(number).sourceid for number in (1, 2, 3)])) == 3

    def test_of_one_batch_other_bytes_keep_both(self, place: FilePlace) -> None:
        works = [finishing(place, b"content %d" % number, number, KEEP) for number in (1, 2)]
        assert [type(one) for one in outcomes(place.store, *works)] == [StoredFile, StoredFile]
        assert sorted(names(place)) == [SECOND, NAME]

    def test_after_a_crash_what_was_not_told_is_read(self, place: FilePlace) -> None:
        send(place, b"content", 1)
        place.crash()
        again = send(place, b"content", 2)
        assert (again.there, names(place)) == (True, [NAME])
        place.crash()
        assert len(place.files.receipts(bytes(16), [key_of(1).sourceid, key_of(2).sourceid])) == 2

    @clause("BP1-PRN-006")
    @pytest.mark.parametrize("content", [b"content", b"CONTENT"])
    def test_for_who_may_not_read_nothing_is_compared(self, place: FilePlace, content: bytes) -> None:
        send(place, b"content", 1)
        for number, rule, expected in ((2, KEEP, SECOND), (3, REPLACE, NAME)):
            work = replace(finishing(place, content, number, rule), reader=False)
            found = outcome(place.store, work)
            assert isinstance(found, StoredFile)
            assert (found.there, found.stored_as) == (False, expected)
        work = replace(finishing(place, content, 4, REFUSE), reader=False)
        assert isinstance(outcome(place.store, work), FileExists)
        with pytest.raises(FileExists):
            place.store.open_upload(key_of(5), facts_of(7, if_exists=REFUSE), 1, False)

    @pytest.mark.parametrize("reader", [True, False])
    @pytest.mark.parametrize("brief", [True, False])
    def test_skip_leaves_what_has_the_name(self, place: FilePlace, brief: bool, reader: bool) -> None:
        first = send(place, b"content", 1, SKIP)
        assert (first.left, first.stored_as) == (False, NAME)
        work = finishing(place, b"other!!", 2, SKIP)
        if not brief:
            assert outcome(place.store, Remove(SafeName.parse(NAME))) is None
            work = finishing(place, b"other!!", 2, SKIP, brief=False)
            first = send(place, b"content", 1, SKIP)
        found = decided(place, replace(work, reader=reader))
        assert isinstance(found, StoredFile)
        told = (first.file_id, first.root, 7) if reader else (bytes(16), bytes(32), 0)
        assert (found.left, found.there, found.stored_as) == (True, False, NAME)
        assert (found.file_id, found.root, found.filesize) == told
        assert (names(place), place.content(NAME), place.leftovers()) == ([NAME], b"content", 0)
        assert place.files.receipts(bytes(16), [key_of(2).sourceid]) == []
        early = place.store.open_upload(key_of(2), facts_of(7, if_exists=SKIP), 1, reader)
        assert early == found
        assert outcome(place.store, Remove(SafeName.parse(NAME))) is None
        assert send(place, b"other!!", 2, SKIP).left is False

    @pytest.mark.parametrize(("ours", "left"), [(-1, True), (0, True), (1, False), (None, True)])
    @pytest.mark.parametrize("brief", [True, False])
    def test_update_replaces_what_is_older(
        self, place: FilePlace, brief: bool, ours: int | None, left: bool
    ) -> None:
        work = finishing(
            place, b"ours", 2, UPDATE, brief=brief, mtime_ns=None if ours is None else MTIME_NS + ours
        )
        send(place, b"content", 1, mtime_ns=MTIME_NS)
        found = decided(place, work)
        assert isinstance(found, StoredFile)
        assert (found.left, found.stored_as, names(place)) == (left, NAME, [NAME])
        assert place.content(NAME) == (b"content" if left else b"ours")
        assert place.leftovers() == 0

    def test_update_at_open(self, place: FilePlace) -> None:
        send(place, b"content", 1, mtime_ns=MTIME_NS)
        for ours, left in ((MTIME_NS, True), (None, True), (MTIME_NS + 1, False)):
            facts = replace(facts_of(4, if_exists=UPDATE), mtime_ns=ours)
            found = place.store.open_upload(key_of(2), facts, 1, True)
            assert (isinstance(found, StoredFile) and found.left) == left
            if not isinstance(found, StoredFile):
                found.close()

    def test_update_by_the_same_bytes_sets_the_time(self, place: FilePlace) -> None:
        send(place, b"content", 1, mtime_ns=MTIME_NS)
        again = send(place, b"content", 2, UPDATE, mtime_ns=MTIME_NS + 1)
        assert (again.there, again.left, entry(place)[0]) == (True, False, MTIME_NS + 1)

    def test_of_one_batch_the_later_one_wins_an_update(self, place: FilePlace) -> None:
        works = [
            finishing(place, b"%d" % later, number, UPDATE, mtime_ns=MTIME_NS + later)
            for number, later in enumerate((5, 3, 9), 1)
        ]
        found = all_decided(place, works)
        assert [one.left for one in found if isinstance(one, StoredFile)] == [False, True, False]
        assert (names(place), place.content(NAME)) == ([NAME], b"9")

    @pytest.mark.parametrize("rule", [SKIP, UPDATE])
    def test_folders_and_files_in_the_way_of_each_other(self, place: FilePlace, rule: IfExists) -> None:
        folder = replace(facts_of(0, if_exists=KEEP), filetype=FOLDER_FILETYPE, mode=0o755)
        assert decided(place, _folder(place, 1, folder)) is not None
        again = replace(folder, if_exists=rule, mode=0o700, mtime_ns=MTIME_NS)
        early = place.store.open_upload(key_of(2), again, 1, True)
        found = decided(place, _folder(place, 2, again))
        assert isinstance(found, StoredFile)
        assert found == early
        assert (found.left, found.filesize, entry(place)[1]) == (True, 0, 0o755)
        work = finishing(place, b"file", 3, rule, mtime_ns=1 << 62)
        file = decided(place, work)
        assert (
            (isinstance(file, StoredFile) and file.left) if rule is SKIP else isinstance(file, NotPermitted)
        )
        send(place, b"file", 4, filename=SafeName.parse("other"))
        blocked = replace(again, filename=SafeName.parse("other"))
        assert isinstance(decided(place, _folder(place, 5, blocked)), FileExists)
        with pytest.raises(FileExists):
            place.store.open_upload(key_of(6), blocked, 1, True)

    @pytest.mark.parametrize("brief", [True, False])
    def test_replace_after_keep_really_replaces(self, place: FilePlace, brief: bool) -> None:
        send(place, b"version 1", 1, filename=SafeName.parse(NAME))
        kept = send(place, b"version 2", 2)
        assert kept.stored_as == SECOND
        replaced = send(place, b"version 2", 2, REPLACE, brief=brief)
        assert (replaced.stored_as, replaced.file_id) == (NAME, kept.file_id)
        assert place.content(NAME) == b"version 2"
        sourceid = [key_of(2).sourceid]
        assert place.files.receipts(bytes(16), sourceid, KEEP) == []
        (receipt,) = place.files.receipts(bytes(16), sourceid, REPLACE)
        assert place.files.receipts(bytes(16), sourceid) == [receipt]
        assert outcome(place.store, Remove(SafeName.parse(SECOND))) is None
        assert place.files.receipts(bytes(16), sourceid) == [receipt], "the receipt is of another file by now"

    @pytest.mark.parametrize("rule", list(IfExists))
    def test_only_the_same_rule_is_answered_by_a_receipt(self, place: FilePlace, rule: IfExists) -> None:
        first = send(place, b"content", 1, rule, mtime_ns=MTIME_NS)
        for other in IfExists:
            facts = replace(facts_of(7, if_exists=other), mtime_ns=MTIME_NS + 1)
            found = place.store.open_upload(key_of(1), facts, 1, True)
            if other is rule:
                assert isinstance(found, StoredFile)
                assert (found.file_id, found.left) == (first.file_id, False)
            elif not isinstance(found, StoredFile):
                found.close()
            else:
                assert found.left

    def test_a_commit_of_another_rule_that_fails_leaves_the_receipt(self, place: FilePlace) -> None:
        send(place, b"content 1", 1)
        kept = send(place, b"content 2", 2)
        assert isinstance(decided(place, finishing(place, b"content 2", 2, REFUSE)), FileExists)
        found = place.store.open_upload(key_of(2), facts_of(9), 1, True)
        assert isinstance(found, StoredFile)
        assert found.file_id == kept.file_id

    def test_with_the_same_rule_other_bytes_are_refused(self, place: FilePlace) -> None:
        send(place, b"content 1", 1)
        assert isinstance(decided(place, finishing(place, b"content 2", 1, KEEP)), SourceChanged)

    @pytest.mark.parametrize("rule", [KEEP, REFUSE, REPLACE])
    @pytest.mark.parametrize("begun", [True, False])
    def test_a_file_that_is_there_needs_no_bytes(self, place: FilePlace, rule: IfExists, begun: bool) -> None:
        content = pattern(BLOCK_LENGTH + 5)
        if begun:
            upload = place.store.open_upload(key_of(2), facts_of(len(content), if_exists=rule), 1, True)
            assert not isinstance(upload, StoredFile)
            assert outcomes(place.store, *written(upload, content, [0])) == [None]
            upload.close()
        send(place, content, 1)
        assert place.files.may_be_there(facts_of(len(content), if_exists=rule))
        found = decided(place, adopting(2, content, rule))
        assert isinstance(found, StoredFile)
        assert (found.there, found.stored_as, names(place)) == (True, NAME, [NAME])
        assert place.leftovers() == 0
        assert len(place.files.uploads(bytes(16), "", 10)[0]) == 0
        assert place.files.open_file(None, found.file_id).entry.filename.text == NAME

    def test_a_root_that_is_claimed_only_gets_nothing(self, place: FilePlace) -> None:
        assert not place.files.may_be_there(facts_of(7))
        assert decided(place, adopting(1, b"content")) is None
        send(place, b"content", 1)
        assert decided(place, adopting(2, b"CONTENT")) is None
        assert decided(place, adopting(2, b"CONTENT", REPLACE)) is None
        assert isinstance(decided(place, adopting(2, b"CONTENT", REFUSE)), FileExists)
        assert place.files.receipts(bytes(16), [key_of(2).sourceid]) == []
        assert (names(place), place.content(NAME)) == ([NAME], b"content")

    def test_refuse_at_open_waits_for_the_bytes_where_they_may_be_the_same(self, place: FilePlace) -> None:
        send(place, b"content", 1)
        for filesize in (7, None):
            upload = place.store.open_upload(key_of(2), facts_of(filesize, if_exists=REFUSE), 1, True)
            assert not isinstance(upload, StoredFile)
            upload.close()
        with pytest.raises(FileExists):
            place.store.open_upload(key_of(2), facts_of(8, if_exists=REFUSE), 1, True)
