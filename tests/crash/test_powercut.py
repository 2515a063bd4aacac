"""Real power cuts, where the machine allows them; `make crash` cuts a hundred times."""

from __future__ import annotations

import importlib
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from old_store import unpack

from blockproto.store.local.check import check_store
from blockproto.store.local.store import LocalStore

from .powercut import Disk, cut_power, why_not

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def _loop_mounts() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.clause("BP1-RES-015", "BP1-COM-005", "BP1-COM-006")
def test_a_few_cuts_break_no_promise() -> None:
    seed = random.SystemRandom().randrange(1000)
    report = cut_power(5, seed=seed)
    assert report.promises > 0
    assert report.problems == [], f"seed {seed}"


@pytest.mark.parametrize(
    "call", ["os.fsync", "blockproto.store.local.opening.begin", "blockproto.store.local.opening.move_new"]
)
def test_a_cut_while_a_store_of_the_version_before_is_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The power goes after each step of the upgrade in turn; in the end everything is there."""
    module, _, name = call.rpartition(".")
    real = getattr(importlib.import_module(module), name)
    disk = Disk(tmp_path)
    left = [0]

    def go_out(*args: object) -> object:
        found = real(*args)
        left[0] -= 1
        if left[0] < 0:
            disk.cut()
            raise KeyboardInterrupt
        return found

    with disk.mounted() as mounted:
        old = unpack(mounted / "old")
        os.sync()
    for at in range(20):
        left[0] = at
        with disk.mounted(), monkeypatch.context() as patch:
            patch.setattr(call, go_out)
            with suppress(KeyboardInterrupt):
                LocalStore.open(old.served).close()
        with disk.mounted():
            assert check_store(old.served, read=True) == []
        if left[0] >= 0:
            break
    assert 0 < at < 19
    with disk.mounted():
        store = LocalStore.open(old.served)
        assert store.findings == []
        assert len(store.uploads(old.principal, "", 10)[0]) == len(old.facts["unfinished"])
        store.close()


def test_a_store_that_does_not_sync_is_caught() -> None:
    assert cut_power(2, "no_sync").problems != []


@pytest.mark.crash
def test_a_hundred_cuts_break_no_promise() -> None:
    seed = random.SystemRandom().randrange(1000)
    report = cut_power(100, seed=seed)
    assert report.promises > 1000
    assert report.problems == [], f"seed {seed}"
