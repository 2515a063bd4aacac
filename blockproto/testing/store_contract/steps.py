"""What the rules of the contract are written with: content, uploads, works and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, block_span, blocknum_of, digest_of, root_of
from ...common.names import SafeName
from ...errors import (
    BlockprotoError,
)
from ...store import (
    FOLDER_FILETYPE,
    BlockDone,
    Facts,
    FileStore,
    Finish,
    IfExists,
    StoredFile,
    StoredReader,
    Upload,
    UploadKey,
    UploadStore,
    Work,
)

NAME = "file.bin"
NOW_MS = 1_800_000_000_000
ANYBODY = bytes(16)
SIZES = [0, 1, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 3 * BLOCK_LENGTH, 3 * BLOCK_LENGTH + 17]
JOIN_S = 30.0
"""How long a thread may take at the most."""

_Test = TypeVar("_Test")


def clause(*ids: str) -> Callable[[_Test], _Test]:
    """Say which clauses of the specification a rule proves; tools read it in the source."""
    return lambda test: test


def pattern(filesize: int, seed: int = 0) -> bytes:
    """Bytes that differ from block to block."""
    unit = b"".join((seed * 1_000_003 + number).to_bytes(4, "big") for number in range(4096))
    return (unit * (filesize // len(unit) + 1))[:filesize]


def key_of(number: int, principal: bytes = ANYBODY) -> UploadKey:
    """The key of an upload of its own for each number."""
    return UploadKey(principal, number.to_bytes(16, "big"))


def facts_of(filesize: int | None, name: str = NAME, if_exists: IfExists = IfExists.KEEP) -> Facts:
    """What the sender of a file says of it."""
    return Facts(SafeName.parse(name), "application/x-test", filesize, if_exists=if_exists)


def opened(
    store: UploadStore, filesize: int | None, *, number: int = 1, name: str = NAME, attempt: int = 1
) -> Upload:
    """An upload that is not committed yet."""
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
    """The root of a file with these bytes."""
    blocknum = blocknum_of(len(content))
    return root_of(
        (digest_of(content[n * BLOCK_LENGTH : (n + 1) * BLOCK_LENGTH]) for n in range(blocknum)), blocknum
    )


def finish_of(
    upload: Upload, content: bytes, *, attempt: int = 1, if_exists: IfExists = IfExists.KEEP, name: str = NAME
) -> Finish:
    """The work that commits an upload with these bytes."""
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
    """What becomes of works of one call."""
    return list(store.decide(works))


def outcome(store: UploadStore, work: Work) -> object:
    """What becomes of one work."""
    return outcomes(store, work)[0]


def stored(store: UploadStore, *works: Work) -> StoredFile:
    """Commit, expect all to go well and the last to give a receipt."""
    found = outcomes(store, *works)
    assert [one for one in found[:-1] if one is not None] == []
    assert isinstance(found[-1], StoredFile), found[-1]
    return found[-1]


def refused(store: UploadStore, work: Work, error: type[BlockprotoError]) -> BlockprotoError:
    """The error that is the outcome of a work, and has to be of this type."""
    found = outcome(store, work)
    assert isinstance(found, error), found
    return found


def close_while_writing(
    stop_writes: Callable[[threading.Event, threading.Event], None],
    upload: Upload,
    close: Callable[[], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Close in the middle of a write, which may wait for it; a write that comes after that is harmless.

    Args:
        stop_writes: see ``Place``.
        upload: it was written to.
        close: of the upload, or of the store.
        meanwhile: called when it was closed, or waits for the write.
    """
    entered, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with suppress(BlockprotoError):
            upload.write(100_000, memoryview(b"x" * 100_000))

    stop_writes(entered, go_on)
    writer, closer = threading.Thread(target=write), threading.Thread(target=close)
    writer.start()
    while writer.is_alive() and not entered.wait(0.01):
        pass  # a store that does not write to a file has been quick
    closer.start()
    closer.join(0.3)  # some are closed now, others wait for the write
    meanwhile()
    go_on.set()
    for thread in (writer, closer):
        thread.join(JOIN_S)
        assert not thread.is_alive()
    with suppress(BlockprotoError):
        upload.write(0, memoryview(b"y"))


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
    """The outcome of making a folder."""
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


def read_all(reader_of: Callable[[], StoredReader], filesize: int) -> bytes:
    """The bytes of a file that ``reader_of`` opens; up to ten more than ``filesize``."""
    reader = reader_of()
    view = memoryview(bytearray(filesize + 10))
    count = reader.read_into(0, view)
    reader.close()
    return bytes(view[:count])
