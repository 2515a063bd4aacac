"""Where a store is, and that it stays there: one process on a folder, partials of other states, what is removed under it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from struct import unpack

import pytest
from partials import partials_of
from processes import TIMEOUT_S, Process, Ran, Server, wait_until

import blockproto.server
import blockproto.store.local.publishing
import blockproto.store.local.recovery
from blockproto.cli.output import Status
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.errors import NewerLedger, NotPermitted, StoreFailed, StoreInUse, UnknownUpload
from blockproto.store.local.check import check_store, inspect_store
from blockproto.store.local.foreign_partials import Foreign
from blockproto.store.local.records import FORMAT, STATE_KEY
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.steps import (
    NAME,
    brief_of,
    finish_of,
    opened,
    pattern,
    put,
    stored,
    written,
)

CONTENT = pattern(3 * BLOCK_LENGTH + 7)
Run = Callable[..., Ran]
Start = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


def begin(store: LocalStore, number: int = 1) -> None:
    """An unfinished upload with two blocks that were acknowledged."""
    upload = opened(store, len(CONTENT), number=number)
    store.decide(written(upload, CONTENT, [0, 2]))
    upload.close()


def held(store: LocalStore, number: int = 1) -> int:
    upload = opened(store, len(CONTENT), number=number, attempt=2)
    count = len(upload.held)
    upload.close()
    return count


# ---- one process on a folder


def spellings(folder: Path) -> list[Path]:
    """Paths that lead to one folder."""
    link = folder.with_name("link")
    link.symlink_to(folder)
    (folder / "inside").mkdir()
    return [folder, link, folder / "inside" / "..", Path(os.path.relpath(folder))]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_second_store_on_the_folder_is_refused_whatever_its_state(
    folder: Path, tmp_path: Path, which: int, elsewhere: bool
) -> None:
    store = LocalStore.open(folder)
    other = tmp_path / "other state"
    with pytest.raises(StoreInUse, match="another process serves this folder"):
        LocalStore.open(spellings(folder)[which], state=other if elsewhere else None)
    assert not other.exists()  # who is refused has changed nothing
    store.close()
    LocalStore.open(folder, state=other if elsewhere else None).close()


def test_a_second_folder_with_the_state_is_refused(folder: Path, tmp_path: Path) -> None:
    store = LocalStore.open(folder, state=tmp_path / "state")
    (tmp_path / "another").mkdir()
    with pytest.raises(StoreInUse, match="another process has this state open"):
        LocalStore.open(tmp_path / "another", state=tmp_path / "state")
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a bind mount")
def test_a_bind_mount_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "mounted"
    there.mkdir()
    done = subprocess.run(["mount", "--bind", folder, there], capture_output=True, timeout=TIMEOUT_S)
    if done.returncode:
        pytest.skip(f"no bind mounts here: {done.stderr.decode()}")
    try:
        store = LocalStore.open(folder)
        with pytest.raises(StoreInUse):
            LocalStore.open(there, state=tmp_path / "state")
        store.close()
    finally:
        subprocess.run(["umount", there], check=True, timeout=TIMEOUT_S)


def test_a_check_is_refused_too_and_refuses_others(folder: Path, tmp_path: Path) -> None:
    LocalStore.open(folder, state=tmp_path / "state").close()
    store = LocalStore.open(folder)
    for state in (None, tmp_path / "state"):
        with pytest.raises(StoreInUse):
            inspect_store(folder, state, drop_foreign=True)
    store.close()


def test_a_child_process_does_not_keep_the_lock(folder: Path) -> None:
    store = LocalStore.open(folder)
    child = Process([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        store.close()
        LocalStore.open(folder).close()
    finally:
        child.kill()
        child.communicate()


def test_a_served_folder_within_a_served_folder(folder: Path) -> None:
    """Each is a store of its own; what one does is to the other as if somebody else had done it."""
    (folder / "inner").mkdir()
    outer, inner = LocalStore.open(folder), LocalStore.open(folder / "inner")
    put(outer, "inner/a", b"from outside", number=1)
    put(inner, "a", b"from inside", number=2)
    assert sorted(path.name for path in (folder / "inner").iterdir()) == [".blockproto", "a", "a (1)"]
    for store in (outer, inner):
        store.close()
    assert check_store(folder, read=True) == check_store(folder / "inner", read=True) == []


def test_a_file_system_that_cannot_lock_a_folder_is_served_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    store = LocalStore.open(folder)
    assert [finding for finding in store.findings if "cannot lock a folder" in finding]
    with pytest.raises(StoreInUse):
        LocalStore.open(folder)
    store.close()


def test_servers_on_one_folder(folder: Path, tmp_path: Path, start_server: Start, run: Run) -> None:
    start_server(folder)
    for state in ((), ("--state", tmp_path / "state")):
        ran = run("serve", folder, "--listen", "127.0.0.1:0", *state)
        assert ran.status == Status.FAILED
        assert len(ran.err.splitlines()) == 1
        assert "another process serves this folder" in ran.err
        ran = run("check", folder, "--remove-foreign")
        assert ran.status == Status.FAILED
        assert "stop the server that is using it" in ran.err


# ---- partials of other states


def test_another_state_keeps_the_partials_of_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockproto.store.local.recovery, "ORPHAN_GRACE_S", -10)  # everything is old
    store = LocalStore.open(folder)
    begin(store)
    store.close()
    for _ in range(2):
        other = LocalStore.open(folder, state=tmp_path / "state")
        other.sweep()
        other.close()
        store = LocalStore.open(folder)
        assert (store.findings, held(store)) == ([], 2)
        store.close()


def test_states_whose_partials_lie_beside_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with states on another mount: all their partials lie in the served folder's."""
    monkeypatch.setattr(blockproto.store.local.recovery, "ORPHAN_GRACE_S", -10)
    numbers = iter(range(1_000_000))
    monkeypatch.setattr("blockproto.store.local.opening._mount_id", lambda _: str(next(numbers)))
    states = [folder.with_name(f"state{number}") for number in range(3)]
    for number, state in enumerate(states, 1):
        store = LocalStore.open(folder, state=state)
        begin(store, number)
        store.close()
    assert len(list((folder / ".blockproto/partials").iterdir())) == 3
    for number, state in enumerate(states, 1):
        store = LocalStore.open(folder, state=state)
        store.sweep()
        assert (store.findings, held(store, number)) == ([], 2)
        store.close()
        assert len(inspect_store(folder, state).foreign) == 2


