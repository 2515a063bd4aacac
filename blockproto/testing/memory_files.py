"""MemoryFiles: the finished files of a MemoryStore, and what becomes of a file whose name is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from ..common.names import SafeName
from ..errors import FileExists, NotEmpty, NotPermitted, UnknownFile
from ..store import (
    FOLDER_FILETYPE,
    ROUNDS_MAX,
    Adopt,
    Facts,
    FileEntry,
    Finish,
    IfExists,
    RecordB3sum,
    Remove,
    StoredFile,
    Undecided,
    UploadKey,
    Verdict,
)
from ..store.name_rules import Kind, decide_name, is_later
from ..store.rules import first_free, free_names, is_within


@dataclass(slots=True)
class MemoryFile:
    """A finished file or folder."""

    entry: FileEntry
    content: bytes = b""
    file_ids: set[bytes] = field(default_factory=set)


class MemoryReader:
    """A finished file of a MemoryStore; the port's ``StoredReader``."""

    def __init__(self, entry: FileEntry, content: bytes) -> None:
        self.entry = entry
        self._content = content

    def read_into(self, position: int, view: memoryview) -> int:
        """Copy from the content the file had when it was opened."""
        part = self._content[position : position + len(view)]
        view[: len(part)] = part
        return len(part)

    def unchanged(self) -> bool:
        """Always: an opened file keeps its bytes."""
        return True

    def sync(self) -> None:
        """What is committed is durable."""

    def close(self) -> None:
        """Nothing is open."""


