"""Find out what has to be sent: the server is asked, with digests instead of bytes, what it has already.

    receipts of our sourceids    an earlier run of this installation has sent it: there, if the content is still that one
    names that are taken         what has our size and root is our file, whoever sent it: there
                                 else OPEN with ROOT asks, and the server decides before a byte is sent
    names that are free          send

The server decides. The digests that this machine has cached of its own files only save reading them: a file with the size
and times of the last run, but another change time of its inode, is read again.

Spec: BP1-LST-008, BP1-LST-015, BP1-RES-029, BP1-COM-021 to 027.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..common.names import SafeName, refuse_in_progress, show_name
from ..common.times import same_mtime
from ..errors import BlockprotoError, ConnectionLost, GoingAway, Refused
from ..results import Job
from ..store import Facts, IfExists
from ..wire import FEATURE_IF_EXISTS, EntryKind, FileItem, ReceiptItem
from .context import Context
from .fingerprint import Fingerprint
from .option_names import as_spoken, if_exists_of
from .receipts import Arrived
from .request import at_once
from .sources import TIMES, filetype_of, folder_facts
from .taken_names import TakenNames

TOGETHER_MAX = 16
"""Ask both questions at once for up to this many files, unless digests of some of them are cached."""

Ended = tuple["Prepared", Arrived | BlockprotoError | OSError]


@dataclass(slots=True, eq=False)
class Prepared:
    """A file or folder that is ready to be compared and sent.

    Attributes:
        job: what was wanted.
        facts: what is said of it to the server.
        word: what to do when the name is taken, as the caller said it.
        stat: its ``os.stat`` when it was prepared.
        sourceid: the upload's.
        another: gives the sourceid of another content of the same file, by its root.
        root: its root, if OPEN is to name it.
        asks: whether OPEN asks first, because the name is taken.
        is_folder: whether it is a folder.
    """

    job: Job
    facts: Facts
    word: IfExists
    stat: os.stat_result
    sourceid: bytes
    another: Callable[[bytes], bytes]
    root: bytes | None = None
    asks: bool = False
    is_folder: bool = False

    def is_another_content(self, root: bytes) -> None:
        """Take another sourceid: the file was changed without a new size or time, and the server has its old content."""
        self.sourceid, self.root = self.another(root), root


SourceidOf = Callable[[str | os.PathLike[str], str, os.stat_result, bytes], bytes]
"""Gives the sourceid of a file that is sent under a name; with bytes, of another content of it (``another_sourceid``)."""


def prepare(job: Job, sourceid_of: SourceidOf, *, look: bool = False) -> Prepared:
    """Prepare a job's file or folder; with ``look`` it is looked at also if somebody has looked before.

    Raises:
        OSError: it cannot be read.
        Refused: it is neither a file nor a folder.
        NameRefused: its name breaks a rule.
        ValueError: its ``if_exists`` is not one of the words.
    """
    refuse_in_progress(job.name)
    found = job.looked
    if found is None or look:
        found = os.stat(job.path)
    word = if_exists_of(job.if_exists)
    another = partial(sourceid_of, job.path, job.name, found)
    sourceid = another(b"")
    if stat.S_ISDIR(found.st_mode):
        facts = folder_facts(job.name, found)
        return Prepared(job, facts, IfExists.KEEP, found, sourceid, another, is_folder=True)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{show_name(str(job.path))} is neither a file nor a folder")
    facts = Facts(
        filename=SafeName.parse(job.name),
        filetype=filetype_of(job.name),
        filesize=found.st_size,
        mtime_ns=TIMES.look(found, os.fspath(job.path)),
        mode=stat.S_IMODE(found.st_mode) & 0o777,
        if_exists=word,
    )
    return Prepared(job, facts, word, found, sourceid, another)


Decided = tuple[list[Ended], list[Prepared]]
"""Those that are there already or cannot be read, and those that have to be sent."""


@dataclass(slots=True)
class Asked:
    """What is known of some files before any of them is read.

    Attributes:
        ones: the files and folders.
        recalled: the roots of those that were read before.
        known: the receipts there are, by sourceid.
        taken: what has their names; None: that was not asked.
    """

    ones: Sequence[Prepared]
    recalled: dict[Fingerprint, bytes]
    known: dict[bytes, ReceiptItem] = field(default_factory=dict)
    taken: dict[str, FileItem] | None = None


class UploadDecisions:
    """Finds out what has to be sent, for the files of one call.

    Args:
        context: asks, and knows what files contain.
        checksum: read every file that seems to be there, whatever is remembered of it, here; and there, if it was touched.
    """

    def __init__(self, context: Context, *, checksum: bool = False) -> None:
        self._context = context
        self._checksum = checksum
        self._taken = TakenNames(context.ask)

    async def decide(self, ones: Sequence[Prepared]) -> Decided:
        """Those that are there already or cannot be read, and those that have to be sent.

        Raises:
            ConnectionLost, GoingAway: before it was known.
            Unsupported: the server cannot do what is wanted when a name is taken.
            BlockprotoError: the server does not answer.
        """
        return await self.judge(await self.ask(ones))

    async def ask(self, ones: Sequence[Prepared]) -> Asked:
        """The first half of ``decide``: what can be asked before any file is read. Raises as that."""
        files = [one for one in ones if not one.is_folder]
        recalled = {} if self._checksum else await self._context.digests.recall(one.stat for one in files)
        asked = Asked(ones, recalled)

        async def ask_receipts() -> None:
            asked.known = await self._receipts(ones)

        async def ask_names() -> None:
            asked.taken = await self._look(one.facts.filename.text for one in files)

        if recalled or len(files) > TOGETHER_MAX:
            await ask_receipts()  # most will have one, or one more round trip does not matter
        else:
            await at_once(ask_receipts, ask_names)
        return asked

    async def judge(self, asked: Asked) -> Decided:
        """The second half. Raises as ``decide``."""
        ended, rest = await self._judge_receipts(asked)
        taken = asked.taken
        if taken is None:
            taken = await self._look(one.facts.filename.text for one in rest if not one.is_folder)
        there, rest = await self._judge_names(rest, taken, asked.recalled)
        return ended + there, rest

    # ---- receipts ---------------------------------------------------------------------------------------------

    async def _receipts(self, ones: Sequence[Prepared]) -> dict[bytes, ReceiptItem]:
        found: dict[bytes, ReceiptItem] = {}
        for word in dict.fromkeys(one.word for one in ones):
            mine = [one for one in ones if one.word is word]
            rule: IfExists | None = None
            if word > IfExists.REFUSE:  # for those two a receipt under any rule is enough
                features = await self._context.features()
                for one in mine:
                    one.facts = replace(one.facts, if_exists=as_spoken(word, features))
                rule = word if features & FEATURE_IF_EXISTS else None
            ids = [one.sourceid for one in mine]
            receipts = await (
                self._context.receipts(ids, rule) if rule is not None else self._context.receipts(ids)
            )
            for one in mine:
                receipt = receipts.get(one.sourceid)
                if receipt is None:
                    continue
                if rule is not None or word is IfExists.KEEP or receipt.stored_as == one.facts.filename.text:
                    found[one.sourceid] = receipt
                elif not await self._context.features() & FEATURE_IF_EXISTS:
                    one.sourceid = one.another(
                        word.name.encode()
                    )  # else the server would answer with that receipt
        return found

    async def _judge_receipts(self, asked: Asked) -> Decided:
        """Accept a receipt only if the file still has the content of the receipt; with ``checksum`` the one there, too."""
        ones, known = asked.ones, asked.known
        ended: list[Ended] = []
        rest: list[Prepared] = []
        found = [one for one in ones if one.sourceid in known and not one.is_folder]
        roots = dict(zip(map(id, found), await self._roots(found, asked.recalled), strict=True))
        doubtful = await self._doubtful({known[one.sourceid].stored_as for one in found})
        for one in ones:
            receipt = known.get(one.sourceid)
            if receipt is None:
                rest.append(one)
                continue
            root = receipt.root if one.is_folder else roots[id(one)]
            if not isinstance(root, bytes):
                ended.append((one, root))
            elif root == receipt.root and receipt.stored_as not in doubtful:
                there = Arrived(one.facts, one.sourceid, root, receipt.stored_as, "there", receipt.b3sum)
                ended.append((one, there))
            else:
                one.is_another_content(root)
                rest.append(one)
        return ended, rest

    async def _doubtful(self, names: set[str]) -> set[str]:
        """With ``checksum``, those of ``names`` of whose bytes the server knows no root: something has touched the file.

        OPEN with another sourceid makes the server read it (BP1-COM-024).
        """
        if not self._checksum or not names:
            return set()
        there = await self._look(names)
        return {name for name, item in there.items() if item.kind == EntryKind.FILE and item.root is None}

    async def _roots(
        self, ones: Sequence[Prepared], recalled: Mapping[Fingerprint, bytes]
    ) -> list[bytes | OSError | BlockprotoError]:
        return await self._context.digests.roots([(one.job.path, one.stat) for one in ones], recalled)

    # ---- names ------------------------------------------------------------------------------------------------

    async def _look(self, names: Iterable[str]) -> dict[str, FileItem]:
        """What has these names; nothing if the server refuses to list it: then COMMIT decides."""
        try:
            return await self._taken.look(names)
        except (ConnectionLost, GoingAway):
            raise
        except BlockprotoError:
            return {}

    async def _judge_names(
        self, ones: Sequence[Prepared], taken: dict[str, FileItem], recalled: Mapping[Fingerprint, bytes]
    ) -> Decided:
        met = [one for one in ones if not one.is_folder and one.facts.filename.text in taken]
        features = await self._context.features() if met else 0
        compared = []
        for one in met:
            entry = taken[one.facts.filename.text]
            one.asks = _asks(one, entry, features)
            if one.root is None and _needs_root(one, entry, features):
                compared.append(one)
        ended: list[Ended] = []
        for one, root in zip(compared, await self._roots(compared, recalled), strict=True):
            if isinstance(root, bytes):
                one.root = root
            else:
                ended.append((one, root))
        for one in met:
            entry = taken[one.facts.filename.text]
            if one.root is not None and _is_that(one, entry):
                there = Arrived(one.facts, one.sourceid, one.root, entry.filename, "there", entry.b3sum)
                ended.append((one, there))
        over = {id(one) for one, _ in ended}
        return ended, [one for one in ones if id(one) not in over]


def _same_size(one: Prepared, entry: FileItem) -> bool:
    return entry.kind == EntryKind.FILE and entry.filesize == one.facts.filesize


def _asks(one: Prepared, entry: FileItem, features: int) -> bool:
    """Whether OPEN may end it without a byte: there, left, or refused."""
    if not features & FEATURE_IF_EXISTS:
        return one.word in (IfExists.REFUSE, IfExists.SKIP)
    return one.word is not IfExists.REPLACE or _same_size(one, entry)


def _needs_root(one: Prepared, entry: FileItem, features: int) -> bool:
    """Whether it is worth reading the file to compare roots."""
    if one.word is IfExists.SKIP:
        return False
    if one.word is IfExists.UPDATE and (one.facts.mtime_ns or 0) <= entry.mtime_ns:
        return False
    if one.word is IfExists.KEEP and features & FEATURE_IF_EXISTS:
        return True  # it may be there under the next name
    return _same_size(one, entry) and (bool(features & FEATURE_IF_EXISTS) or entry.root is not None)


def _is_that(one: Prepared, entry: FileItem) -> bool:
    """Whether the entry of this name is the file, and neither its mode nor its time has to be set."""
    if not _same_size(one, entry) or entry.root != one.root:
        return False
    set_already = same_mtime(entry.mtime_ns, one.facts.mtime_ns or 0) and entry.mode == one.facts.mode
    return one.word in (IfExists.KEEP, IfExists.REFUSE) or set_already
