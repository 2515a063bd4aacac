"""A client that sends files to a store until they are committed, and remembers what it was promised.

The content of a file follows from its name ("…-SEED-SIZE"), so whoever finds one can tell whether it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from blockproto.common.blocks import BLOCK_LENGTH, block_span, blocknum_of, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError
from blockproto.store import (
    BlockDone,
    Facts,
    FileStore,
    Finish,
    IfExists,
    KeepPrefixes,
    Outcome,
    Prefix,
    StoredFile,
    StoreFiles,
    Upload,
    UploadKey,
    WholeFile,
    Work,
)

ANYBODY = bytes(16)
Commit = Callable[[Sequence[Work]], Sequence[Outcome]]


@dataclass(frozen=True)
class Job:
    """One file to send: its name says what is in it."""

    name: str

    @property
    def seed(self) -> int:
        return int(self.name.split("-")[-2])

    @property
    def filesize(self) -> int:
        return int(self.name.split("-")[-1])

    @property
    def key(self) -> UploadKey:
        return UploadKey(ANYBODY, digest_of(self.name.encode())[:16])

    @property
    def facts(self) -> Facts:
        rule = IfExists.REPLACE if self.replaces else IfExists.KEEP
        name, mtime_ns = SafeName.parse(self.name), 1_000_000_000_000_000_000
        return Facts(name, "application/x-test", self.filesize, mtime_ns, 0o640, rule)

    @property
    def replaces(self) -> bool:
        """Whether it is to take the place of what has its name."""
        return "replacing" in self.name

    def content(self) -> bytes:
        return _content(self.seed, self.filesize)

    def root(self) -> bytes:
        content, blocknum = self.content(), blocknum_of(self.filesize)
        return root_of((digest_of(_block(content, n)) for n in range(blocknum)), blocknum)


@cache
def _content(seed: int, filesize: int) -> bytes:
    """Bytes that repeat only after 64 KiB, and nowhere two blocks that are equal."""
    unit = b"".join(digest_of(b"%d %d" % (seed, n)) for n in range(2048))
    blocks = (n.to_bytes(8, "big") + unit * 16 for n in range(blocknum_of(filesize)))
    return b"".join(block[:BLOCK_LENGTH] for block in blocks)[:filesize]


def _block(content: bytes, blockno: int) -> bytes:
    position, length = block_span(blockno, 0, len(content))
    return content[position : position + length]


@dataclass
class Promises:
    """What the store acknowledged.

    Attributes:
        blocks: by name of the file.
        files: names of committed files.
        say: told of every promise as it is made.
    """

    blocks: dict[str, set[int]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    say: Callable[[str], None] = lambda _: None

    def block(self, name: str, blockno: int) -> None:
        self.blocks.setdefault(name, set()).add(blockno)
        self.say(f"block {name} {blockno}")

    def file(self, name: str) -> None:
        self.files.add(name)
        self.say(f"file {name}")

    def hear(self, line: str) -> None:
        """Take note of what ``say`` said in another process."""
        kind, name, *blockno = line.split(" ")
        if kind == "file":
            self.files.add(name)
        else:
            self.blocks.setdefault(name, set()).add(int(blockno[0]))


def good(outcome: Outcome) -> StoredFile | None:
    """The outcome of a work that went well."""
    if isinstance(outcome, BlockprotoError):
        raise AssertionError(f"refused: {outcome!r}")
    assert not isinstance(outcome, tuple)
    return outcome


def send(
    store: FileStore, job: Job, promises: Promises, attempt: int, commit: Commit | None = None
) -> StoredFile:
    """Send a file block by block, from wherever the store has it, until it is committed."""
    commit = store.decide if commit is None else commit
    upload = store.open_upload(job.key, job.facts, attempt)
    if isinstance(upload, StoredFile):
        return upload
    content = job.content()
    for blockno in list(upload.held.missing(blocknum_of(job.filesize))):
        block = _block(content, blockno)
        if blockno % 2:
            _send_prefix(upload, blockno, block, attempt, commit)
        upload.write(blockno * BLOCK_LENGTH, memoryview(block))
        done = BlockDone(upload, attempt, blockno, len(block), digest_of(block))
        good(*commit([done]))
        promises.block(job.name, blockno)
    finish = Finish(upload, attempt, job.root(), job.filesize, job.facts)
    stored = good(*commit([finish]))
    assert stored is not None
    promises.file(stored.stored_as)
    upload.close()
    return stored


def _send_prefix(upload: Upload, blockno: int, block: bytes, attempt: int, commit: Commit) -> None:
    head = block[: len(block) // 2]
    upload.write(blockno * BLOCK_LENGTH, memoryview(head))
    commit([KeepPrefixes(upload, attempt, {blockno: Prefix(len(head), digest_of(head))})])


def send_brief(
    store: FileStore, jobs: Sequence[Job], promises: Promises, commit: Commit | None = None
) -> None:
    """Send small files without OPEN, in one batch."""
    commit = store.decide if commit is None else commit
    works = []
    for job in jobs:
        upload = store.begin_brief(job.key, job.facts, 0)
        content = job.content()
        upload.write(0, memoryview(content))
        block = BlockDone(upload, 0, 0, len(content), digest_of(content))
        works.append(Finish(upload, 0, job.root(), job.filesize, job.facts, (block,)))
    for work, outcome in zip(works, commit(works), strict=True):
        stored = good(outcome)
        assert stored is not None
        promises.file(stored.stored_as)
        work.upload.close()


def send_whole(
    store: FileStore, jobs: Sequence[Job], promises: Promises, commit: Commit | None = None
) -> None:
    """Send small files whole, several in each work; and those that replace once more, by somebody else."""
    commit = store.decide if commit is None else commit
    other = [(UploadKey(ANYBODY, digest_of(job.key.sourceid)[:16]), job) for job in jobs if job.replaces]
    for each in ([(job.key, job) for job in jobs], other):
        files = [WholeFile(key, job.facts, job.root(), job.content()) for key, job in each]
        works = [StoreFiles(ANYBODY, tuple(files[at : at + 16])) for at in range(0, len(files), 16)]
        for outcome in commit(works):
            assert isinstance(outcome, tuple)
            for one in outcome:
                stored = good(one)
                assert isinstance(stored, StoredFile)
                promises.file(stored.stored_as)


def broken_promises(store: FileStore, promises: Promises) -> list[str]:
    """What was promised and is not there."""
    broken = []
    there = set()
    cursor = ""
    while True:
        page, cursor = store.files("", True, cursor, 1000)
        for entry in page:
            if not entry.folder:
                there.add(entry.filename.text)
                broken += [] if _is_whole(store, entry.filename) else [f"{entry.filename.text} is not whole"]
        if not cursor:
            break
    broken += [f"{name} was committed and is gone" for name in promises.files - there]
    for name, blocknos in promises.blocks.items():
        if name not in there:
            broken += _broken_blocks(store, Job(name), blocknos)
    return broken


def _is_whole(store: FileStore, name: SafeName) -> bool:
    job = Job(name.text)
    reader = store.open_file(name, None)
    view = memoryview(bytearray(job.filesize + 1))
    count = reader.read_into(0, view)
    reader.close()
    return bytes(view[:count]) == job.content()


def _broken_blocks(store: FileStore, job: Job, blocknos: set[int]) -> list[str]:
    upload = store.open_upload(job.key, job.facts, 1 << 62)
    if isinstance(upload, StoredFile):
        return [f"{job.name} has a receipt and no file"]
    try:
        content = job.content()
        broken = []
        for blockno in sorted(blocknos):
            block = _block(content, blockno)
            view = memoryview(bytearray(len(block)))
            if blockno not in upload.held:
                broken.append(f"block {blockno} of {job.name} was acknowledged and would be asked for again")
            elif upload.read_into(blockno * BLOCK_LENGTH, view) != len(block) or view != block:
                broken.append(f"block {blockno} of {job.name} was acknowledged and has other bytes")
        return broken
    finally:
        upload.close()
