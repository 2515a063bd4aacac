"""Whole files on their way into the store: room in the quota, their bytes, one work each, and the outcomes of all together.

Spec: BP1-FIL-005, BP1-FIL-007.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..errors import BlockprotoError, StoreFailed
from ..store import BlockDone, Finish, Outcome, StoredFile, Upload
from .file_frame import FileOutcome, WholeFile
from .live_uploads import LiveUploads
from .slow_disk import Disk


class FilesInStore:
    """The files of one frame.

    Args:
        uploads: begins them, and knows those that are unfinished.
        disk: decides whether writes leave the Trio thread.
        reader: their principal may read.
        files: what is to be stored.
        done: called once, with the outcome of each.
    """

    def __init__(
        self,
        uploads: LiveUploads,
        disk: Disk,
        reader: bool,
        files: Sequence[WholeFile],
        done: Callable[[Sequence[FileOutcome]], None],
    ) -> None:
        self._uploads = uploads
        self._disk = disk
        self._reader = reader
        self._files = files
        self._done = done
        self._outcomes: list[FileOutcome | None] = [None] * len(files)
        self._left = len(files) + 1

    async def begin(self) -> list[Upload]:
        """Let the committer have them; returns those it has. Raises StoreFailed."""
        exceeded = await self._uploads.begin_files(self._files)
        begun = []
        for at, file in enumerate(self._files):
            refusal = exceeded.get(file.key)
            if refusal is not None:
                self._end(at, refusal)
                continue
            try:
                begun.append(await self._begin_one(at, file))
            except BlockprotoError as exc:
                self._uploads.end_brief(file.key)
                if isinstance(exc, StoreFailed):
                    raise
                self._end(at, exc.with_traceback(None))
        self._count()
        return begun

    async def _begin_one(self, at: int, file: WholeFile) -> Upload:
        upload = self._uploads.store.begin_brief(file.key, file.facts, 0)
        length = len(file.content)
        try:
            if length:
                await self._disk.write(upload, 0, file.content)
            blocks = (BlockDone(upload, 0, 0, length, file.root),) if length else ()
            work = Finish(upload, 0, file.root, length, file.facts, blocks, self._reader)
            done = partial(self._on_finished, at, file, upload)
            self._uploads.committer.submit(work, done, principal=file.key.principal, small=True)
        except BaseException:
            upload.close()
            raise
        return upload

    def _on_finished(self, at: int, file: WholeFile, upload: Upload, outcome: Outcome) -> None:
        upload.close()
        self._uploads.end_brief(file.key)
        live = self._uploads.find(file.key)
        if live is not None and isinstance(outcome, StoredFile):
            live.committed_as(outcome)
        assert outcome is not None  # a Finish has a receipt, or why there is none
        assert not isinstance(outcome, tuple)
        self._end(at, outcome)

    def _end(self, at: int, outcome: FileOutcome) -> None:
        self._outcomes[at] = outcome
        self._count()

    def _count(self) -> None:
        """One more has its outcome, or all have been begun."""
        self._left -= 1
        if not self._left:
            self._done([outcome for outcome in self._outcomes if outcome is not None])
