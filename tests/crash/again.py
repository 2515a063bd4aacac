"""The same files again, by senders who do not know each other, killed at any call: no receipt that was said is lost, and
no second copy is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from blockproto.common.blocks import BLOCK_LENGTH, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError
from blockproto.store import (
    Adopt,
    BlockDone,
    Finish,
    IfExists,
    RecordB3sum,
    StoredFile,
    Undecided,
    UploadKey,
)
from blockproto.store.local.check import check_store
from blockproto.store.local.store import LocalStore

from .checks import Executioner, Killed, abandon, killing, now_ms
from .client import ANYBODY, Job, Promises, send, send_brief

KEPT, TOUCHED, LEFT, UPDATED = (
    Job(f"again/{name}-{seed}-900") for seed, name in enumerate(("kept", "touched", "left", "updated"))
)
BIG = Job(f"again/big-7-{BLOCK_LENGTH + 9}")
BY_HAND = Job("by-hand/there-8-500")
OTHER = Job("other-9-900")
LATER_NS = 1_500_000_000_000_000_000
NAMES = {job.name for job in (KEPT, TOUCHED, LEFT, UPDATED, BIG, BY_HAND)}
Receipts = dict[bytes, bytes]
"""The root of each receipt that was said, by its sourceid."""


def check_kills_of_the_same_again(folder: Path) -> None:
    """A process killed at any call while the same files come again."""
    for after in (False, True):
        at = 0
        while _killed_once(folder / f"{after}{at}", Executioner(at, after=after)):
            at += 1
        assert at > 15, "the calls are not caught any more"


def _killed_once(folder: Path, executioner: Executioner) -> bool:
    (folder / "by-hand").mkdir(parents=True)
    (folder / BY_HAND.name).write_bytes(BY_HAND.content())
    store = LocalStore.open(folder, now_ms=now_ms)
    send_brief(store, (KEPT, TOUCHED, LEFT, UPDATED), Promises())
    send(store, BIG, Promises(), 1)
    said: Receipts = {}
    try:
        with killing(executioner):
            _all_again(store, said)
    except Killed:
        pass
    abandon(store)
    assert check_store(folder, read=True) == []
    store = LocalStore.open(folder, now_ms=now_ms)
    try:
        there = {receipt.sourceid: receipt.root for receipt in store.receipts(ANYBODY, said)}
        assert there == said, "a receipt that was said is lost"
        _all_again(store, {})
        entries, _ = store.files("", True, "", 1000)
        assert {entry.filename.text for entry in entries if not entry.folder} == NAMES, (
            "a second copy was made"
        )
        assert store.uploads(ANYBODY, "", 10) == ([], "")
        touched = store.stat(SafeName.parse(TOUCHED.name))
        assert (touched.mtime_ns, touched.root) == (LATER_NS, TOUCHED.root())
        assert (folder / UPDATED.name).read_bytes() == OTHER.content()
        assert (folder / LEFT.name).read_bytes() == LEFT.content()
    finally:
        store.close()
    assert check_store(folder, read=True) == []
    return executioner.killed


def _all_again(store: LocalStore, said: Receipts) -> None:
    _brief_again(store, KEPT, KEPT, 1, IfExists.KEEP, said)
    _brief_again(store, BY_HAND, BY_HAND, 2, IfExists.REFUSE, said)
    _brief_again(store, TOUCHED, TOUCHED, 3, IfExists.REPLACE, said)
    _brief_again(store, LEFT, OTHER, 4, IfExists.SKIP, said)
    _brief_again(store, UPDATED, OTHER, 5, IfExists.UPDATE, said)
    key = UploadKey(ANYBODY, (6).to_bytes(16, "big"))
    adopted = _decided(store, lambda rounds: Adopt(key, BIG.root(), BIG.facts, rounds=rounds))
    said[key.sourceid] = adopted.root


def _brief_again(
    store: LocalStore, job: Job, content_of: Job, number: int, rule: IfExists, said: Receipts
) -> None:
    """Another sender's file under the job's name."""
    key = UploadKey(ANYBODY, number.to_bytes(16, "big"))
    content = content_of.content()
    facts = replace(job.facts, filesize=len(content), if_exists=rule, mtime_ns=LATER_NS)
    upload = store.begin_brief(key, facts, 0)
    upload.write(0, memoryview(content))
    done = BlockDone(upload, 0, 0, len(content), digest_of(content))
    root = content_of.root()
    stored = _decided(
        store, lambda rounds: Finish(upload, 0, root, len(content), facts, (done,), True, rounds)
    )
    upload.close()
    if not stored.left:
        said[key.sourceid] = stored.root


def _decided(store: LocalStore, work_of: Callable[[int], Finish | Adopt]) -> StoredFile:
    """What becomes of it, once what had to be read was read."""
    rounds = 0
    while True:
        [outcome] = store.decide([work_of(rounds)])
        if isinstance(outcome, Undecided):
            for name in outcome.names:
                _read(store, SafeName.parse(name))
            rounds += 1
            continue
        assert not isinstance(outcome, BlockprotoError), outcome
        assert outcome is not None
        return outcome


def _read(store: LocalStore, name: SafeName) -> None:
    reader = store.open_file(name, None)
    entry = reader.entry
    content = bytearray(entry.filesize)
    reader.sync()
    reader.read_into(0, memoryview(content))
    reader.close()
    blocks = [content[at : at + BLOCK_LENGTH] for at in range(0, len(content), BLOCK_LENGTH)]
    root = root_of([digest_of(block) for block in blocks], len(blocks))
    store.decide([RecordB3sum(name, entry.version, root=root, stamp=entry.stamp)])
