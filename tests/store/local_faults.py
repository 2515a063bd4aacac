"""What is done to a store in a folder of this machine, by exchanging system calls."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from blockproto.store import Upload
from blockproto.testing.store_contract import Place, UploadStoreContract
from blockproto.testing.store_contract.steps import JOIN_S, close_while_writing, facts_of, key_of, opened


def eio(*_: object) -> NoReturn:
    """What a broken medium answers."""
    raise OSError(errno.EIO, "Input/output error")


def stop_pwrite(patch: pytest.MonkeyPatch, entered: threading.Event, go_on: threading.Event) -> None:
    """See ``Place.stop_writes``."""
    real = os.pwrite

    def pwrite(fd: int, piece: memoryview, position: int) -> int:
        entered.set()
        assert go_on.wait(JOIN_S)
        return real(fd, piece, position)

    patch.setattr(os, "pwrite", pwrite)


def check_closing_while_a_write_runs(
    upload: Upload, close: Callable[[], None], folder: Path, patch: pytest.MonkeyPatch
) -> None:
    """Close in the middle of a write: what it writes with is not closed under its hands, and given to another file.

    Args:
        upload: it has been written to, so that its file is open.
        close: of the upload, or of the store.
        folder: where other files can be made.
        patch: undone at the end of the test.
    """
    others: list[int] = []

    def meanwhile() -> None:
        others.extend(os.open(folder / f"other {n}", os.O_RDWR | os.O_CREAT) for n in range(8))

    close_while_writing(lambda *events: stop_pwrite(patch, *events), upload, close, meanwhile)
    for fd in others:
        assert os.fstat(fd).st_size == 0, "it was written into a file of somebody else"
        os.close(fd)


class DescriptorRules(UploadStoreContract):
    """The contract of a store that writes to files of this machine."""

    @pytest.mark.parametrize("what", ["upload", "brief file", "store"])
    def test_closing_writes_into_no_other_file(
        self,
        place: Place,
        what: str,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        brief = what == "brief file"
        upload = (
            place.store.begin_brief(key_of(1), facts_of(300_000), 0)
            if brief
            else opened(place.store, 300_000)
        )
        upload.write(0, memoryview(b"x" * 100_000))
        before = len(os.listdir("/proc/self/fd"))
        close = place.store.close if what == "store" else upload.close
        check_closing_while_a_write_runs(upload, close, tmp_path_factory.mktemp("other"), monkeypatch)
        assert len(os.listdir("/proc/self/fd")) <= before
