"""Store: the store alone, in this process: many small files whole, beside the same as files without OPEN; and one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.store import BlockDone, Facts, Finish, StoredFile, StoreFiles, UploadKey, WholeFile, Work
from blockproto.store.local.store import LocalStore
from blockproto.transfer.committer import BATCH_WORKS_MAX

from .arena import Arena
from .contest import Options
from .figures import Row, Section, Target, show
from .pairs import summarise
from .places import Place
from .targets import FOLDER_FILE_LENGTH, STORE_CPU_US, STORE_FILES, STORE_ONE_FILE

FRAME_FILES = 256
FRAMES_A_BATCH = 16
FILES_A_FOLDER = 100
ONE_BY_ONE = 200
"""Files that are committed one after another, each in a batch of its own."""

_ANYBODY = bytes(16)
_MTIME_NS = 1_700_000_000_000_000_000


class _Took(NamedTuple):
    """How long storing some files took; CPU is that of the process and of the kernel for it."""

    wall_s: float
    cpu_s: float


def store(arena: Arena, options: Options) -> Iterator[Section]:
    """Pairs on new folders of the place."""
    title = f"store, {arena.place.name}"
    many: list[tuple[_Took, _Took]] = []
    single: list[tuple[_Took, _Took]] = []
    for number in range(options.pairs):
        options.tell(f"{title}: pair {number + 1} of {options.pairs}")
        for pairs, count, each in ((many, options.files, 0), (single, ONE_BY_ONE, 1)):
            files = _files(count)
            order = options.rng.sample([True, False], 2)
            took = {whole: _store_all(arena.place, files, whole=whole, each=each) for whole in order}
            pairs.append((took[True], took[False]))
    cpu_us = [ours.cpu_s / options.files * 1e6 for ours, _ in many]
    one_ms = [ours.wall_s / ONE_BY_ONE * 1e3 for ours, _ in single]
    rows = [
        _beside("whole files beside files without OPEN", many, STORE_FILES),
        Row("CPU of a whole file", "µs", summarise(cpu_us), STORE_CPU_US),
        _beside(
            "the same one at a time", single, STORE_ONE_FILE, f"{show(min(one_ms), upwards=True)} ms at best"
        ),
    ]
    yield Section(title, rows, raw=[[one._asdict() for one in pair] for pair in (*many, *single)])


def _beside(what: str, pairs: Sequence[tuple[_Took, _Took]], target: Target, note: str = "") -> Row:
    cpu = summarise(theirs.cpu_s / ours.cpu_s for ours, theirs in pairs)
    note = ", ".join(filter(None, (note, f"by CPU {show(cpu.median)} ×")))
    return Row(what, "×", summarise(theirs.wall_s / ours.wall_s for ours, theirs in pairs), target, note=note)


def _files(count: int) -> list[WholeFile]:
    """Files that are hashed already: that is no part of the store's work."""
    files = []
    for number in range(count):
        content = os.urandom(16) * (FOLDER_FILE_LENGTH // 16)
        name = SafeName(f"{number // FILES_A_FOLDER}/file-{number}.txt")
        facts = Facts(name, "text/plain", len(content), _MTIME_NS + number, 0o644)
        files.append(WholeFile(UploadKey(_ANYBODY, os.urandom(16)), facts, digest_of(content), content))
    return files


def _store_all(place: Place, files: Sequence[WholeFile], *, whole: bool, each: int) -> _Took:
    """Store files in batches of ``each``, or as many as a server takes (0)."""
    with _new_store(place) as opened:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for batch in _parts(files, each or (FRAMES_A_BATCH * FRAME_FILES if whole else BATCH_WORKS_MAX)):
            if whole:
                frames = [StoreFiles(_ANYBODY, tuple(frame), True) for frame in _parts(batch, FRAME_FILES)]
                _decide(opened, frames)
            else:
                _store_without_open(opened, batch)
        return _Took(time.perf_counter() - wall_s, time.process_time() - cpu_s)


@contextmanager
def _new_store(place: Place) -> Iterator[LocalStore]:
    folder = place.folder / "store"
    folder.mkdir()
    opened = LocalStore.open(folder)
    os.sync()
    try:
        yield opened
    finally:
        opened.close()
        place.discard(folder)


def _store_without_open(opened: LocalStore, files: Sequence[WholeFile]) -> None:
    works = []
    for file in files:
        upload = opened.begin_brief(file.key, file.facts, 0)
        upload.write(0, memoryview(file.content))
        length = len(file.content)
        block = BlockDone(upload, 0, 0, length, file.root)
        works.append(Finish(upload, 0, file.root, length, file.facts, (block,), True))
    _decide(opened, works)
    for work in works:
        work.upload.close()


def _decide(opened: LocalStore, works: Sequence[Work]) -> None:
    for outcome in opened.decide(works):
        for one in outcome if isinstance(outcome, tuple) else (outcome,):
            if not isinstance(one, StoredFile):
                raise OSError(f"a file was not stored: {one!r}")


def _parts(all_of_them: Sequence[WholeFile], length: int) -> Iterator[Sequence[WholeFile]]:
    return (all_of_them[at : at + length] for at in range(0, len(all_of_them), length))
