"""The contract of stores: the rules that every store keeps, as tests that a store's own test file inherits.

    # conftest.py
    pytest.register_assert_rewrite("blockproto.testing.store_contract")  # so that a failure shows its values

    # test_my_store.py
    from blockproto.testing.store_contract import FileStoreContract

    class TestMyStore(FileStoreContract):
        @pytest.fixture
        def place(self) -> MyPlace:
            return MyPlace()

``UploadStoreContract`` is for an ``UploadStore``, ``FileStoreContract`` for a ``FileStore``. ``MyPlace`` is a ``Place`` or a
``FilePlace``: it holds the store, empty at the beginning of each test, and does to it from outside what only its author can:
let time pass, kill it, fill its disk. Whoever inherits ``UploadStoreContract`` also writes ``take_away`` and
``mode_and_mtime``. What the rules are written with is in ``steps``, for further tests of a store.

This is the only part of blockproto that needs pytest, which is not installed with it.
"""

from __future__ import annotations

from .decisions import DecisionRules
from .files import FileRules
from .place import FilePlace, Place
from .same_files import SameFileRules
from .uploads import UploadRules
from .whole_files import WholeFileRules

__all__ = ["FilePlace", "FileStoreContract", "Place", "UploadStoreContract"]


class UploadStoreContract(UploadRules, DecisionRules):
    """For everything that takes uploads."""


class FileStoreContract(FileRules, SameFileRules, WholeFileRules, UploadStoreContract):
    """For what also serves finished files."""
