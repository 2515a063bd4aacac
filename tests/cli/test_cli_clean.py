"""``blockproto clean``: what downloads left is found, told apart from the user's own files, and removed on request."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from old_store import unpack
from processes import Ran
from test_store_part_file import LABEL, LEDGER, LOCK, PARTIAL

from blockproto.cli.output import Status
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.store import Destination
from blockproto.store.part_file.store import PartFileStore
from blockproto.testing.store_contract.steps import key_of, opened, outcomes, pattern, written

Run = Callable[..., Ran]


def begin(path: Path, label: str = LABEL) -> PartFileStore:
    """A download of three blocks, of which one is here."""
    store = PartFileStore(Destination(path, label))
    upload = opened(store, 3 * BLOCK_LENGTH)
    assert outcomes(store, *written(upload, pattern(3 * BLOCK_LENGTH), [0])) == [None]
    return store


def age(folder: Path, names: list[str], days: int) -> None:
    for name in names:
        found = (folder / name).stat()
        os.utime(folder / name, (found.st_atime, found.st_mtime - days * 86_400))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


OWN = {
    "y.blockproto-part": b"of the user",
    "z.blockproto-ledger": b"of the user, too",
    "z.blockproto-part": b"and this",
    ".blockproto-notes.part": b"not of ours either",
    ".blockproto-0123456789abcdef.txt": b"nor this",
    ".blockproto/partials/x": b"of a server",
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    for name, content in OWN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "sub").mkdir()
    return folder


def test_nothing_is_said_to_be_left_where_nothing_is(here: Path, run: Run) -> None:
    ran = run("clean", here, "--yes")
    assert ran.status == Status.DONE
    assert "nothing is left" in ran.err
    assert names(here) == sorted(OWN)


def test_what_is_left_is_listed_and_removed(here: Path, run: Run) -> None:
    begin(here / "sub" / "film.bin").close()
    listed = run("clean", here)
    assert listed.status == Status.DONE
    assert "of 'file.bin', 1 of 3 blocks" in listed.err
    assert "--yes" in listed.err
    assert names(here) == sorted([*OWN, f"sub/{PARTIAL}", f"sub/{LEDGER}"])
    ran = run("clean", here, "--yes", "--json")
    (leftover,) = ran.objects
    assert (leftover["removed"], leftover["running"], leftover["held"], leftover["blocknum"]) == (
        True,
        False,
        1,
        3,
    )
    assert leftover["filesize"] > BLOCK_LENGTH
    assert names(here) == sorted(OWN)


def test_what_runs_is_not_touched(here: Path, run: Run) -> None:
    store = begin(here / "film.bin")
    ran = run("clean", here, "--yes")
    assert ran.status == Status.DONE
    assert "in use" in ran.err
    assert names(here) == sorted([*OWN, PARTIAL, LEDGER, LOCK])
    store.close()


def test_older_than(here: Path, run: Run) -> None:
    begin(here / "new").close()
    ran = run("clean", here, "--yes", "--older-than", "1h")
    assert ran.status == Status.DONE
    assert names(here) == sorted([*OWN, PARTIAL, LEDGER])
    assert run("clean", here, "--older-than", "soon").status == Status.USAGE


def test_a_small_file_that_may_be_on_its_way_is_not_touched(here: Path, run: Run) -> None:
    (here / PARTIAL).write_bytes(b"young")
    ran = run("clean", here, "--yes")
    assert "in use" in ran.err
    assert names(here) == sorted([*OWN, PARTIAL])


def test_the_lock_that_a_kill_left_goes(here: Path, run: Run) -> None:
    (here / LOCK).touch()
    assert run("clean", here, "--yes").status == Status.DONE
    assert names(here) == sorted(OWN)


def test_links_are_not_followed(here: Path, tmp_path: Path, run: Run) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    begin(outside / "film.bin").close()
    (here / "link").symlink_to(outside)
    (here / PARTIAL).symlink_to(outside / PARTIAL)
    assert run("clean", here, "--yes").status == Status.DONE
    assert names(outside) == sorted([PARTIAL, LEDGER])
    assert (here / PARTIAL).is_symlink()


def test_what_an_earlier_version_left_is_told_from_the_user_s_own(
    tmp_path: Path, here: Path, run: Run
) -> None:
    old = unpack(tmp_path / "old")
    left = sorted(path.name for path in old.here.glob("copy.bin.blockproto-*"))
    assert left
    for name in left:
        (old.here / name).rename(here / name)
    listed = run("clean", here, "--json")
    (leftover,) = listed.objects
    assert leftover["filename"] == "copy.bin"
    assert run("clean", here, "--yes").status == Status.DONE
    assert names(here) == sorted(OWN)


def test_a_ledger_under_another_name_proves_nothing(tmp_path: Path, here: Path, run: Run) -> None:
    """A copy that the user made of such a file lies beside another name than the ledger speaks of."""
    old = unpack(tmp_path / "old")
    (old.here / "copy.bin.blockproto-ledger").rename(here / "y.blockproto-ledger")
    assert run("clean", here, "--yes").status == Status.DONE
    assert names(here) == sorted([*OWN, "y.blockproto-ledger"])


def test_what_was_cleaned_begins_anew(here: Path, run: Run) -> None:
    begin(here / "film.bin").close()
    assert run("clean", here, "--yes").status == Status.DONE
    store = PartFileStore(Destination(here / "film.bin", LABEL))
    assert store.begun() is None
    assert key_of(1) is not None
    store.close()
