"""Every mistake in the order of writes is caught by a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_store_local
from test_store_local import LocalPlace

from . import checks, whole
from .mutants import MUTANTS

Check = Callable[[Path], None]


def contract(name: str) -> Check:
    """A test of the contract as a check."""

    def check(folder: Path) -> None:
        place = LocalPlace(folder)
        try:
            getattr(test_store_local.TestLocalStore(), name)(place)
        finally:
            place.done()

    return check


CAUGHT_BY: dict[str, Check] = {
    "ledger_before_sync": checks.check_order,
    "no_sync": checks.check_order,
    "sync_not_waited_for": checks.check_order,
    "no_sync_of_mode_and_mtime": checks.check_order,
    "no_sync_of_the_partials_folder": checks.check_order,
    "acknowledged_before_the_ledger": contract("test_a_crash_keeps_what_was_committed_and_no_more"),
    "resume_by_size": contract("test_a_crash_keeps_what_was_committed_and_no_more"),
    "bitmap_forgotten": contract("test_held_blocks_survive"),
    "no_sync_of_the_ledgers_folder": checks.check_order,
    "name_before_ledger": checks.check_order,
    "no_finalising": checks.check_kills,
    "done_before_the_name": checks.check_kills,
    "no_folder_sync": checks.check_order,
    "no_sync_above_new_folders": checks.check_order,
    "names_overwritten": checks.check_names_are_never_overwritten,
    "receipts_before_the_folder_sync": checks.check_receipts_wait_for_the_folder,
    "receipts_without_identity": contract("test_a_file_that_somebody_changed_is_sent_again"),
    "no_sync_of_whole_files": whole.check_order_of_whole_files,
    "whole_files_named_before_the_sync": whole.check_order_of_whole_files,
    "whole_files_named_before_the_ledger": whole.check_order_of_whole_files,
    "no_sync_of_the_folders_of_whole_files": whole.check_order_of_whole_files,
    "whole_files_overwrite": whole.check_whole_files_overwrite_nothing,
    "the_device_is_not_looked_at": whole.check_another_device_is_refused,
    "receipts_of_files_without_a_name_stay": whole.check_the_crash_table,
    "whole_files_that_come_twice_are_not_joined": whole.check_twins_are_one_file,
    "no_attempt_check": contract("test_a_smaller_attempt_changes_nothing"),
    "no_root_check": contract("test_another_root_commits_nothing_and_drops_nothing"),
    "forgotten_blocks_stay": contract("test_forgotten_blocks_are_missing_and_the_incarnation_stays"),
    "recovery_does_not_look_at_partials": checks.check_lost_bytes_are_noticed,
    "recovery_keeps_the_incarnation": checks.check_lost_bytes_are_noticed,
    "recovery_does_not_sync": checks.check_recovery_syncs_names,
    "recovery_leaves_commits_under_way": checks.check_kills,
    "partials_of_all_states_in_one_folder": checks.check_other_states_keep_what_is_theirs,
    "nobody_looks_whether_it_is_there": checks.check_a_removed_store_acknowledges_nothing,
    "the_clock_is_believed": checks.check_a_jump_of_the_clock_costs_nothing,
}


def test_every_mutant_has_its_catcher() -> None:
    assert set(CAUGHT_BY) == set(MUTANTS)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_mutant_is_caught(name: str, folder: Path) -> None:
    with MUTANTS.at_work(name), pytest.raises(AssertionError):
        CAUGHT_BY[name](folder)
