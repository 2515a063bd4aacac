"""The order of writes: what a power cut or a kill at any point could break is nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from . import again, checks, whole

CHECKS: list[Callable[[Path], None]] = [
    checks.check_order,
    checks.check_kills,
    again.check_kills_of_the_same_again,
    whole.check_order_of_whole_files,
    whole.check_kills_of_whole_files,
    whole.check_the_crash_table,
    whole.check_replacing_is_atomic,
    whole.check_whole_files_overwrite_nothing,
    whole.check_another_device_is_refused,
    whole.check_twins_are_one_file,
    checks.check_receipts_wait_for_the_folder,
    checks.check_recovery_syncs_names,
    checks.check_names_are_never_overwritten,
    checks.check_lost_bytes_are_noticed,
    checks.check_other_states_keep_what_is_theirs,
    checks.check_a_removed_store_acknowledges_nothing,
    checks.check_a_jump_of_the_clock_costs_nothing,
]


@pytest.mark.clause("BP1-RES-015", "BP1-COM-005", "BP1-COM-006")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds(check: Callable[[Path], None], folder: Path) -> None:
    check(folder)


@pytest.mark.clause("BP1-COM-005")
@pytest.mark.parametrize("number", whole.NUMBERS, ids=errno.errorcode.get)
def test_any_call_for_whole_files_may_fail(number: int, folder: Path) -> None:
    whole.check_failures_of_whole_files(folder, (number,))
