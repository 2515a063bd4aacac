"""Records the order in which a store touches the disk, and says what a power cut could break.

The rules of ``violations`` are the order of spec/store.md: a sync covers what was done before it began, and only once it
has ended.

    ledger   the bytes of every partial of the batch are covered, and so is its entry in the folder of partials
             (a brief file's entry may be missing: nobody was promised it); a file that has no name yet is covered whole
    rename   the ledger was written in this batch; the file's bytes, mode and mtime are covered (fdatasync does
             not cover the last two)
    ack      the ledger was written; the folder of every rename and of every new folder is covered
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import blockproto.store.folder_io as disk_module
import blockproto.store.local.batch as batch_module
import blockproto.store.local.new_file as new_file_module
import blockproto.store.local.partial_file as partial_module
import blockproto.store.local.publishing as publishing_module
import blockproto.store.local.recovery as recovery_module
from blockproto.store import BlockDone, Finish, KeepPrefixes, Outcome, Work
from blockproto.store.local.brief_upload import BriefUpload
from blockproto.store.local.ledger import Ledger
from blockproto.store.local.ledger_view import View
from blockproto.store.local.store import LocalStore

EVERYTHING = "*"


@dataclass
class Event:
    """One thing that was done: ``begun`` is how many events had ended when it began."""

    kind: str
    path: str = ""
    begun: int = 0
    files: tuple[tuple[str, bool], ...] = ()


@dataclass
class Trace:
    """What was done, in order."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, path: str = "", begun: int | None = None, **more: Any) -> None:
        self.events.append(Event(kind, path, len(self.events) if begun is None else begun, **more))

    def commit(self, store: LocalStore, works: Sequence[Work]) -> Sequence[Outcome]:
        """Commit a batch and note when its outcomes can be seen."""
        files = tuple(
            (f"{fd_path(store.context.partials_fd)}/{name.decode()}", brief)
            for name, brief in _partials_of(works)
        )
        self.add("begin", files=files)
        outcomes = store.decide(works)
        self.add("ack")
        return outcomes


def _partials_of(works: Sequence[Work]) -> set[tuple[bytes, bool]]:
    found = set()
    for work in works:
        if isinstance(work, BlockDone | Finish | KeepPrefixes):
            upload: Any = work.upload
            found.add((upload.partial_name, isinstance(upload, BriefUpload)))
    return found


def fd_path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@contextmanager
def recording() -> Iterator[Trace]:
    """Record what every local store of this process does."""
    trace = Trace()
    with pytest.MonkeyPatch.context() as patch:
        _record_files(trace, patch)
        _record_syncs(trace, patch)
        _record_ledger(trace, patch)
        yield trace


