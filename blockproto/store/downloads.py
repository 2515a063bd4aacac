"""Downloads: where a client puts files on its own machine; an interface beside the port."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .facts import Facts, UploadKey
from .port_bytes import Upload
from .port_decisions import UploadStore


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a download goes on this machine.

    Attributes:
        path: of the file to make.
        label: 16 hex digits that name what is in progress beside it: ``.blockproto-LABEL.part``.
        below: the folder behind which no component of ``path`` may be a link; None: links are followed.
        made: files (device, inode number) that this run has made and that nothing of it may replace.
    """

    path: Path
    label: str
    below: Path | None = None
    made: set[tuple[int, int]] = field(default_factory=set, compare=False)


class LocalFiles(Protocol):
    """The finished files of this machine, where downloads go."""

    def look(self, dest: Destination, name: str) -> os.stat_result | None:
        """What stands under ``name`` in the folder of ``dest``, a link itself included; None if nothing does.

        Raises:
            NotPermitted, OSError: the folder cannot be looked into; none at all is no error.
        """

    def set_facts(self, dest: Destination, name: str, mode: int, mtime_ns: int) -> None:
        """Set permission bits and modification time of a regular file there. Raises NotPermitted, OSError."""

    def close(self) -> None:
        """Let go of what is open. Harmless when repeated."""


class DownloadStore(UploadStore, Protocol):
    """A place that takes many downloads of at most one block, each to a path of its own; it commits ``Finish`` only."""

    def takes(self, dest: Destination) -> bool:
        """Whether nothing is there that an ordinary download of ``dest`` would go on with, or has to judge."""

    def begin_at(self, dest: Destination, key: UploadKey, facts: Facts) -> Upload:
        """Begin a file that will be ``dest``; as ``begin_brief``, but the caller closes it after every ``Finish``.

        Raises:
            NotPermitted: the folder is not there or does not take a file.
        """
