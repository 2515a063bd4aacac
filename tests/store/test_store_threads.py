"""Threads that the system starts, or does not: what is to be done is done once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from blockproto.store import StoredFile
from blockproto.store.local.store import LocalStore
from blockproto.store.local.threads import Threads
from blockproto.testing.store_contract.steps import brief_of, finish_of, opened, stored, written


def no_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_each_task_is_done_once_beside_the_others() -> None:
    threads, both = Threads(2, "test"), threading.Barrier(2, timeout=30)
    done: list[int] = []

    def task(number: int) -> None:
        both.wait()
        done.append(number)

    for future in threads.run([lambda: task(1), lambda: task(2)]):
        future.result(30)
    threads.close()
    threads.close()
    assert sorted(done) == [1, 2]


@pytest.mark.parametrize("before", [0, 1])
def test_each_task_is_done_once_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    threads, done = Threads(4, "test"), []
    for number in range(before):
        threads.run([lambda number=number: done.append(-number - 1)])[0].result(30)  # type: ignore[misc]
    monkeypatch.setattr(threading.Thread, "start", no_threads)
    futures = threads.run([lambda number=number: done.append(number) for number in range(20)])  # type: ignore[misc]
    for future in futures:
        future.result(30)
    monkeypatch.undo()
    threads.close()
    assert sorted(done) == [-1] * before + list(range(20))


def test_what_a_task_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError(5, "Input/output error")

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(threading.Thread, "start", no_threads)
        threads = Threads(1, "test")
        with pytest.raises(OSError, match="Input"):
            threads.run([fails])[0].result(30)
        threads.close()


@pytest.mark.parametrize("files", [1, 3, 20])
def test_a_store_makes_durable_without_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    store = LocalStore.open(tmp_path)
    monkeypatch.setattr(threading.Thread, "start", no_threads)
    works = [brief_of(store, b"x", number=number, name=f"{number}.txt") for number in range(files)]
    assert all(isinstance(outcome, StoredFile) for outcome in store.decide(works))
    upload = opened(store, 10, number=99)
    stored(store, *written(upload, b"0123456789"), finish_of(upload, b"0123456789"))
    store.close()
    assert len(list(tmp_path.glob("*.txt"))) == files