def test_check_lists_what_is_foreign_and_removes_it_when_told(folder: Path, run: Run) -> None:
    store = LocalStore.open(folder)
    begin(store)
    store.close()
    above = folder / ".blockproto/partials"
    other, odd = above / ("ab" * 16), above / "what\x1b is this"
    other.mkdir()
    (other / "part").write_bytes(b"12345")
    odd.write_bytes(b"1")
    (above / "link").symlink_to(folder)
    own = next(
        path
        for path in above.iterdir()
        if path.name != other.name and path.is_dir() and not path.is_symlink()
    )
    (own / "notes").write_bytes(b"123")
    (own / ("cd" * 16)).mkdir()
    os.mkfifo(above / "fifo")
    ran = run("check", folder)
    lines = ran.out.splitlines()
    assert ran.status == Status.DONE, ran
    assert len(lines) == 6
    assert any(f"partials/{own.name}/notes: an unknown file: 1 file, 3 bytes" in line for line in lines)
    assert any(
        f"partials/{other.name}: of another state: 1 file, 5 bytes, last changed " in line for line in lines
    )
    assert any("what\\x1b is this: an unknown file: 1 file, 1 bytes" in line for line in lines)
    assert len(run("check", folder).out.splitlines()) == 6  # nothing was changed
    ran = run("check", folder, "--remove-foreign")
    assert (ran.status, len(ran.out.splitlines())) == (Status.DONE, 6)
    assert list(above.iterdir()) == [own]
    assert len(list(own.iterdir())) == 1
    assert run("check", folder, "--read").out == ""
    store = LocalStore.open(folder)
    assert held(store) == 2
    store.close()


