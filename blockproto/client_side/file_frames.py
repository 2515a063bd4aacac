"""Small files put into frames: read, hashed and packed many at a time, in a worker thread.

One open, one read and one look for each file, into the memory of the whole frame. A file must still be what it was when it
was looked at; one that is not, or cannot be read, is left out of its frame, with the reason.

Spec: BP1-FIL-002, BP1-FIL-004.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..common.blocks import EMPTY_DIGEST, digest_of
from ..common.file_table import FILES_MAX, HEAD_SPARE, TableBuilder
from ..common.names import show_name
from ..common.times import mtime_of
from ..errors import BlockprotoError, SourceChanged
from ..wire import Files
from .file_digests import LOOKS_MAX
from .fingerprint import is_unchanged
from .regular_file import check_regular, open_looked_at
from .upload_decision import Prepared


@dataclass(slots=True, eq=False)
class Frame:
    """Files that go together.

    Attributes:
        message: what is said of them; its number and LAST are the sender's to set.
        payload: their bytes.
        ones: the files, in the order of the frame.
        roots: the digest of each.
        failed: those that are not among them, and why.
        taken: how many of the files that were given are among the one or the other.
    """

    message: Files
    payload: memoryview
    ones: list[Prepared] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)
    failed: list[tuple[Prepared, OSError | BlockprotoError]] = field(default_factory=list)
    taken: int = 0


class FramePacker:
    """Packs frames, one after another, into memory that it uses again: two frames are good at a time.

    Args:
        length_max: bytes of payload that a frame may have.
        head_length_max: bytes of head that the receiver takes.
    """

    def __init__(self, length_max: int, head_length_max: int) -> None:
        self._head_length_max = head_length_max - HEAD_SPARE
        self._memories = [memoryview(bytearray(length_max + 1)) for _ in range(2)]

    def pack(self, ones: Sequence[Prepared], start: int, length_max: int) -> Frame:
        """A frame of the files from ``start`` on, as many as fit: at least one. Blocking.

        Args:
            ones: files and folders; none has more bytes than ``length_max``.
            start: the first that is not in a frame yet.
            length_max: bytes of payload that this frame may have; no more than at the beginning.
        """
        self._memories.reverse()
        memory = self._memories[0]
        table = TableBuilder(self._head_length_max)
        rule = ones[start].facts.if_exists
        frame = Frame(Files(0, last=True), memory[:0])
        length, at = 0, start
        while at < len(ones) and len(frame.ones) < FILES_MAX:
            one = ones[at]
            size = one.facts.filesize or 0
            facts = one.facts
            if facts.if_exists != rule or length + size > length_max:
                break
            folder, _, name = facts.filename.text.rpartition("/")
            if not table.has_room(folder, name, facts.filetype):
                break
            at += 1
            try:
                view = memory[length : length + size + 1]
                root = EMPTY_DIGEST if one.is_folder else _read_into(view, one, size)
            except (OSError, BlockprotoError) as exc:
                frame.failed.append((one, exc))
                continue
            table.add(one.sourceid, root, size, facts.mtime_ns, facts.mode, folder, facts.filetype, name)
            frame.ones.append(one)
            frame.roots.append(root)
            length += size
        frame.taken = at - start
        frame.payload = memory[:length]
        frame.message = Files(0, *table.parts, rule, last=not frame.ones)
        return frame


def _read_into(view: memoryview, one: Prepared, size: int) -> bytes:
    """Read a file, which must still be what it was when it was looked at; ``one.stat`` is that of now. Returns its digest.

    ``view`` has room for one byte more than there should be: whether the file has grown shows without another call.
    """
    fd = open_looked_at(one.job.path)
    try:
        for again in range(LOOKS_MAX):
            if again:
                os.lseek(fd, 0, os.SEEK_SET)
            try:
                length = _read_all(fd, view)
            except OSError:
                check_regular(one.job.path, os.fstat(fd))  # a folder, or a pipe
                raise
            before, one.stat = one.stat, os.fstat(fd)
            if is_unchanged(before, one.stat) and length == size:
                return digest_of(view[:size])
            check_regular(one.job.path, one.stat)
            if (length, mtime_of(one.stat)) != (size, one.facts.mtime_ns):
                break
    finally:
        os.close(fd)
    raise SourceChanged(f"{show_name(str(one.job.path))} changed while it was being read")


def _read_all(fd: int, view: memoryview) -> int:
    """Fill ``view`` as far as there are bytes; returns how many there were."""
    if hasattr(os, "readv"):
        length = os.readv(fd, [view])
        return length if length in (0, len(view) - 1) else length + _read_rest(fd, view[length:])
    return _read_rest(fd, view)


def _read_rest(fd: int, view: memoryview) -> int:
    done = 0
    while done < len(view):
        some = os.read(fd, len(view) - done)
        if not some:
            break
        view[done : done + len(some)] = some
        done += len(some)
    return done