class MemoryFiles(dict[str, MemoryFile]):
    """Finished files and folders by their names.

    Args:
        now_ms: the clock, Unix ms.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__()
        self._now_ms = now_ms
        self._version = 0

    def twin(self) -> MemoryFiles:
        """The same files, apart from what is done to these from now on."""
        twin = MemoryFiles(self._now_ms)
        twin.update(self)
        twin._version = self._version
        return twin

    # -- look

    def find(self, filename: SafeName | None, file_id: bytes | None) -> MemoryFile:
        """A file by its name, or by an id where that is None. Raises UnknownFile."""
        for kept in self.values():
            if kept.entry.filename == filename or (
                filename is None and file_id != bytes(16) and file_id in (kept.entry.file_id, *kept.file_ids)
            ):
                return kept
        raise UnknownFile

    def may_be_there(self, facts: Facts) -> bool:
        """See ``Files``."""
        there = self.get(facts.filename.text)
        if there is None:
            return False
        return facts.if_exists is IfExists.KEEP or there.entry.filesize == facts.filesize

    def check_parent(self, name: SafeName) -> None:
        """See ``UploadStore.check_parent``."""
        above = name.text
        while "/" in above:
            above = above.rpartition("/")[0]
            there = self.get(above)
            if there is not None and not there.entry.folder:
                raise NotPermitted("something that is no folder stands in the path")

    def page(self, folder: str, recursive: bool, cursor: str, limit: int) -> tuple[list[FileEntry], str]:
        """See ``Files.files``."""
        if folder and not self.find(SafeName.parse(folder), None).entry.folder:
            raise UnknownFile("it is no folder")
        above = folder + "/" if folder else ""
        names = [
            name
            for name in sorted(self, key=str.encode)
            if name.startswith(above)
            and (recursive or "/" not in name[len(above) :])
            and name.encode() > cursor.encode("utf-8", "surrogateescape")
        ]
        page = [self[name].entry for name in names[:limit]]
        return page, names[limit - 1] if len(names) > limit else ""

    def open_to_read(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> MemoryReader:
        """See ``Files.open_file``."""
        kept = self.find(filename, file_id)
        if filename is None and not is_within(kept.entry.filename.text, within):
            raise UnknownFile
        if kept.entry.folder:
            raise NotPermitted("it is a folder")
        entry = kept.entry if file_id is None else replace(kept.entry, file_id=file_id)
        return MemoryReader(entry, kept.content)

    # -- names that are taken

    def judge_early(self, key: UploadKey, facts: Facts, reader: bool) -> StoredFile | None:
        """What is known of a name before the bytes have come: it is left, or nothing yet (None).

        Raises:
            FileExists, NotPermitted: the commit would be refused.
        """
        there = self.get(facts.filename.text)
        if there is None or facts.if_exists in (IfExists.KEEP, IfExists.REPLACE):
            return None
        may_be_equal = reader and facts.filesize in (None, there.entry.filesize)
        verdict = _verdict(facts, there.entry, None if may_be_equal else False)
        if verdict is Verdict.REFUSE:
            raise FileExists
        return left_as(key, there.entry, reader) if verdict is Verdict.LEAVE else None

    def choose(self, work: Finish | Adopt, key: UploadKey) -> SafeName | StoredFile | MemoryFile:
        """The name a file gets; or the file that is it already, or that what is there is left.

        Raises:
            FileExists, NotPermitted: the rule says so.
            Undecided: a file has to be read first.
        """
        facts = work.facts
        there = self.get(facts.filename.text)
        if there is None:
            return facts.filename
        verdict = _verdict(facts, there.entry, None)
        if verdict is Verdict.LEAVE:
            return left_as(key, there.entry, work.reader)
        if facts.filetype == FOLDER_FILETYPE:
            return facts.filename
        names = [facts.filename]
        if facts.if_exists is IfExists.KEEP:
            names += takewhile(lambda name: name.text in self, free_names(facts.filename))
        same = next((kept for name in names if (kept := self[name.text]) and is_same(kept, work)), None)
        if same is not None:
            return same
        verdict = _verdict(facts, there.entry, False)
        if verdict is Verdict.REFUSE:
            raise FileExists
        if verdict is Verdict.NEXT:
            return first_free(facts.filename, lambda name: name.text not in self)
        return facts.filename

    # -- change

    def put(self, work: Finish, file_id: bytes, content: bytes, name: SafeName) -> FileEntry:
        """Give a file or folder a name, whatever has it."""
        folder = work.facts.filetype == FOLDER_FILETYPE
        for at in range(1, len(name.components)):
            self._make_folder(SafeName.parse("/".join(name.components[:at])))
        self._version += 1
        entry = FileEntry(
            filename=name,
            folder=folder,
            filesize=len(content),
            mtime_ns=work.facts.mtime_ns if work.facts.mtime_ns is not None else self._now_ms() * 1_000_000,
            mode=work.facts.mode if work.facts.mode is not None else 0o644,
            version=self._version.to_bytes(16, "big"),
            file_id=file_id,
            filetype=work.facts.filetype,
            root=work.root,
            stamp=self._version.to_bytes(16, "big"),
            committed_root=None if folder else work.root,
        )
        self[name.text] = MemoryFile(entry, content)
        return entry

    def _make_folder(self, name: SafeName) -> None:
        there = self.get(name.text)
        if there is None:
            self._version += 1
            version = self._version.to_bytes(16, "big")
            entry = FileEntry(
                name, True, 0, self._now_ms() * 1_000_000, 0o755, version, filetype=FOLDER_FILETYPE
            )
            self[name.text] = MemoryFile(entry)
        elif not there.entry.folder:
            raise NotPermitted("a file stands where a folder should be")

    def take_facts(self, facts: Facts, file_id: bytes, there: MemoryFile) -> None:
        """A file is there already: it has one more id, and where it was to be replaced it gets mtime and mode."""
        entry = there.entry
        if facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE):
            mtime_ns = entry.mtime_ns if facts.mtime_ns is None else facts.mtime_ns
            mode = entry.mode if facts.mode is None else facts.mode
            there.entry = replace(entry, mtime_ns=mtime_ns, mode=mode)
        there.file_ids.add(file_id)

    def remove(self, work: Remove) -> None:
        """See ``Remove``."""
        kept = self.find(work.filename, work.file_id)
        name = kept.entry.filename.text
        inside = [other for other in self if other.startswith(name + "/")]
        if inside and not work.recursive:
            raise NotEmpty
        for gone in [name, *inside]:
            del self[gone]

    def record_b3sum(self, work: RecordB3sum) -> None:
        """See ``RecordB3sum``."""
        kept = self.find(work.filename, None)
        if kept.entry.version == work.version:
            b3sum, root = work.b3sum or kept.entry.b3sum, work.root or kept.entry.root
            kept.entry = replace(kept.entry, b3sum=b3sum, root=root)


def _verdict(facts: Facts, there: FileEntry, equal: bool | None) -> Verdict:
    folder = facts.filetype == FOLDER_FILETYPE
    kind = Kind.FOLDER if there.folder else Kind.FILE
    newer = is_later(facts, there.mtime_ns)
    return decide_name(facts.if_exists, kind, folder=folder, equal=equal, newer=newer)


def left_as(key: UploadKey, entry: FileEntry, reader: bool) -> StoredFile:
    """What has the name was left; with what a reader may know of it."""
    known = reader and not entry.folder
    file_id, root = entry.file_id if known else bytes(16), (entry.root if known else None) or bytes(32)
    filesize = entry.filesize if known else 0
    return StoredFile(key.sourceid, file_id, root, filesize, entry.filename.text, left=True)


def is_same(there: MemoryFile, work: Finish | Adopt) -> bool:
    """Whether a file is that of ``work``, by its size and root.

    Raises:
        Undecided: nobody has read it yet.
    """
    filesize = work.filesize if isinstance(work, Finish) else work.facts.filesize
    if not work.reader or there.entry.folder or there.entry.filesize != filesize:
        return False
    if there.entry.root is None and work.rounds < ROUNDS_MAX:
        raise Undecided((there.entry.filename.text,))
    return there.entry.root == work.root