def test_a_start_removes_nothing_that_no_store_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockproto.store.local.recovery, "ORPHAN_GRACE_S", -10)
    LocalStore.open(folder).close()
    own = partials_of(folder / ".blockproto")
    (own / "notes").write_bytes(b"123")
    (own / ("ab" * 16)).write_bytes(b"an orphan")
    LocalStore.open(folder).close()
    assert [path.name for path in own.iterdir()] == ["notes"]


def test_ages_are_shown_in_fitting_units() -> None:
    ages = (-5, 7, 90, 5400, 40 * 86_400)
    assert [str(Foreign(b"x", "y", 1, 2, time.time() - age)).partition("changed ")[2] for age in ages] == [
        "0 seconds ago", "7 seconds ago", "1.5 minutes ago", "1.5 hours ago", "40.0 days ago",
    ]  # fmt: skip


def test_without_its_ledger_nothing_is_foreign(folder: Path, tmp_path: Path) -> None:
    """Who forgets to name the state is shown what lies there, and cannot remove it."""
    other = folder / ".blockproto/partials" / ("ab" * 16)
    other.mkdir(parents=True)
    report = inspect_store(folder)
    assert (report.served, [one.name for one in report.foreign]) == (False, [os.fsencode(other.name)])
    with pytest.raises(NotPermitted, match="name the state"):
        inspect_store(folder, drop_foreign=True)
    assert other.exists()


