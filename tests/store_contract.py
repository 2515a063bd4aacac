"""What every store promises, as test suites that each store's own test file runs with a few lines of glue.

``UploadStoreContract`` is for anything that takes uploads, ``FileStoreContract`` for what also serves finished files.
A store's tests subclass one and provide the fixture ``place``, a ``Place``.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from blockproto.common.blocks import (
    BLOCK_LENGTH,
    EMPTY_DIGEST,
    BlockSet,
    block_span,
    blocknum_of,
    digest_of,
    root_of,
)
from blockproto.common.names import SafeName
from blockproto.errors import (
    BadFacts,
    BlockprotoError,
    DigestsDiffer,
    FileExists,
    NotEmpty,
    NotPermitted,
    SourceChanged,
    StoreFailed,
    StoreFull,
    Superseded,
    UnknownFile,
    UnknownUpload,
)
from blockproto.store import (
    FOLDER_FILETYPE,
    Adopt,
    AskFirst,
    BlockDone,
    Discard,
    Facts,
    FileStore,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Prefix,
    RecordB3sum,
    Remove,
    StoredFile,
    Tidy,
    Upload,
    UploadKey,
    UploadStore,
    Work,
)
from blockproto.store.rules import EXPIRY_MS

NAME = "file.bin"
NOW_MS = 1_800_000_000_000
ANYBODY = bytes(16)
SIZES = [0, 1, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 3 * BLOCK_LENGTH, 3 * BLOCK_LENGTH + 17]


JOIN_S = 30.0
"""How long a thread may take at the most."""


class Place(Protocol):
    """Where a store under test stands, and what can be done to it from outside."""

    store: UploadStore
    now_ms: int

    def pass_time(self, ms: int) -> None:
        """Let time go by, so that what has had its time expires."""

    def reopen(self) -> None:
        """Close the store in good order and open it again as ``store``."""

    def crash(self) -> None:
        """Let the process die and open what is left as ``store``."""

    def content(self, name: str) -> bytes | None:
        """The bytes of a finished file, past the store; None if there is none."""

    def put_there(self, name: str, content: bytes) -> None:
        """Somebody else puts a file under a name."""

    def leftovers(self) -> int:
        """How many files there are that are not finished ones (locks and ledger of a server aside)."""

    def fill_disk(self) -> None:
        """From now on there is no free space."""

    def break_medium(self) -> None:
        """From now on every sync fails with EIO."""


def pattern(filesize: int, seed: int = 0) -> bytes:
    """Bytes that differ from block to block."""
    unit = b"".join((seed * 1_000_003 + number).to_bytes(4, "big") for number in range(4096))
    return (unit * (filesize // len(unit) + 1))[:filesize]


def key_of(number: int, principal: bytes = ANYBODY) -> UploadKey:
    return UploadKey(principal, number.to_bytes(16, "big"))


def facts_of(filesize: int | None, name: str = NAME, if_exists: IfExists = IfExists.KEEP) -> Facts:
    return Facts(SafeName.parse(name), "application/x-test", filesize, if_exists=if_exists)


def opened(
    store: UploadStore, filesize: int | None, *, number: int = 1, name: str = NAME, attempt: int = 1
) -> Upload:
    upload = store.open_upload(key_of(number), facts_of(filesize, name), attempt)
    assert not isinstance(upload, StoredFile)
    return upload


def written(
    upload: Upload, content: bytes, blocknos: Iterable[int] | None = None, attempt: int = 1
) -> list[BlockDone]:
    """Write blocks of ``content`` and return the works that make them durable."""
    works = []
    for blockno in range(blocknum_of(len(content))) if blocknos is None else blocknos:
        position, length = block_span(blockno, 0, len(content))
        piece = content[position : position + length]
        upload.write(position, memoryview(piece))
        works.append(BlockDone(upload, attempt, blockno, length, digest_of(piece)))
    return works


def root_of_content(content: bytes) -> bytes:
    blocknum = blocknum_of(len(content))
    return root_of(
        (digest_of(content[n * BLOCK_LENGTH : (n + 1) * BLOCK_LENGTH]) for n in range(blocknum)), blocknum
    )


def finish_of(
    upload: Upload, content: bytes, *, attempt: int = 1, if_exists: IfExists = IfExists.KEEP, name: str = NAME
) -> Finish:
    facts = facts_of(len(content), name, if_exists)
    return Finish(upload, attempt, root_of_content(content), len(content), facts)


def brief_of(store: UploadStore, content: bytes, *, number: int = 1, name: str = NAME) -> Finish:
    """A file sent without OPEN, written and ready to commit."""
    facts = facts_of(len(content), name)
    upload = store.begin_brief(key_of(number), facts, 0)
    blocks: tuple[BlockDone, ...] = ()
    if content:
        upload.write(0, memoryview(content))
        blocks = (BlockDone(upload, 0, 0, len(content), digest_of(content)),)
    return Finish(upload, 0, root_of_content(content), len(content), facts, blocks)


def outcomes(store: UploadStore, *works: Work) -> list[object]:
    return list(store.decide(works))


def outcome(store: UploadStore, work: Work) -> object:
    return outcomes(store, work)[0]


def stored(store: UploadStore, *works: Work) -> StoredFile:
    """Commit, expect all to go well and the last to give a receipt."""
    found = outcomes(store, *works)
    assert [one for one in found[:-1] if one is not None] == []
    assert isinstance(found[-1], StoredFile), found[-1]
    return found[-1]


def refused(store: UploadStore, work: Work, error: type[BlockprotoError]) -> BlockprotoError:
    found = outcome(store, work)
    assert isinstance(found, error), found
    return found


def check_closing_while_a_write_runs(
    upload: Upload, close: Callable[[], None], folder: Path, patch: pytest.MonkeyPatch
) -> None:
    """Close in the middle of a write: what it writes with is not closed under its hands, and given to another file.

    Args:
        upload: it has been written to, so that its file is open.
        close: of the upload, or of the store.
        folder: where other files can be made.
        patch: undone at the end of the test.
    """
    entered, go_on = threading.Event(), threading.Event()
    real = os.pwrite

    def pwrite(fd: int, piece: memoryview, position: int) -> int:
        entered.set()
        assert go_on.wait(JOIN_S)
        return real(fd, piece, position)

    def write() -> None:
        with suppress(BlockprotoError):
            upload.write(100_000, memoryview(b"x" * 100_000))

    patch.setattr(os, "pwrite", pwrite)
    writer, closer = threading.Thread(target=write), threading.Thread(target=close)
    writer.start()
    while writer.is_alive() and not entered.wait(0.01):
        pass  # a store that does not write to a file has been quick
    closer.start()
    closer.join(0.3)  # some are closed now, others wait for the write
    others = [os.open(folder / f"other {n}", os.O_RDWR | os.O_CREAT) for n in range(8)]
    go_on.set()
    for thread in (writer, closer):
        thread.join(JOIN_S)
        assert not thread.is_alive()
    for fd in others:
        assert os.fstat(fd).st_size == 0, "it was written into a file of somebody else"
        os.close(fd)
    with suppress(BlockprotoError):
        upload.write(0, memoryview(b"y"))  # too late, and harmless


class UploadStoreContract:
    """For everything that takes uploads."""

    @pytest.mark.parametrize("what", ["upload", "brief file", "store"])
    def test_closing_while_a_write_runs(
        self,
        place: Place,
        what: str,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        facts = facts_of(300_000)
        brief = what == "brief file"
        upload = place.store.begin_brief(key_of(1), facts, 0) if brief else opened(place.store, 300_000)
        upload.write(0, memoryview(b"x" * 100_000))
        before = len(os.listdir("/proc/self/fd"))
        close = place.store.close if what == "store" else upload.close
        check_closing_while_a_write_runs(upload, close, tmp_path_factory.mktemp("other"), monkeypatch)
        assert len(os.listdir("/proc/self/fd")) <= before
        if brief:
            assert place.leftovers() == 0

    # -- a file goes in

    @pytest.mark.parametrize("filesize", SIZES)
    def test_a_file_goes_in_in_one_batch(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        upload = opened(place.store, filesize)
        works = written(upload, content)
        receipt = stored(place.store, *works, finish_of(upload, content))
        assert place.content(NAME) == content
        assert (receipt.sourceid, receipt.filesize, receipt.stored_as) == (
            upload.key.sourceid,
            filesize,
            NAME,
        )
        assert receipt.root == root_of_content(content)
        assert receipt.file_id == upload.file_id
        upload.close()
        assert place.leftovers() == 0

    def test_blocks_in_any_order_and_in_many_batches(self, place: Place) -> None:
        content = pattern(4 * BLOCK_LENGTH + 5)
        upload = opened(place.store, len(content))
        for blockno in (3, 0, 4, 2, 1):
            assert outcomes(place.store, *written(upload, content, [blockno])) == [None]
        stored(place.store, finish_of(upload, content))
        assert place.content(NAME) == content

    @pytest.mark.clause("BP1-RES-004")
    def test_nothing_is_made_before_the_first_byte(self, place: Place) -> None:
        before = place.leftovers()
        upload = opened(place.store, 10 * BLOCK_LENGTH)
        assert place.leftovers() == before
        upload.close()
        assert place.leftovers() == before

    @pytest.mark.clause("BP1-COM-005")
    def test_the_name_appears_only_at_commit(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        assert outcomes(place.store, *written(upload, content)) == [None, None]
        assert place.content(NAME) is None
        stored(place.store, finish_of(upload, content))
        assert place.content(NAME) == content

    def test_pieces_of_a_block(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 100)
        upload = opened(place.store, len(content))
        for position in range(0, len(content), 65_536):
            upload.write(position, memoryview(content[position : position + 65_536]))
        works = [
            BlockDone(upload, 1, 0, BLOCK_LENGTH, digest_of(content[:BLOCK_LENGTH])),
            BlockDone(upload, 1, 1, 100, digest_of(content[BLOCK_LENGTH:])),
        ]
        stored(place.store, *works, finish_of(upload, content))
        assert place.content(NAME) == content

    def test_two_openings_of_one_upload_share_it(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        first, second = opened(place.store, len(content)), opened(place.store, len(content))
        assert first.file_id == second.file_id
        works = written(first, content, [0, 2]) + written(second, content, [1])
        assert outcomes(place.store, *works) == [None, None, None]
        first.close()
        stored(place.store, finish_of(second, content))
        assert place.content(NAME) == content
        second.close()

    def test_mode_and_mtime(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        facts = Facts(SafeName.parse(NAME), "text/plain", len(content), 1_234_567_890_123_456_789, 0o640)
        upload = place.store.open_upload(key_of(1), facts, 1)
        assert not isinstance(upload, StoredFile)
        finish = Finish(upload, 1, root_of_content(content), len(content), facts)
        stored(place.store, *written(upload, content), finish)
        assert self.mode_and_mtime(place) == (0o640, 1_234_567_890_123_456_789)

    def mode_and_mtime(self, place: Place) -> tuple[int, int]:
        """Permission bits and mtime of the finished file."""
        raise NotImplementedError

    # -- resume

    @pytest.mark.clause("BP1-RES-015", "BP1-RES-028")
    def test_held_blocks_survive(self, place: Place) -> None:
        content = pattern(5 * BLOCK_LENGTH + 9)
        upload = opened(place.store, len(content), attempt=7)
        place.store.decide(written(upload, content, [0, 1, 5, 3], attempt=7))
        upload.close()
        place.reopen()
        again = opened(place.store, len(content), attempt=8)
        assert again.held == BlockSet([(0, 2), (3, 1), (5, 1)])
        assert (again.attempt, again.facts.filesize) == (7, len(content))
        digests = {3: digest_of(content[3 * BLOCK_LENGTH : 4 * BLOCK_LENGTH]), 5: digest_of(content[-9:])}
        assert again.digests([5, 2, 3, 9]) == digests
        works = written(again, content, [2, 4], attempt=8)
        stored(place.store, *works, finish_of(again, content, attempt=8))
        assert place.content(NAME) == content

    @pytest.mark.clause("BP1-RES-015", "BP1-RES-017")
    def test_a_crash_keeps_what_was_committed_and_no_more(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [1]))
        written(upload, content, [0, 2])
        incarnation = place.store.incarnation
        place.crash()
        assert place.store.incarnation == incarnation
        again = opened(place.store, len(content))
        assert again.held == BlockSet([(1, 1)])
        stored(place.store, *written(again, content, [0, 2]), finish_of(again, content))
        assert place.content(NAME) == content

    def test_a_crash_before_anything_was_committed_leaves_a_fresh_start(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 3)
        written(opened(place.store, len(content)), content)
        place.crash()
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))
        assert place.content(NAME) == content

    def test_prefixes_survive_and_can_be_read(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        upload.write(BLOCK_LENGTH, memoryview(content[BLOCK_LENGTH : BLOCK_LENGTH + 1000]))
        upload.write(0, memoryview(content[:10]))
        kept = {
            0: Prefix(10, digest_of(content[:10])),
            1: Prefix(1000, digest_of(content[BLOCK_LENGTH:][:1000])),
        }
        assert outcome(place.store, KeepPrefixes(upload, 1, kept)) is None
        upload.close()
        place.reopen()
        again = opened(place.store, len(content))
        assert again.prefixes == kept
        view = memoryview(bytearray(1000))
        assert again.read_into(BLOCK_LENGTH, view) == 1000
        assert digest_of(view) == kept[1].digest

    def test_prefixes_replace_those_before_and_end_with_their_block(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        upload.write(0, memoryview(content[:10]))
        prefix = Prefix(10, digest_of(content[:10]))
        place.store.decide([KeepPrefixes(upload, 1, {0: prefix, 2: prefix})])
        place.store.decide([KeepPrefixes(upload, 1, {0: prefix})])
        place.store.decide(written(upload, content, [0]))
        upload.close()
        place.reopen()
        assert opened(place.store, len(content)).prefixes == {}

    def test_reading_where_nothing_was_written(self, place: Place) -> None:
        upload = opened(place.store, BLOCK_LENGTH)
        assert upload.read_into(0, memoryview(bytearray(10))) == 0

    # -- the attempt

    def test_a_smaller_attempt_changes_nothing(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content), attempt=5)
        place.store.decide(written(upload, content, [0], attempt=5))
        late = written(upload, content, [1], attempt=4)[0]
        assert refused(place.store, late, Superseded).current == 5
        refused(place.store, Forget(upload, 4, (0,)), Superseded)
        refused(place.store, KeepPrefixes(upload, 4, {1: Prefix(1, EMPTY_DIGEST)}), Superseded)
        refused(place.store, finish_of(upload, content, attempt=4), Superseded)
        upload.close()
        place.reopen()
        again = opened(place.store, len(content), attempt=6)
        assert (again.held, again.attempt, again.prefixes) == (BlockSet([(0, 1)]), 5, {})

    def test_a_greater_attempt_takes_over_within_a_batch_too(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        attempts = zip(written(upload, content), (1, 2, 1), strict=True)
        found = outcomes(place.store, *(replace(work, attempt=attempt) for work, attempt in attempts))
        assert found[:2] == [None, None]
        assert isinstance(found[2], Superseded)

    # -- what does not fit

    @pytest.mark.parametrize(
        ("blockno", "length"), [(0, BLOCK_LENGTH - 1), (1, 8), (1, 6), (2, 1), (0, 0), (-1, BLOCK_LENGTH)]
    )
    def test_a_block_that_does_not_fit(self, place: Place, blockno: int, length: int) -> None:
        upload = opened(place.store, BLOCK_LENGTH + 7)
        upload.write(0, memoryview(pattern(BLOCK_LENGTH + 7)))
        refused(place.store, BlockDone(upload, 1, blockno, length, EMPTY_DIGEST), BadFacts)

    def test_a_refused_block_leaves_no_trace(self, place: Place) -> None:
        upload = opened(place.store, BLOCK_LENGTH)
        before = place.store.incarnation
        refused(place.store, BlockDone(upload, 1, 5, 1, EMPTY_DIGEST), BadFacts)
        place.crash()
        again = opened(place.store, BLOCK_LENGTH)
        assert (again.attempt, len(again.held), place.store.incarnation) == (0, 0, before)

    @pytest.mark.clause("BP1-COM-005")
    def test_another_root_commits_nothing_and_drops_nothing(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        other = replace(finish_of(upload, content), root=digest_of(b"another"))
        refused(place.store, other, DigestsDiffer)
        assert place.content(NAME) is None
        stored(place.store, finish_of(upload, content))

    def test_a_missing_block(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        for held in ([], [0], [0, 2]):
            place.store.decide(written(upload, content, held))
            refused(place.store, finish_of(upload, content), DigestsDiffer)
        assert place.content(NAME) is None

    def test_another_size_at_the_end(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        other = finish_of(upload, content[:BLOCK_LENGTH])
        refused(place.store, other, BadFacts)

    def test_an_error_stops_no_other_work(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        first, second = written(upload, content)
        bad = BlockDone(upload, 1, 9, 1, EMPTY_DIGEST)
        found = outcomes(place.store, first, bad, second)
        assert (found[0], found[2]) == (None, None)
        assert isinstance(found[1], BadFacts)

    # -- unknown size

    @pytest.mark.parametrize("filesize", SIZES)
    def test_unknown_size(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        upload = opened(place.store, None)
        stored(place.store, *written(upload, content), finish_of(upload, content))
        assert place.content(NAME) == content

    def test_unknown_size_ends_with_the_short_block(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH + 5)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content))
        upload.close()
        place.reopen()
        again = opened(place.store, None)
        refused(place.store, BlockDone(again, 1, 3, BLOCK_LENGTH, EMPTY_DIGEST), BadFacts)
        refused(place.store, BlockDone(again, 1, 1, 4, EMPTY_DIGEST), BadFacts)
        refused(place.store, finish_of(again, content[: BLOCK_LENGTH + 5]), BadFacts)
        stored(place.store, finish_of(again, content))

    def test_unknown_size_needs_the_last_block(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH + 5)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content, [0, 1]))
        refused(place.store, finish_of(upload, content), DigestsDiffer)

    def test_unknown_size_that_leaves_held_blocks_out(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content))
        refused(place.store, finish_of(upload, content[:BLOCK_LENGTH]), BadFacts)
        stored(place.store, finish_of(upload, content))

    # -- repair

    @pytest.mark.clause("BP1-DIG-007", "BP1-RES-017")
    def test_forgotten_blocks_are_missing_and_the_incarnation_stays(self, place: Place) -> None:
        content, other = pattern(3 * BLOCK_LENGTH), pattern(3 * BLOCK_LENGTH, seed=1)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        before = place.store.incarnation
        assert outcome(place.store, Forget(upload, 1, (1, 2))) is None
        upload.close()
        place.reopen()
        assert place.store.incarnation == before
        again = opened(place.store, len(content))
        assert again.held == BlockSet([(0, 1)])
        mixed = content[:BLOCK_LENGTH] + other[BLOCK_LENGTH:]
        stored(place.store, *written(again, mixed, [1, 2]), finish_of(again, mixed))
        assert place.content(NAME) == mixed

    def test_forgotten_and_sent_again_in_one_batch(self, place: Place) -> None:
        content, other = pattern(2 * BLOCK_LENGTH), pattern(2 * BLOCK_LENGTH, seed=1)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        assert outcome(place.store, Forget(upload, 1, (0, 7))) is None
        mixed = other[:BLOCK_LENGTH] + content[BLOCK_LENGTH:]
        works = written(upload, mixed, [0])
        stored(place.store, Forget(upload, 1, (0,)), *works, finish_of(upload, mixed))
        assert place.content(NAME) == mixed

    # -- repeating

    @pytest.mark.clause("BP1-COM-011")
    def test_the_same_commit_again(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        first = finish_of(upload, content)
        twin = finish_of(upload, content)
        found = outcomes(place.store, *written(upload, content), first, twin)
        assert found[2] == found[3]
        assert outcome(place.store, finish_of(upload, content)) == found[2]
        upload.close()
        assert place.store.open_upload(key_of(1), facts_of(len(content)), 9) == found[2]

    def test_the_same_commit_with_other_bytes(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        refused(place.store, finish_of(upload, pattern(BLOCK_LENGTH + 1, seed=1)), SourceChanged)

    def test_a_finished_upload_takes_no_more_bytes(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        with pytest.raises(UnknownUpload):
            upload.write(0, memoryview(b"late"))
        refused(place.store, BlockDone(upload, 1, 0, BLOCK_LENGTH, EMPTY_DIGEST), UnknownUpload)
        upload.close()
        upload.close()
        assert place.content(NAME) == content

    @pytest.mark.clause("BP1-COM-011")
    def test_a_file_that_is_gone_is_sent_again(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        upload.close()
        self.take_away(place)
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))
        assert place.content(NAME) == content

    def take_away(self, place: Place) -> None:
        """Somebody else removes the finished file."""
        raise NotImplementedError

    # -- the name is taken

    def test_keep_both(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        receipt = stored(place.store, *written(upload, content), finish_of(upload, content))
        assert receipt.stored_as == "file (1).bin"
        assert (place.content(NAME), place.content("file (1).bin")) == (b"old", content)

    @pytest.mark.clause("BP1-COM-020")
    def test_a_name_that_is_taken_is_refused_before_any_byte_where_that_is_wanted(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        with pytest.raises(FileExists):
            place.store.open_upload(key_of(1), facts_of(10, if_exists=IfExists.REFUSE), 1)
        assert not isinstance(place.store.open_upload(key_of(1), facts_of(10), 1), StoredFile)

    @pytest.mark.clause("BP1-COM-015")
    def test_refuse_and_then_keep_both(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        refuse = finish_of(upload, content, if_exists=IfExists.REFUSE)
        found = outcomes(place.store, *works, refuse)
        assert isinstance(found[-1], FileExists)
        assert place.content(NAME) == b"old"
        assert stored(place.store, finish_of(upload, content)).stored_as == "file (1).bin"

    def test_refuse_where_nothing_is(self, place: Place) -> None:
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        stored(place.store, *works, finish_of(upload, content, if_exists=IfExists.REFUSE))
        assert place.content(NAME) == content

    def test_replace(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        receipt = stored(place.store, *works, finish_of(upload, content, if_exists=IfExists.REPLACE))
        assert receipt.stored_as == NAME
        assert place.content(NAME) == content
        assert place.content("file (1).bin") is None

    # -- without OPEN

    @pytest.mark.parametrize("filesize", [0, 1, 4096, BLOCK_LENGTH])
    def test_a_brief_file(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        finish = brief_of(place.store, content)
        receipt = stored(place.store, finish)
        assert place.content(NAME) == content
        finish.upload.close()
        assert place.leftovers() == 0
        again = brief_of(place.store, content)
        assert stored(place.store, again) == receipt
        again.upload.close()
        assert place.leftovers() == 0
        assert place.content("file (1).bin") is None

    def test_a_brief_file_in_pieces(self, place: Place) -> None:
        content = pattern(5000)
        upload = place.store.begin_brief(key_of(1), facts_of(len(content)), 0)
        for position in range(0, len(content), 1000):
            upload.write(position, memoryview(content[position : position + 1000]))
        block = BlockDone(upload, 0, 0, len(content), digest_of(content))
        stored(
            place.store,
            Finish(upload, 0, digest_of(content), len(content), facts_of(len(content)), (block,)),
        )
        assert place.content(NAME) == content

    @pytest.mark.clause("BP1-BLK-018")
    def test_a_brief_file_that_is_not_committed_leaves_nothing(self, place: Place) -> None:
        upload = place.store.begin_brief(key_of(1), facts_of(10), 0)
        upload.write(0, memoryview(pattern(5)))
        upload.close()
        assert place.leftovers() == 0

    def test_a_brief_file_with_another_root(self, place: Place) -> None:
        finish = replace(brief_of(place.store, pattern(100)), root=digest_of(b"another"))
        refused(place.store, finish, DigestsDiffer)
        finish.upload.close()
        assert place.content(NAME) is None
        assert place.leftovers() == 0

    def test_a_brief_file_has_one_block(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = place.store.begin_brief(key_of(1), facts_of(len(content)), 0)
        works = tuple(written(upload, content, attempt=0))
        finish = Finish(upload, 0, root_of_content(content), len(content), facts_of(len(content)), works)
        refused(place.store, finish, BadFacts)

    def test_a_brief_file_survives_a_crash(self, place: Place) -> None:
        content = pattern(4096)
        stored(place.store, brief_of(place.store, content))
        place.crash()
        assert place.content(NAME) == content

    # -- discarding

    def test_discard(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        assert outcome(place.store, Discard(upload.key)) is None
        assert place.leftovers() == 0
        with pytest.raises(UnknownUpload):
            upload.write(0, memoryview(b"late"))
        refused(place.store, BlockDone(upload, 1, 0, BLOCK_LENGTH, EMPTY_DIGEST), UnknownUpload)
        refused(place.store, Discard(upload.key), UnknownUpload)
        upload.close()
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))

    def test_discard_what_was_never_begun(self, place: Place) -> None:
        refused(place.store, Discard(key_of(99)), UnknownUpload)

    @pytest.mark.clause("BP1-RES-022")
    def test_discard_of_what_has_not_expired(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        upload.close()
        assert outcome(place.store, Discard(upload.key, expired_ms=place.now_ms)) is None
        assert len(opened(place.store, len(content)).held) == 1

    # -- trouble

    def test_no_room_for_a_new_upload(self, place: Place) -> None:
        place.fill_disk()
        with pytest.raises(StoreFull):
            place.store.open_upload(key_of(1), facts_of(BLOCK_LENGTH), 1)

    def test_after_the_medium_failed_nothing_is_taken(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        place.break_medium()
        for _ in range(2):
            with pytest.raises(StoreFailed):
                place.store.decide(works)
        with pytest.raises(StoreFailed):
            place.store.decide([])
        place.crash()
        assert len(opened(place.store, len(content)).held) == 0

    def test_an_empty_batch(self, place: Place) -> None:
        place.store.decide([])
        assert outcome(place.store, Tidy()) is None

    def test_a_closed_store_takes_nothing(self, place: Place) -> None:
        place.store.close()
        place.store.close()
        with pytest.raises(StoreFailed):
            place.store.decide([])


def eio(*_: object) -> None:
    """What a broken medium answers."""
    raise OSError(errno.EIO, "Input/output error")


class FilePlace(Place, Protocol):
    """Where a store with finished files stands."""

    @property
    def files(self) -> FileStore:
        """The store."""


def put(
    store: UploadStore,
    name: str,
    content: bytes = b"content",
    number: int = 1,
    if_exists: IfExists = IfExists.KEEP,
) -> StoredFile:
    """Upload a whole file."""
    upload = opened(store, len(content), number=number, name=name)
    finish = finish_of(upload, content, name=name, if_exists=if_exists)
    receipt = stored(store, *written(upload, content), finish)
    upload.close()
    return receipt


def committing(
    store: UploadStore, content: bytes, number: int = 1, *, folder: bool = False, brief: bool = True
) -> Finish:
    """The commit of a file whose bytes have come, or of a folder."""
    if folder:
        facts = Facts(SafeName.parse(NAME), FOLDER_FILETYPE, 0)
        return Finish(store.begin_brief(key_of(number), facts, 0), 0, EMPTY_DIGEST, 0, facts)
    if brief:
        return brief_of(store, content, number=number)
    upload = opened(store, len(content), number=number)
    assert outcomes(store, *written(upload, content)) == [None]
    return finish_of(upload, content)


def make_folder(store: UploadStore, name: str, number: int = 1) -> object:
    facts = Facts(SafeName.parse(name), FOLDER_FILETYPE, 0)
    upload = store.begin_brief(key_of(number), facts, 0)
    return outcome(store, Finish(upload, 0, EMPTY_DIGEST, 0, facts))


def names_in(store: FileStore, folder: str = "", *, recursive: bool = True, limit: int = 100) -> list[str]:
    """Every name, page by page."""
    names: list[str] = []
    cursor = ""
    while True:
        page, cursor = store.files(folder, recursive, cursor, limit)
        names += [entry.filename.text for entry in page]
        assert len(page) <= limit
        if not cursor:
            return names


def read_all(reader_of: Callable[[], object], filesize: int) -> bytes:
    reader = reader_of()
    view = memoryview(bytearray(filesize + 10))
    count: int = reader.read_into(0, view)  # type: ignore[attr-defined]
    reader.close()  # type: ignore[attr-defined]
    return bytes(view[:count])


class FileStoreContract(UploadStoreContract):
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

    @pytest.mark.clause("BP1-FET-004")
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
            told, cursor = [], ""
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

    @pytest.mark.clause("BP1-COM-029")
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

    @pytest.mark.clause("BP1-COM-029")
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

    @pytest.mark.clause("BP1-COM-029")
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

    @pytest.mark.clause("BP1-RES-022")
    def test_the_sweep_takes_what_expired(self, place: FilePlace) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        upload.close()
        place.store.decide(place.files.sweep(place.now_ms))
        assert len(place.files.uploads(ANYBODY, "", 10)[0]) == 1
        place.pass_time(EXPIRY_MS + 1)
        place.store.decide(place.files.sweep(place.now_ms))
        assert place.files.uploads(ANYBODY, "", 10) == ([], "")
        assert place.leftovers() == 0
