"""What expires does so by the wall clock, but not because that clock is wrong: jumps, restarts, clocks set back."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from campaigns.clocks import NoFaketime, library
from old_store import unpack
from processes import COMMAND, TIMEOUT_S, Process, wait_for_line

from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.store import Discard, Tidy
from blockproto.store.local.expiry_clock import HOLD_MS, JUMP_MS, RECORD_EVERY_MS, ClockRecord, ExpiryClock
from blockproto.store.local.store import LocalStore
from blockproto.store.rules import EXPIRY_MS, RECEIPT_GRACE_MS
from blockproto.testing.store_contract.steps import ANYBODY, opened, pattern, put, written

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_800_000_000_000


class Machine:
    """A folder, and the two clocks of the machine it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wall_ms = NOW_MS
        self.boot_ms = 5 * HOUR_MS
        self.store = self._open()

    def _open(self) -> LocalStore:
        return LocalStore.open(self.folder, now_ms=lambda: self.wall_ms, boot_ms=lambda: self.boot_ms)

    def restart(self, kill: bool = False, away_ms: int = 0) -> None:
        if kill:
            self.store.context.opened.close()
        else:
            self.store.close()
        self.wall_ms += away_ms
        self.boot_ms += away_ms
        self.store = self._open()

    def pass_time(self, ms: int) -> None:
        """Time goes by for both clocks, and the server sweeps each hour, or (over days) now and then."""
        longest = HOUR_MS if ms <= 2 * DAY_MS else DAY_MS
        while ms > 0:
            step = min(ms, longest)
            self.wall_ms, self.boot_ms, ms = self.wall_ms + step, self.boot_ms + step, ms - step
            self.sweep()

    def sweep(self) -> None:
        for _ in range(100):
            works = self.store.sweep()
            if not works:
                return
            self.store.decide(works)
        raise AssertionError("a sweep without end")

    def begin(self, number: int = 1) -> None:
        upload = opened(self.store, 2 * BLOCK_LENGTH, number=number, name=f"f{number}")
        self.store.decide(written(upload, pattern(2 * BLOCK_LENGTH), [0]))
        upload.close()

    @property
    def unfinished(self) -> int:
        return len(self.store.uploads(ANYBODY, "", 100)[0])

    @property
    def receipts(self) -> int:
        with self.store.context.ledger.read() as view:
            return len(list(view.receipts()))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.begin()
    put(machine.store, "gone", b"content", number=50)
    (tmp_path / "gone").unlink()
    machine.sweep()
    return machine


def test_what_has_had_its_time_expires(machine: Machine) -> None:
    machine.pass_time(RECEIPT_GRACE_MS + HOUR_MS)
    assert (machine.unfinished, machine.receipts) == (1, 0)
    machine.pass_time(EXPIRY_MS - RECEIPT_GRACE_MS - 2 * HOUR_MS)
    assert machine.unfinished == 1
    machine.pass_time(2 * HOUR_MS)
    assert machine.unfinished == 0