def test_a_state_is_not_served_without_the_folder_of_its_partials(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is not mounted, or another folder: nothing is given up before somebody says so."""
    numbers = iter(range(1_000_000))
    monkeypatch.setattr("blockproto.store.local.opening._mount_id", lambda _: str(next(numbers)))
    state = folder.with_name("state")
    store = LocalStore.open(folder, state=state)
    begin(store)
    store.close()
    folder.rename(folder.with_name("put aside"))
    folder.mkdir()
    with pytest.raises(NotPermitted, match="is its disk mounted"):
        LocalStore.open(folder, state=state)
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder)
    folder.with_name("put aside").rename(folder)
    store = LocalStore.open(folder, state=state)
    assert (store.findings, held(store)) == ([], 2)
    store.close()


# ---- what is removed under a running store


def remove_state(folder: Path) -> None:
    shutil.rmtree(folder / ".blockproto")


def replace_state(folder: Path) -> None:
    (folder / ".blockproto").rename(folder / "aside")
    shutil.copytree(folder / "aside", folder / ".blockproto")


def remove_ledger(folder: Path) -> None:
    (folder / ".blockproto/ledger/data.mdb").unlink()


def replace_ledger(folder: Path) -> None:
    path = folder / ".blockproto/ledger/data.mdb"
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").rename(path)


def remove_partials(folder: Path) -> None:
    shutil.rmtree(folder / ".blockproto/partials")


def remove_own_partials(folder: Path) -> None:
    shutil.rmtree(partials_of(folder / ".blockproto"))


def empty_partials(folder: Path) -> None:
    for path in partials_of(folder / ".blockproto").iterdir():
        path.unlink()


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def replace_folder(folder: Path) -> None:
    move_folder(folder)
    folder.mkdir()


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


REMOVALS = [
    remove_state, replace_state, remove_ledger, replace_ledger, remove_partials, remove_own_partials, empty_partials,
    move_folder, replace_folder, remove_folder,
]  # fmt: skip


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("count", [1, 12])
def test_nothing_is_acknowledged_when_the_store_was_removed_under_it(
    folder: Path, remove: Callable[[Path], None], count: int
) -> None:
    store = LocalStore.open(folder)
    uploads = [opened(store, len(CONTENT), number=number) for number in range(count)]
    for upload in uploads:
        store.decide(written(upload, CONTENT, [0]))
    works = [work for upload in uploads for work in written(upload, CONTENT, [1])]
    remove(folder)
    with pytest.raises(StoreFailed, match="under the running server"):
        store.decide(works)
    with pytest.raises(StoreFailed, match="under the running server"):
        opened(store, len(CONTENT), number=99)
    with pytest.raises(StoreFailed):
        store.sweep()
    store.close()


@pytest.mark.parametrize("remove", [move_folder, replace_folder, remove_folder])
def test_a_folder_whose_state_is_elsewhere_is_watched_too(
    folder: Path, tmp_path: Path, remove: Callable[[Path], None]
) -> None:
    store = LocalStore.open(folder, state=tmp_path / "state")
    begin(store)
    remove(folder)
    with pytest.raises(StoreFailed, match=r"the served folder .* was removed, moved or replaced"):
        begin(store, 2)
    store.close()


@pytest.mark.parametrize("remove", [remove_own_partials, empty_partials])
def test_a_partial_that_is_gone_is_no_unknown_file(folder: Path, remove: Callable[[Path], None]) -> None:
    """Where its descriptor was closed meanwhile and it is opened again: nobody asked for a file by its name."""
    store = LocalStore.open(folder)
    recorded, unrecorded = opened(store, len(CONTENT)), opened(store, len(CONTENT), number=2)
    store.decide(written(recorded, CONTENT, [0]))
    unrecorded.write(0, memoryview(CONTENT[:1]))
    for upload in (recorded, unrecorded):
        upload.partial._file.rest()  # type: ignore[attr-defined]
    remove(folder)
    for upload in (recorded, unrecorded):
        with pytest.raises(UnknownUpload, match="gone from the server"):
            upload.read_into(0, memoryview(bytearray(1)))
    with pytest.raises(UnknownUpload, match="gone from the server"):
        unrecorded.write(1, memoryview(b"x"))
    with pytest.raises(StoreFailed, match="removed under the running server"):
        recorded.write(1, memoryview(b"x"))
    store.close()


def test_an_idle_server_notices_with_its_next_sweep(folder: Path) -> None:
    store = LocalStore.open(folder)
    begin(store)
    remove_state(folder)
    with pytest.raises(StoreFailed):
        store.sweep()
    store.close()


def test_a_start_without_its_folder_of_partials_goes_on_and_says_so(folder: Path) -> None:
    store = LocalStore.open(folder)
    begin(store)
    store.close()
    remove_partials(folder)
    assert len(check_store(folder)) == 1
    assert list((folder / ".blockproto/partials").iterdir()) == []  # a check makes none
    store = LocalStore.open(folder)
    assert len(store.findings) == 1
    assert held(store) == 0
    store.close()


@pytest.mark.parametrize("remove", REMOVALS[:6] + REMOVALS[7:])
def test_no_file_is_acknowledged_either_and_a_sweep_notices(
    folder: Path, remove: Callable[[Path], None]
) -> None:
    store = LocalStore.open(folder)
    remove(folder)
    with pytest.raises(StoreFailed, match="under the running server"):
        store.sweep()
    with pytest.raises(StoreFailed, match="under the running server"):
        store.decide([brief_of(store, b"content")])
    store.close()


def test_what_goes_while_a_batch_runs_is_not_acknowledged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore.open(folder)
    real = blockproto.store.local.publishing.Publisher.publish

    def publish(publisher: blockproto.store.local.publishing.Publisher) -> None:
        real(publisher)
        remove_state(folder)

    monkeypatch.setattr(blockproto.store.local.publishing.Publisher, "publish", publish)
    with pytest.raises(StoreFailed, match=r"the ledger .* under the running server"):
        store.decide([brief_of(store, b"content")])
    store.close()


def test_what_cannot_be_looked_at_does_not_end_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took the right to look away: what is open works on."""
    store = LocalStore.open(folder)
    real = os.stat

    def stat(path: object, *rest: object, **options: object) -> os.stat_result:
        if isinstance(path, str) and path.startswith(str(folder)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    stored(store, brief_of(store, b"content"))
    store.close()


def test_a_server_whose_state_is_removed_says_so_and_leaves(
    folder: Path, tmp_path: Path, start_server: Start, run: Run
) -> None:
    server = start_server(folder)
    (tmp_path / "a").write_bytes(b"content")
    assert run("put", tmp_path / "a", server.address).status == Status.DONE
    shutil.rmtree(folder / ".blockproto")
    (tmp_path / "b").write_bytes(b"more content")
    ran = run("put", tmp_path / "b", server.address, "--retry-for", "0", "--json")
    assert ran.status != Status.DONE
    wait_until(lambda: server.process.poll() is not None)
    assert server.process.returncode == Status.FAILED


# ---- losses


def lose(folder: Path, count: int) -> None:
    """A store that lost the bytes of ``count`` uploads while it was not open."""
    store = LocalStore.open(folder)
    for number in range(1, count + 1):
        upload = opened(store, len(CONTENT), number=number, name=f"film\u202e {number}")
        store.decide(written(upload, CONTENT, [0]))
        upload.close()
    store.close()
    empty_partials(folder)


def test_losses_are_in_the_log_and_in_check_until_they_may_be_forgotten(
    folder: Path, start_server: Start, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    lose(folder, 2)
    before = run("check", folder)
    assert (before.status, len(before.out.splitlines())) == (Status.FAILED, 2)
    assert start_server(folder).stop() == Status.DONE
    said = capfd.readouterr().err
    assert len([line for line in said.splitlines() if "are gone (1 blocks)" in line]) == 2, said
    assert "\u202e" not in said
    for _ in range(2):
        ran = run("check", folder)
        assert (ran.status, len(ran.out.splitlines())) == (Status.FAILED, 2)
        assert "found lost at the start of" in ran.out
        assert "the bytes of the unfinished film\\u202e 1 are gone (1 blocks)" in ran.out
    assert run("check", folder, "--forget-losses").out == ran.out
    assert run("check", folder).status == Status.DONE


def test_many_losses_are_a_bounded_number_of_lines(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.store.local.ledger_view.LOSSES_MAX", 7)
    lose(folder, 30)
    store = LocalStore.open(folder)
    assert len(store.findings) == 30
    blockproto.server._tell_findings(store.findings)
    assert len(caplog.records) == blockproto.server.FINDINGS_TOLD_MAX + 1
    assert "10 more" in caplog.records[-1].message
    store.close()
    losses = inspect_store(folder).losses
    assert len(losses) == 7
    lose(folder, 3)
    LocalStore.open(folder).close()
    assert [loss.text for loss in inspect_store(folder).losses[:4]] == [loss.text for loss in losses[3:]]


def test_a_commit_under_way_whose_bytes_are_gone_is_a_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore.open(folder)
    upload = opened(store, len(CONTENT))

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blockproto.store.local.publishing.Publisher.publish", stop)
        with pytest.raises(KeyboardInterrupt):
            store.decide([*written(upload, CONTENT), finish_of(upload, CONTENT)])
    store.context.opened.close()
    empty_partials(folder)
    before = store.incarnation
    store = LocalStore.open(folder)
    assert store.incarnation > before
    store.close()
    texts = [loss.text for loss in inspect_store(folder).losses]
    assert f"the commit of {NAME} was under way and could not be finished" in texts


def test_something_else_in_the_place_of_a_partial_is_a_loss(folder: Path) -> None:
    lose(folder, 1)
    store = LocalStore.open(folder)
    begin(store)
    [partial] = partials_of(folder / ".blockproto").iterdir()
    store.close()
    partial.unlink()
    partial.mkdir()
    store = LocalStore.open(folder)
    assert len(store.findings) == 1
    assert held(store) == 0
    store.close()


# ---- formats


def test_a_ledger_of_a_later_format_is_refused(folder: Path, run: Run) -> None:
    store = LocalStore.open(folder)
    with store.context.ledger.write() as view:
        record = bytearray(view._txn.get(STATE_KEY))
        record[:4] = (FORMAT + 1).to_bytes(4, "big")
        view._txn.put(STATE_KEY, bytes(record))
    store.context.opened.close()
    for look in (LocalStore.open, check_store):
        with pytest.raises(NewerLedger, match=f"ledger format {FORMAT + 1}, not {FORMAT}"):
            look(folder)
    ran = run("serve", folder, "--listen", "127.0.0.1:0")
    assert (ran.status, len(ran.err.splitlines())) == (Status.FAILED, 1)
    assert "use the version that wrote it" in ran.err


def test_the_version_before_reads_the_format_first(folder: Path) -> None:
    """It parses 44 bytes, and refuses whatever does not say format 1 there: "ledger format 2, not 1"."""
    store = LocalStore.open(folder)
    with store.context.ledger.read() as view:
        number, _, _ = unpack(">IQ32s", view._txn.get(STATE_KEY))
    store.close()
    assert number == FORMAT == 2
