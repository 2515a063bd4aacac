"""Listings: pages are right in every window size and at every cursor, and cost what they show."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockproto.errors import BlockprotoError, Code, UnknownFile
from blockproto.store.local import listing
from blockproto.store.local.listing import Listings


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def listings(served: Path) -> Iterator[Listings]:
    fd = os.open(served, os.O_RDONLY)
    yield Listings(fd)
    os.close(fd)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each time that a folder's names were read."""
    counted: list[int] = []
    scandir = os.scandir

    def counting(fd: int) -> object:
        counted.append(fd)
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", counting)
    return counted


def settle(*folders: Path) -> None:
    """As if the folders had not changed for a minute."""
    long_ago = time.time_ns() - 60_000_000_123
    for folder in folders:
        os.utime(folder, ns=(long_ago, long_ago))
    # the change of the times is a change too: it has to be as old as the clock's tick
    deadline = time.monotonic() + 10
    while time.time_ns() - max(folder.stat().st_ctime_ns for folder in folders) <= listing._TICK_NS:
        assert time.monotonic() < deadline


def all_pages(listings: Listings, folder: str, recursive: bool, limit: int, cursor: str = "") -> list[str]:
    names = []
    while True:
        page, cursor = listings.page(folder, recursive, cursor, limit)
        assert len(page) <= limit
        names += [name.text for name, _ in page]
        if not cursor:
            return names


def brute_force(served: Path, folder: str, recursive: bool) -> list[str]:
    top = served / folder
    found = top.rglob("*") if recursive else top.iterdir()
    return sorted((str(path.relative_to(served)) for path in found), key=str.encode)


def make_tree(served: Path, rng: random.Random, number: int) -> None:
    for _ in range(number):
        depth = rng.randrange(4)
        parts = [rng.choice(("a", "a.b", "a-", "b", "é", "~", "a0")) for _ in range(depth + 1)]
        path = served.joinpath(*parts)
        if any((served.joinpath(*parts[:at])).is_file() for at in range(1, depth + 1)) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if rng.random() < 0.3:
            path.mkdir()
        else:
            path.write_bytes(b"")


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_pages_are_the_listing(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch, window: int, seed: int
) -> None:
    monkeypatch.setattr(listing, "WINDOW", window)
    monkeypatch.setattr(listing, "KEPT_NAMES_MAX", 2 * window)
    rng = random.Random(seed)
    make_tree(served, rng, 60)
    folders = ["", *(str(path.relative_to(served)) for path in served.rglob("*") if path.is_dir())]
    for folder in folders[:5]:
        for recursive in (False, True):
            wanted = brute_force(served, folder, recursive)
            for limit in (1, 3, 1000):
                assert all_pages(listings, folder, recursive, limit) == wanted
            for cursor in [*rng.sample(wanted, min(5, len(wanted))), "", "a/", "a\x01", "zzz", "é/x"]:
                after = [name for name in wanted if name.encode() > cursor.encode()]
                assert all_pages(listings, folder, recursive, 1000, cursor) == after, cursor


@pytest.mark.clause("BP1-LIM-008")
def test_a_page_costs_what_it_shows(served: Path, listings: Listings, scans: list[int]) -> None:
    for number in range(300):
        (served / f"{number:03}").touch()
    settle(served)
    for _ in range(200):
        page, cursor = listings.page("", False, "", 1)
        assert ([name.text for name, _ in page], cursor) == (["000"], "000")
    assert len(scans) == 1
    assert len(all_pages(listings, "", False, 7)) == 300
    assert len(scans) == 1


def test_a_change_is_seen_by_the_next_page(served: Path, listings: Listings) -> None:
    for number in range(50):
        (served / f"{number:02}").touch()
        assert len(listings.page("", False, "", 1000)[0]) == number + 1
        os.unlink(served / f"{number:02}")
        assert len(listings.page("", False, "", 1000)[0]) == number
        (served / f"{number:02}").touch()
    settle(served)
    assert len(listings.page("", False, "", 1000)[0]) == 50
    (served / "new").touch()
    assert len(listings.page("", False, "", 1000)[0]) == 51


def test_pages_go_on_cheaply_while_the_folder_changes(
    served: Path, listings: Listings, scans: list[int]
) -> None:
    for number in range(200):
        (served / f"{number:03}").touch()
    cursor, names = "", []
    while True:
        page, cursor = listings.page("", False, cursor, 5)
        names += [name.text for name, _ in page]
        (served / f"new {len(names)}").touch()
        if not cursor:
            break
    assert names[:200] == [f"{number:03}" for number in range(200)]
    assert len(scans) <= 2


def test_what_is_kept_is_bounded(served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "WINDOW", 20)
    monkeypatch.setattr(listing, "KEPT_NAMES_MAX", 40)
    for number in range(10):
        (served / str(number)).mkdir()
        for inside in range(50):
            (served / str(number) / f"{inside:02}").touch()
    settle(served, *(served / str(number) for number in range(10)))
    assert len(all_pages(listings, "", True, 3)) == 510
    kept = [window for windows in listings._kept.values() for window in windows]
    assert listings._cost == sum(window.cost for window in kept) <= 40
    assert kept


def test_a_folder_more_costs_the_same_however_many_are_kept(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    cost_of = listing._Window.cost.fget
    assert cost_of is not None

    def counted(window: object) -> int:
        nonlocal looks
        looks += 1
        return int(cost_of(window))

    monkeypatch.setattr(listing._Window, "cost", property(counted))
    for number in range(300):
        (served / str(number)).mkdir()
    assert len(all_pages(listings, "", True, 100)) == 300
    assert looks <= 4 * 301


def test_a_deep_folder_is_listed_without_recursion(served: Path, listings: Listings) -> None:
    fd = os.open(served, os.O_RDONLY)
    for _ in range(510):
        os.mkdir("a", dir_fd=fd)
        below = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    names = all_pages(listings, "", True, 100)
    assert len(names) == 510
    assert names[-1] == "/".join("a" * 510)
    assert all_pages(listings, "", True, 100, cursor=names[-2]) == names[-1:]


def test_without_descriptors_a_page_is_refused_not_cut_short(
    served: Path, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served / "folder").mkdir()
    (served / "folder/file").touch()
    with pytest.raises(UnknownFile):
        listings.page("nothing", True, "", 10)

    def no_more(*_: object, **__: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "scandir", no_more)
    with pytest.raises(BlockprotoError) as raised:
        listings.page("", True, "", 10)
    assert raised.value.code is Code.BUSY
    monkeypatch.undo()
    monkeypatch.setattr(os, "open", no_more)
    with pytest.raises(BlockprotoError) as raised:
        listings.page("", True, "", 10)
    assert raised.value.code is Code.BUSY
