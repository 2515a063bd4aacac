"""Folders of many files: up, up again, and down, beside everybody who can do that; and round trips counted.

Rules:
    1. Plain creates are measured before and after each pair; see rule 3 of ``pairs``.
    2. Nothing of a folder is removed while its scenario lasts; see rule 1 of ``places``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .arena import Arena, Contestants
from .contest import Options, hold
from .figures import Row, Section, Target, show, show_size
from .ours import OLD, Ours, receipts_of
from .pairs import FLOOR, summarise
from .places import Place, settler
from .processes import CommandFailed, peak_bytes, timed, timed_with_peak
from .proxy import CountingProxy
from .sources import library_tree, random_tree, weigh
from .targets import (
    FOLDER,
    FOLDER_AGAIN,
    FOLDER_EXISTING,
    FOLDER_FILE_LENGTH,
    FOLDER_FILES,
    FOLDER_NEW,
    FOLDER_WAITS,
    LIBRARY_DOWN,
    LIBRARY_UP,
    MANY_RATE,
    MANY_TIMES,
    MEMORY_MIB,
    MIB,
    SECOND_RUN_PAYLOAD,
)

ROUND_TRIP_S = 0.05
"""The delay with which waits are counted."""

BESIDE_MANY = {FLOOR, OLD, "rsync", "rsync --fsync"}
"""Beside whom very many files are measured: the others take minutes."""

TREES_LEFT = 4
"""For how many trees there must be room beside all results: the source, links to it, another one, some reserve."""


class Tree(NamedTuple):
    """A folder to be moved.

    Attributes:
        folder: its path.
        files: how many files are in it.
        what: it, in words.
    """

    folder: Path
    files: int
    what: str


def small(arena: Arena, options: Options) -> Iterator[Section]:
    """``put DIR`` of many small files; the same again where they are there; round trips."""
    with _small_tree(arena.place, options.files) as tree:
        judged = options.files == FOLDER_FILES
        yield _up(arena, options, tree, FOLDER if judged else {})
        yield _up_again(arena, options, tree, FOLDER_AGAIN if judged else {})
        if options.old is None:
            yield _round_trips(arena, options, tree)


def small_down(arena: Arena, options: Options) -> Iterator[Section]:
    """``get DIR`` of many small files, into a new folder and into an existing one."""
    with _small_tree(arena.place, options.files) as tree:
        judged = options.files == FOLDER_FILES
        yield _down(arena, options, tree, FOLDER_NEW if judged else {})
        yield _down(arena, options, tree, FOLDER_EXISTING if judged else {}, existing=True)


def library(arena: Arena, options: Options) -> Iterator[Section]:
    """``put DIR`` and ``get DIR`` of Python's standard library."""
    folder = library_tree(arena.place.folder / "library")
    count, size = weigh(folder)
    tree = Tree(folder, count, f"{count:,} files of Python's library ({size / MIB:.0f} MiB)")
    yield _up(arena, options, tree, LIBRARY_UP)
    yield _down(arena, options, tree, LIBRARY_DOWN)


def many(arena: Arena, options: Options) -> Iterator[Section]:
    """``put DIR`` and ``get DIR`` of very many small files, and whether rate and memory stay what they are."""
    for times in MANY_TIMES:
        with _small_tree(arena.place, times * options.files) as tree:
            yield _up(arena, options, tree, {}, among=BESIDE_MANY)
            yield _down(arena, options, tree, {}, among=BESIDE_MANY)
            if options.old is None:
                yield _scaling(arena, options, tree)


@contextmanager
def _small_tree(place: Place, files: int) -> Iterator[Tree]:
    folder = random_tree(place.folder / "tree", files, FOLDER_FILE_LENGTH)
    try:
        yield Tree(folder, files, f"{files:,} × {show_size(FOLDER_FILE_LENGTH)}")
    finally:
        place.discard(folder)


# ---- beside the others ------------------------------------------------------------------------------------------


def _up(
    arena: Arena,
    options: Options,
    tree: Tree,
    targets: Mapping[str, Target],
    among: set[str] | None = None,
) -> Section:
    contestants = arena.folder_uploaders(tree.folder)
    return _hold("put DIR", arena, _only(contestants, among), tree, targets, options)


def _up_again(arena: Arena, options: Options, tree: Tree, targets: Mapping[str, Target]) -> Section:
    """A second run: what it takes, and what it sends."""
    try:
        contestants = arena.folder_again(tree.folder)
        section = _hold("put DIR again", arena, contestants, tree, targets, options)
        section.rows.append(_payload_again(arena.ours, tree))
        return section
    finally:
        arena.discard(tree.folder.name)


def _down(
    arena: Arena,
    options: Options,
    tree: Tree,
    targets: Mapping[str, Target],
    among: set[str] | None = None,
    *,
    existing: bool = False,
) -> Section:
    what = "get DIR into existing folders" if existing else "get DIR into a new folder"
    try:
        contestants = arena.folder_downloaders(tree.folder, existing=existing)
        return _hold(what, arena, _only(contestants, among), tree, targets, options)
    finally:
        arena.discard(tree.folder.name)


def _only(contestants: Contestants, among: set[str] | None) -> Contestants:
    ours, theirs = contestants
    return Contestants(ours, [one for one in theirs if among is None or one.name in among])


