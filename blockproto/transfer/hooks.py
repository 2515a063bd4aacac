"""Hooks of a server: what has to agree before a file gets its name, and what hears of it afterwards.

    works → committer → store: the file would get its name → ``HookRunner.ask`` → before hooks
                ↑                                                                  │ all agree: once more to the store
                └──────────────────────────────────────────────────────────────────┤ refused: HOOK_REFUSED, nothing is done
    receipt that is new, durable and visible → ``HookRunner.tell`` → after hooks

The committer asks for every file, however it came: native uploads, brief files, dialects, and files that are there already.
The store says when (``AskFirst``), so a receipt that exists is answered without asking again.

A before hook delays the uploads of its own file and nothing else. Its refusal leaves the upload with all that it holds. A
hook that fails, or has not answered within ``CommitHooks.deadline_s``, refuses too: then trying again can help.

After hooks are told in memory: each hears of a file at most once, and not at all if the server ends first.

Spec: BP1-COM-029, BP1-COM-030.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from ..common.names import show_name
from ..errors import BlockprotoError, Cancelled, HookRefused
from ..store import Adopt, Facts, Finish, Outcome, StoredFile, StoreFiles, Upload, UploadKey, WholeFile, Work

DEADLINE_S = 10.0
"""How long hooks may take, unless told otherwise."""
AFTER_AT_ONCE = 64
"""After hooks that run at the same time."""
AFTER_QUEUED_MAX = 100_000
"""Files whose after hooks wait for their turn; of more, nobody is told."""

log = logging.getLogger(__name__)

Storing = Finish | Adopt | StoreFiles
"""What gives a file its name; the last with one file only."""

Answered = Callable[[BlockprotoError | None], None]
"""Called once with why a file may not have its name, or None."""


@dataclass(frozen=True, slots=True)
class FileToCommit:
    """A file whose bytes are there and verified, before it gets its name.

    Attributes:
        filename: the name its sender wants, in the served folder; it may get another one where that is taken.
        filetype: MIME type as its sender says it; ``inode/directory`` for a folder.
        filesize: bytes.
        root: the digest of its block digests (32 bytes).
        file_id: of the upload (16 bytes); the finished file has it too.
        principal: of the sender (16 bytes; zeros: anonymous).
        mtime_ns: modification time as its sender says it, in nanoseconds since 1970, or None.
    """

    filename: str
    filetype: str
    filesize: int
    root: bytes
    file_id: bytes
    principal: bytes
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file that is durable and has its name.

    Attributes:
        filename: the name it has, in the served folder.
        there: the file was there already with these bytes, and nothing was stored (BP1-COM-021).
        filetype, filesize, root, file_id, principal: as in ``FileToCommit``.
    """

    filename: str
    filetype: str
    filesize: int
    root: bytes
    file_id: bytes
    principal: bytes
    there: bool = False


class BeforeCommit(Protocol):
    """Decides whether a file may have its name."""

    async def __call__(self, file: FileToCommit, /) -> None:
        """Return to agree. It runs on the Trio thread, beside those for other files, and must not block it.

        Raises:
            HookRefused: it does not agree; the sender is shown the text. Any other exception refuses as well.

        Cancellation: its time is over, the upload was cancelled, or the server ends.
        """