@pytest.mark.clause("BP1-RES-022")
@pytest.mark.parametrize("restart", [False, True])
def test_a_jump_ahead_lets_nothing_expire_for_a_day(
    machine: Machine, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    machine.wall_ms += 40 * DAY_MS
    if restart:
        machine.restart()
    machine.sweep()
    assert [record.message for record in caplog.records if "40.0 days ahead" in record.message]
    assert (machine.unfinished, machine.receipts) == (1, 1)
    assert machine.store.expiry_now_ms() == 0
    machine.pass_time(HOLD_MS - HOUR_MS)
    assert (machine.unfinished, machine.receipts) == (1, 1)
    machine.pass_time(HOUR_MS)
    assert (machine.unfinished, machine.receipts) == (0, 0)
    assert machine.store.expiry_now_ms() == machine.wall_ms
    assert any("expire again" in record.message for record in caplog.records)


@pytest.mark.parametrize("kill", [False, True])
def test_restarts_do_not_shorten_the_day(machine: Machine, kill: bool) -> None:
    machine.wall_ms += 40 * DAY_MS
    machine.restart()
    for _ in range(23):
        machine.pass_time(HOUR_MS - 1)
        machine.restart(kill, away_ms=DAY_MS)
    machine.sweep()
    assert (machine.unfinished, machine.receipts) == (1, 1)
    machine.pass_time(2 * HOUR_MS if not kill else HOLD_MS)
    assert machine.unfinished == 0


def test_a_day_of_a_server_that_is_restarted_daily_ends(machine: Machine) -> None:
    machine.wall_ms += 40 * DAY_MS
    for _ in range(3):
        machine.restart(kill=True)
        machine.pass_time(12 * HOUR_MS)
    assert machine.unfinished == 0


def test_a_reboot_does_not_shorten_the_day(machine: Machine) -> None:
    machine.wall_ms += 40 * DAY_MS
    machine.restart()
    machine.pass_time(3 * HOUR_MS)
    machine.boot_ms = 0
    machine.restart(kill=True)
    machine.pass_time(20 * HOUR_MS)
    assert machine.unfinished == 1
    machine.boot_ms = 1_000 * DAY_MS  # nor does a machine that has been up for long
    machine.restart(kill=True)
    assert machine.unfinished == 1
    machine.sweep()
    assert machine.unfinished == 1
    machine.pass_time(2 * HOUR_MS)
    assert machine.unfinished == 0


def test_a_clock_that_is_set_right_again_costs_nothing(machine: Machine) -> None:
    machine.wall_ms += 40 * DAY_MS
    machine.restart()
    machine.pass_time(5 * HOUR_MS)
    machine.wall_ms -= 40 * DAY_MS
    machine.restart()
    machine.pass_time(HOLD_MS + HOUR_MS)
    assert machine.unfinished == 1
    machine.begin()
    with machine.store.context.ledger.read() as view:
        [record] = view.uploads()
    assert record.expires_ms == machine.wall_ms + EXPIRY_MS  # the wrong time is forgotten
    machine.pass_time(EXPIRY_MS)
    assert machine.unfinished == 0


@pytest.mark.clause("BP1-RES-022")
def test_what_is_uploaded_while_the_clock_is_back_has_its_thirty_days(machine: Machine) -> None:
    """A machine without a battery boots in 1970, and learns what time it is an hour later."""
    right_ms, machine.wall_ms = machine.wall_ms, 100_000
    machine.restart()
    machine.begin(2)
    machine.pass_time(HOUR_MS)
    machine.wall_ms = right_ms + HOUR_MS
    machine.pass_time(20 * DAY_MS)
    assert machine.unfinished == 2
    machine.pass_time(11 * DAY_MS)
    assert machine.unfinished == 0


@pytest.mark.parametrize("days", [-6, 6])
def test_a_small_step_of_the_clock_is_no_jump(machine: Machine, days: int) -> None:
    machine.wall_ms += days * DAY_MS
    machine.sweep()
    assert not machine.store.context.clock.held


def test_a_server_that_was_away_for_long_waits_a_day_too(machine: Machine) -> None:
    machine.wall_ms += 40 * DAY_MS
    machine.boot_ms += 40 * DAY_MS
    machine.restart()
    machine.pass_time(HOUR_MS)
    assert machine.unfinished == 1
    machine.pass_time(HOLD_MS)
    assert machine.unfinished == 0


def test_orphans_are_not_judged_by_a_clock_that_jumped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.store.local.recovery.ORPHAN_GRACE_S", -10)
    [own] = (machine.folder / ".blockproto/partials").iterdir()
    (own / ("ab" * 16)).write_bytes(b"left behind")
    machine.wall_ms += 40 * DAY_MS
    machine.restart()
    machine.sweep()
    assert (own / ("ab" * 16)).exists()
    machine.pass_time(HOLD_MS)
    assert not (own / ("ab" * 16)).exists()


def test_what_was_about_to_expire_when_the_clock_jumped_stays(machine: Machine) -> None:
    """A sweep and the batch that does its works are two things."""
    works = [Discard(record.key, machine.wall_ms + 40 * DAY_MS) for record in _records(machine)]
    machine.wall_ms += 40 * DAY_MS
    machine.store.decide(works)
    assert machine.unfinished == 1


def _records(machine: Machine) -> list[object]:
    with machine.store.context.ledger.read() as view:
        return list(view.uploads())


def test_the_time_is_recorded_hourly_and_with_no_work_of_its_own(machine: Machine) -> None:
    def recorded() -> ClockRecord | None:
        with machine.store.context.ledger.read() as view:
            return view.clock()

    before = recorded()
    machine.wall_ms += RECORD_EVERY_MS - 1
    machine.boot_ms += RECORD_EVERY_MS - 1
    assert list(machine.store.sweep()) == []
    machine.begin()
    assert recorded() == before
    machine.wall_ms += 1
    [tidy] = machine.store.sweep()
    assert isinstance(tidy, Tidy)
    machine.begin()  # any batch records it
    assert recorded() == ClockRecord(machine.wall_ms, machine.wall_ms, 0)
    assert list(machine.store.sweep()) == []


def test_an_upgraded_ledger_waits_a_day_because_it_has_no_time_in_it(tmp_path: Path) -> None:
    old = unpack(tmp_path / "old")
    clock = [time.time_ns() // 10**6 + 40 * DAY_MS]
    store = LocalStore.open(old.served, now_ms=lambda: clock[0], boot_ms=lambda: clock[0])
    assert not [work for work in store.sweep() if isinstance(work, Discard)]
    clock[0] += HOLD_MS
    assert [work for work in store.sweep() if isinstance(work, Discard)]
    store.close()


@pytest.mark.parametrize("wall_ms", [-5, 0, 1 << 62])
def test_a_store_opens_at_any_time(tmp_path: Path, wall_ms: int) -> None:
    for number in (1, 2):
        store = LocalStore.open(tmp_path, now_ms=lambda: wall_ms)
        put(store, "a", b"content", number=number)
        store.decide(store.sweep())
        store.close()
    store = LocalStore.open(tmp_path)
    assert store.context.clock.held
    store.close()


@pytest.mark.parametrize("wall_ms", [-5, 0, 1 << 62])
def test_odd_times_are_times(wall_ms: int) -> None:
    clock = ExpiryClock(ClockRecord(NOW_MS, NOW_MS), lambda: wall_ms, lambda: 7)
    clock.look()
    assert clock.held
    record = clock.due()
    assert record is not None
    assert ClockRecord.unpack(record.pack()) == record
    assert abs(record.wall_ms - NOW_MS) > JUMP_MS


# ---- a real process


def test_a_server_whose_clock_is_forty_days_ahead(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        faketime = library()
    except NoFaketime as exc:
        pytest.skip(str(exc))
    store = LocalStore.open(tmp_path)
    upload = opened(store, 2 * BLOCK_LENGTH)
    store.decide(written(upload, pattern(2 * BLOCK_LENGTH), [0]))
    upload.close()
    store.close()
    for days in ("+40d", "+40d", "+90d"):
        env = os.environ | {"LD_PRELOAD": str(faketime), "FAKETIME": days}
        command = [*COMMAND, "serve", str(tmp_path), "--listen", "127.0.0.1:0"]
        with Process(command, env=env, stdout=subprocess.PIPE, text=True) as server:
            wait_for_line(server, TIMEOUT_S)
            server.terminate()
        said = capfd.readouterr().err
        assert "nothing expires for" in said, said
    store = LocalStore.open(tmp_path)
    assert len(store.uploads(ANYBODY, "", 10)[0]) == 1
    store.close()
