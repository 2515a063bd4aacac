"""What the harness's server has, and its honest answers to LIST and REMOVE."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ... import wire
from ...errors import Code, Scope
from ..peer import Heard
from ..sample import Sample
from .visit import Visit

MTIME_NS = 1_600_000_000_000_000_000
MODE = 0o644


@dataclass
class Shelf:
    """What the served folder holds, and what is known of uploads.

    Attributes:
        files: the finished files by name, with their versions.
        receipts: COMMITTED of finished uploads, by sourceid.
        unfinished: what LIST of kind 2 says.
        removed: every REMOVE that came.
        lists: every LIST that came.
    """

    files: dict[str, tuple[Sample, bytes]] = field(default_factory=dict)
    receipts: dict[bytes, wire.ReceiptItem] = field(default_factory=dict)
    unfinished: list[wire.UploadItem] = field(default_factory=list)
    removed: list[wire.Remove] = field(default_factory=list)
    lists: list[wire.List] = field(default_factory=list)

    def offer(self, sample: Sample) -> bytes:
        """Put a file there; returns its version."""
        version = os.urandom(16)
        self.files[sample.filename] = (sample, version)
        return version

    def answer(self, visit: Visit, heard: Heard) -> bool:
        """Answer a LIST or REMOVE as an honest server does; False if it is neither."""
        message = heard.message
        if isinstance(message, wire.Remove):
            self.removed.append(message)
            visit.say(heard.stream, wire.Result(message.kind))
        elif isinstance(message, wire.List):
            self.lists.append(message)
            visit.say(heard.stream, self._listed(message))
        else:
            return False
        return True

    def _listed(self, message: wire.List) -> wire.Result | wire.Error:
        if message.kind == wire.ListKind.RECEIPTS:
            return wire.Result(
                message.kind, tuple(self.receipts[one] for one in message.ids if one in self.receipts)
            )
        if message.kind == wire.ListKind.UPLOADS:
            return wire.Result(message.kind, tuple(self.unfinished))
        if not message.exact:
            return wire.Result(message.kind, tuple(self.item(name) for name in sorted(self.files)))
        if message.name not in self.files:
            return wire.Error(Code.UNKNOWN_FILE, Scope.STREAM, False, "there is none")
        return wire.Result(message.kind, (self.item(message.name, message.b3sum),))

    def item(self, name: str, b3sum: bool = False) -> wire.FileItem:
        """The entry of a file."""
        sample, version = self.files[name]
        return wire.FileItem(
            kind=wire.EntryKind.FILE,
            filesize=sample.filesize,
            mtime_ns=MTIME_NS,
            mode=MODE,
            file_id=bytes(16),
            version=version,
            filename=name,
            filetype=sample.filetype,
            b3sum=sample.b3sum if b3sum else None,
        )

    def wanted(self, visit: Visit, what: str) -> Heard:
        """The next frame that is no question; questions are answered."""
        while True:
            heard = visit.hear(what)
            if not self.answer(visit, heard):
                return heard