def _record_files(trace: Trace, patch: pytest.MonkeyPatch) -> None:
    def changes(name: str, kind: str) -> None:
        real = getattr(os, name)

        def call(fd: int, *args: Any, **kwargs: Any) -> Any:
            result = real(fd, *args, **kwargs)
            trace.add(kind, fd_path(fd))
            return result

        patch.setattr(os, name, call)

    changes("pwrite", "bytes")
    changes("ftruncate", "bytes")
    changes("fchmod", "meta")
    changes("utime", "meta")

    def creates(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(folder_fd: int, entry: bytes, *args: Any) -> int:
            fd: int = real(folder_fd, entry, *args)
            trace.add("entry", f"{fd_path(folder_fd)}/{entry.decode()}")
            return fd

        patch.setattr(module, name, call)

    creates(partial_module, "create_file")
    creates(new_file_module, "create_file")
    creates(disk_module, "make_folder")
    _record_unnamed(trace, patch)

    def moves(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(from_fd: int, from_name: bytes, to_fd: int, to_name: bytes) -> None:
            real(from_fd, from_name, to_fd, to_name)
            trace.add("rename", f"{fd_path(from_fd)}/{from_name.decode()}")
            trace.add("entry", f"{fd_path(to_fd)}/{to_name.decode()}")

        patch.setattr(module, name, call)

    for module in (publishing_module, recovery_module, new_file_module):
        moves(module, "move_new")
        moves(module, "move_over")


def _record_unnamed(trace: Trace, patch: pytest.MonkeyPatch) -> None:
    create, name = new_file_module.create_unnamed, new_file_module.give_name

    def create_unnamed(folder_fd: int, mode: int) -> int | None:
        fd = create(folder_fd, mode)
        if fd is not None:
            trace.add("unnamed", fd_path(fd))
        return fd

    def give_name(own_fds: int, fd: int, folder_fd: int, entry: bytes) -> None:
        name(own_fds, fd, folder_fd, entry)
        trace.add("rename", fd_path(fd))
        trace.add("entry", f"{fd_path(folder_fd)}/{entry.decode()}")

    patch.setattr(new_file_module, "create_unnamed", create_unnamed)
    patch.setattr(new_file_module, "give_name", give_name)


def _record_syncs(trace: Trace, patch: pytest.MonkeyPatch) -> None:
    def syncs(module: Any, name: str, kind: str, path_of: Callable[[int], str]) -> None:
        real = getattr(module, name)

        def call(fd: int) -> None:
            begun, path = len(trace.events), path_of(fd)
            real(fd)
            trace.add(kind, path, begun)

        patch.setattr(module, name, call)

    syncs(os, "fsync", "sync", fd_path)
    syncs(os, "fdatasync", "datasync", fd_path)
    for module in (batch_module, disk_module, recovery_module):
        syncs(module, "syncfs", "sync", lambda _: EVERYTHING)


def _record_ledger(trace: Trace, patch: pytest.MonkeyPatch) -> None:
    real = Ledger.write

    @contextmanager
    def write(ledger: Ledger) -> Iterator[View]:
        with real(ledger) as view:
            yield view
        trace.add("ledger")

    patch.setattr(Ledger, "write", write)


def violations(trace: Trace) -> list[str]:
    """What a power cut at some point of the trace could break."""
    return list(_Judge(trace.events).complaints())


class _Judge:
    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def complaints(self) -> Iterator[str]:
        begin = -1
        for at, event in enumerate(self._events):
            if event.kind == "begin":
                begin = at
            elif event.kind == "ledger" and begin >= 0:
                yield from self._ledger(begin, at)
            elif event.kind == "rename":
                yield from self._rename(event.path, begin, at)
            elif event.kind == "ack":
                yield from self._ack(begin, at)
                begin = -1

    def _ledger(self, begin: int, at: int) -> Iterator[str]:
        for event in self._events[begin:at]:
            if event.kind == "unnamed" and not (
                self._covered(event.path, "bytes", at) and self._covered(event.path, "meta", at)
            ):
                yield "the ledger claims a file without a name that is not synced"
        for path, brief in self._events[begin].files:
            if not self._covered(path, "bytes", at):
                yield "the ledger claims bytes that are not synced"
            if not brief and not self._covered(path, "entry", at):
                yield "the ledger claims a partial whose entry is not synced"

    def _rename(self, path: str, begin: int, at: int) -> Iterator[str]:
        if begin >= 0 and not self._ledger_between(begin, at):
            yield "a file got its name before the ledger knew of it"
        if not self._covered(path, "bytes", at) or not self._covered(path, "meta", at):
            yield "a file got its name before it was synced"

    def _ack(self, begin: int, at: int) -> Iterator[str]:
        if not self._ledger_between(begin, at):
            yield "acknowledged before the ledger was written"
        partials = {path for path, _ in self._events[begin].files}
        partials |= {event.path for event in self._events[begin:at] if event.kind == "rename"}
        for event in self._events[begin:at]:
            if (
                event.kind == "entry"
                and event.path not in partials
                and not self._covered(event.path, "entry", at)
            ):
                yield "acknowledged before the folder was synced"

    def _ledger_between(self, begin: int, at: int) -> bool:
        return any(event.kind == "ledger" for event in self._events[begin:at])

    def _covered(self, path: str, kind: str, at: int) -> bool:
        """Whether what was last done to a path is covered by a sync that ended before ``at``."""
        done = [n for n, event in enumerate(self._events[:at]) if event.kind == kind and event.path == path]
        if not done:
            return True
        synced = os.path.dirname(path) if kind == "entry" else path
        kinds = ("sync", "datasync") if kind == "bytes" else ("sync",)
        return any(
            event.kind in kinds and event.path in (synced, EVERYTHING) and event.begun > done[-1]
            for event in self._events[done[-1] : at]
        )