def _hold(
    what: str,
    arena: Arena,
    contestants: Contestants,
    tree: Tree,
    targets: Mapping[str, Target],
    options: Options,
) -> Section:
    """A match in as many pairs as there is room for the results of."""
    title = f"{what}, {tree.what}, {arena.place.name}"
    pairs = _pairs(arena.place, options.pairs, tree.files, len(contestants.theirs))
    if pairs == 0:
        return Section(
            title, [Row(title, "×", None, note="the results of one pair with each do not fit here")]
        )
    options = replace(options, pairs=pairs)
    amount = (tree.files, "files/s")
    return hold(title, arena, contestants, tree.folder, targets, options, amount, creates=True)


def _pairs(place: Place, wanted: int, files: int, peers: int) -> int:
    """How many pairs with each of ``peers`` a place has room for: each small file fills a block."""
    trees = min(place.room() // (files * FOLDER_FILE_LENGTH), place.room_for_files() // files)
    left = trees - TREES_LEFT - peers - 1
    return pairs_that_fit(wanted, left, peers) if place.keeps else wanted if left >= 0 else 0


def pairs_that_fit(wanted: int, trees: int, peers: int) -> int:
    """How many pairs with each of ``peers`` leave no more than ``trees`` results, two each; at most ``wanted``."""
    return max(0, min(wanted, trees // (2 * max(1, peers))))


# ---- of ours alone ----------------------------------------------------------------------------------------------


def _payload_again(ours: Ours, tree: Tree) -> Row:
    """How many bytes of content a second run sends."""
    what = "payload of a second run"
    try:
        ran = timed(ours.put(tree.folder, "--json"), ours.env)
        receipts = receipts_of(ran.out)
        files = sum(receipt["filetype"] != "inode/directory" for receipt in receipts)
        if files != tree.files:
            raise CommandFailed(f"the second run told of {files} files of {tree.files}")
    except CommandFailed as error:
        return Row(what, "B", None, SECOND_RUN_PAYLOAD, note=ours.explain(error))
    payload = sum(receipt["payload_bytes_sent"] for receipt in receipts)
    return Row(what, "B", summarise([payload]), SECOND_RUN_PAYLOAD)


def _round_trips(arena: Arena, options: Options, tree: Tree) -> Section:
    """Waits for an answer, a file, over a line of ``ROUND_TRIP_S``."""
    title = f"round trips of put DIR, {tree.what}, {arena.place.name}"
    options.tell(title)
    ours = arena.ours
    proxy = CountingProxy(ours.server.port, ROUND_TRIP_S)
    try:
        ran = timed(ours.put(tree.folder, port=proxy.port), ours.env)
    except CommandFailed as error:
        return Section(title, [Row("round trips a file", "", None, FOLDER_WAITS, note=ours.explain(error))])
    finally:
        proxy.close()
        arena.discard(tree.folder.name)
    note = (
        f"{proxy.waits} waits over {len(proxy.counters)} connection(s) with {ROUND_TRIP_S * 1e3:g} ms round trip, "
        f"{ran.wall_s:.2f} s; the line changed direction {proxy.turns} times"
    )
    waits = summarise([proxy.waits / tree.files])
    return Section(title, [Row("round trips a file", "", waits, FOLDER_WAITS, note=note)])


def _scaling(arena: Arena, options: Options, tree: Tree) -> Section:
    """The rate beside that of a tree of ``options.files`` files, in pairs, and the peak memory of both ends."""
    title = f"rate and memory of put DIR, {tree.what}, {arena.place.name}"
    options.tell(title)
    ours, place = arena.ours, arena.place
    fewer = random_tree(place.folder / "fewer", options.files, FOLDER_FILE_LENGTH)
    rates: dict[Path, list[float]] = {fewer: [], tree.folder: []}
    peaks_mib: list[float] = []
    ours.server.stop()
    ours.restart()
    try:
        for _ in range(_pairs(place, options.pairs, tree.files + options.files, 1)):
            for folder in options.rng.sample(list(rates), 2):
                files = tree.files if folder is tree.folder else options.files
                settler(folder)()
                ran, peak = timed_with_peak(ours.put(folder), ours.env)
                rates[folder].append(files / ran.wall_s)
                peaks_mib.append(peak / MIB)
                place.discard(ours.served / folder.name)
    except CommandFailed as error:
        return Section(title, [Row("rate", "×", None, MANY_RATE, note=ours.explain(error))])
    finally:
        place.discard(fewer)
        arena.discard(tree.folder.name)
    if not peaks_mib:
        return Section(title, [Row("rate", "×", None, MANY_RATE, note="the results do not fit here")])
    ratios = [one / other for one, other in zip(rates[tree.folder], rates[fewer], strict=True)]
    note = ", ".join(f"{show(summarise(each).median)} files/s" for each in (rates[tree.folder], rates[fewer]))
    server = (peak_bytes(ours.server.pid) or 0) / MIB
    rows = [
        Row(f"rate beside that of {options.files:,} files", "×", summarise(ratios), MANY_RATE, note=note),
        Row("peak of the server", "MiB", summarise([server]), MEMORY_MIB),
        Row("peak of the client", "MiB", summarise([max(peaks_mib)]), MEMORY_MIB),
    ]
    return Section(title, rows, said=[f"on {place.about}"])