class AfterCommit(Protocol):
    """Hears of each file that was committed."""

    async def __call__(self, file: CommittedFile, /) -> None:
        """Do something about it, on the Trio thread without blocking it. What it raises is logged and changes nothing.

        Cancellation: its time is over, or the server ends.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitHooks:
    """The hooks of a server.

    Attributes:
        before: asked in this order before a file gets its name; the first that refuses decides.
        after: each is told of every file that was committed.
        deadline_s: seconds that all hooks before one file may take together, and each hook after it.

    Raises:
        ValueError: ``deadline_s`` is not positive.
    """

    before: Sequence[BeforeCommit] = ()
    after: Sequence[AfterCommit] = ()
    deadline_s: float = DEADLINE_S

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}: it has to be positive")


class _Question:
    """A file that hooks are asked about, once for all works that want the same."""

    def __init__(self, file: FileToCommit) -> None:
        self.file = file
        self.scope = trio.CancelScope()
        self.asked = ""
        self.works: dict[Storing, Answered] = {}


class HookRunner:
    """Runs the hooks of a server; ``run`` must be running.

    Args:
        hooks: which they are.
    """

    def __init__(self, hooks: CommitHooks) -> None:
        self._hooks = hooks
        self._questions: dict[FileToCommit, _Question] = {}
        self._commits: dict[int, tuple[_Question, Storing]] = {}  # by id() of what ``withdraw`` takes
        self._ask, self._asked = trio.open_memory_channel[_Question](math.inf)
        self._tell, self._told = trio.open_memory_channel[CommittedFile](AFTER_QUEUED_MAX)

    @property
    def asks(self) -> bool:
        """Whether there are hooks that have to agree."""
        return bool(self._hooks.before)

    async def run(self) -> None:
        """Run hooks until cancelled; those that are running then are cancelled, and answer nothing."""
        async with trio.open_nursery() as nursery:
            for _ in range(AFTER_AT_ONCE if self._hooks.after else 0):
                nursery.start_soon(self._run_after)
            async for question in self._asked:
                nursery.start_soon(self._run_before, question)

    # ---- before the commit ------------------------------------------------------------------------------------

    def ask(self, work: Storing, file_id: bytes, answered: Answered) -> None:
        """Ask whether the file of ``work``, which has one, may have its name; works that want the same share one answer."""
        file = _file_to_commit(work, file_id)
        question = self._questions.get(file)
        if question is None:
            question = self._questions[file] = _Question(file)
            self._ask.send_nowait(question)
        question.works[work] = answered
        self._commits[id(_withdrawn_as(work))] = question, work

    def is_asking(self, upload: Upload) -> bool:
        """Whether hooks are being asked about the commit of ``upload``."""
        return id(upload) in self._commits

    def withdraw(self, file: Upload | WholeFile) -> bool:
        """Answer the commit of ``file`` with Cancelled, before this returns; False: hooks are not being asked about it."""
        found = self._commits.pop(id(file), None)
        if found is None:
            return False
        question, work = found
        answered = question.works.pop(work)
        if not question.works:
            del self._questions[question.file]
            question.scope.cancel()
        answered(Cancelled("the commit was cancelled"))
        return True

    async def _run_before(self, question: _Question) -> None:
        if not question.works:
            return  # all were withdrawn meanwhile
        refusal: HookRefused | None = None
        with question.scope as scope:
            scope.deadline = trio.current_time() + self._hooks.deadline_s
            refusal = await self._first_refusal(question)
        if not question.works:
            return
        if scope.cancel_called:  # also of a hook that was late and did not mind
            refusal = self._too_late(question)
        del self._questions[question.file]
        for work, answered in tuple(question.works.items()):
            self._commits.pop(id(_withdrawn_as(work)), None)
            answered(None if refusal is None else _copy(refusal))

    async def _first_refusal(self, question: _Question) -> HookRefused | None:
        for hook in self._hooks.before:
            question.asked = _name_of(hook)
            try:
                await hook(question.file)
            except HookRefused as exc:
                return exc
            except Exception as exc:
                name = show_name(question.file.filename)
                facts = {"hook": question.asked, "name": name}
                log.error(
                    "the hook %s failed, so %s was not committed",
                    question.asked,
                    name,
                    exc_info=exc,
                    extra={"event": "hook failed", "facts": facts},
                )
                return HookRefused("a hook of the server failed; its log says why", retryable=True)
        return None

    def _too_late(self, question: _Question) -> HookRefused:
        name = show_name(question.file.filename)
        facts = {"hook": question.asked, "name": name, "seconds": self._hooks.deadline_s}
        log.error(
            "the hook %s did not answer within %g s, so %s was not committed",
            question.asked,
            self._hooks.deadline_s,
            name,
            extra={"event": "hook too late", "facts": facts},
        )
        return HookRefused(
            f"a hook of the server did not answer within {self._hooks.deadline_s:g} s", retryable=True
        )

    # ---- after it -----------------------------------------------------------------------------------------------

    def tell(self, work: Work, outcome: Outcome) -> None:
        """``work`` is done: let the after hooks hear of the file, if there is a new one."""
        if not self._hooks.after:
            return
        if isinstance(work, StoreFiles) and isinstance(outcome, tuple):
            for file, one in zip(work.files, outcome, strict=True):
                self._tell_one(replace(work, files=(file,)), one)
        elif isinstance(work, Finish | Adopt):
            self._tell_one(work, outcome)

    def _tell_one(self, work: Storing, outcome: Outcome) -> None:
        if not isinstance(outcome, StoredFile) or not outcome.new:
            return
        file = _committed_file(work, outcome)
        try:
            self._tell.send_nowait(file)
        except trio.WouldBlock:
            name = show_name(file.filename)
            extra = {"event": "hooks not told", "facts": {"name": name}}
            log.error("no hook is told of %s: %d files wait for theirs", name, AFTER_QUEUED_MAX, extra=extra)

    async def _run_after(self) -> None:
        while True:
            file = await self._told.receive()
            for hook in self._hooks.after:
                await self._run_one_after(hook, file)

    async def _run_one_after(self, hook: AfterCommit, file: CommittedFile) -> None:
        failure: Exception | None = None
        with trio.CancelScope(deadline=trio.current_time() + self._hooks.deadline_s) as scope:
            try:
                await hook(file)
            except Exception as exc:
                failure = exc
        if failure is not None or scope.cancelled_caught:
            name = show_name(file.filename)
            log.error(
                "the hook %s after the commit of %s %s",
                _name_of(hook),
                name,
                "failed" if failure else f"did not end within {self._hooks.deadline_s:g} s",
                exc_info=failure,
                extra={"event": "hook failed", "facts": {"hook": _name_of(hook), "name": name}},
            )


def _withdrawn_as(work: Storing) -> Upload | WholeFile | Adopt:
    """What is given to take its commit back; an Adopt has nothing that is."""
    if isinstance(work, StoreFiles):
        return work.files[0]
    return work.upload if isinstance(work, Finish) else work


def _file_to_commit(work: Storing, file_id: bytes) -> FileToCommit:
    key, facts, filesize, root = _said_of(work)
    return FileToCommit(
        facts.filename.text, facts.filetype, filesize, root, file_id, key.principal, facts.mtime_ns
    )


def _committed_file(work: Storing, stored: StoredFile) -> CommittedFile:
    key, facts, _, _ = _said_of(work)
    return CommittedFile(
        stored.stored_as,
        facts.filetype,
        stored.filesize,
        stored.root,
        stored.file_id,
        key.principal,
        stored.there,
    )


def _said_of(work: Storing) -> tuple[UploadKey, Facts, int, bytes]:
    """Key, facts, filesize and root of the file of a work."""
    if isinstance(work, Finish):
        return work.upload.key, work.facts, work.filesize, work.root
    if isinstance(work, StoreFiles):
        (file,) = work.files
        return file.key, file.facts, file.length, file.root
    assert work.facts.filesize is not None
    return work.key, work.facts, work.facts.filesize, work.root


def _name_of(hook: BeforeCommit | AfterCommit) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _copy(refusal: HookRefused) -> HookRefused:
    """A refusal for one work alone: raising it adds a traceback."""
    return HookRefused(str(refusal), retryable=refusal.retryable, retry_after_ms=refusal.retry_after_ms)
