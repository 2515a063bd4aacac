"""``serve --names portable``: names that would be lost on Windows or macOS, and twins, are refused; others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import Ran, Server

from blockproto.cli.output import Status
from blockproto.common.blocks import root_of
from blockproto.common.names import SafeName, fold
from blockproto.errors import BlockprotoError, NameRefused
from blockproto.store import (
    FOLDER_FILETYPE,
    BlockDone,
    Facts,
    Finish,
    IfExists,
    StoredFile,
    Upload,
    UploadKey,
)
from blockproto.store.local.store import LocalStore

Run = Callable[..., Ran]
NFC, NFD = "é.txt", "e\u0301.txt"


class Shelf:
    """A store that keeps names portable."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore.open(folder, portable=True)
        self.folder = folder
        self._count = 0

    def facts(self, name: str, *, folder: bool = False, if_exists: IfExists = IfExists.KEEP) -> Facts:
        kind = FOLDER_FILETYPE if folder else "text/plain"
        return Facts(SafeName(name), kind, 0 if folder else len(name), if_exists=if_exists)

    def key(self) -> UploadKey:
        self._count += 1
        return UploadKey(bytes(16), self._count.to_bytes(16, "big"))

    def work(self, name: str, *, folder: bool = False, if_exists: IfExists = IfExists.KEEP) -> Finish:
        """The commit of a small file whose content is its own name."""
        facts = self.facts(name, folder=folder, if_exists=if_exists)
        upload: Upload = self.store.begin_brief(self.key(), facts, 1)
        content = b"" if folder else name.encode()[: len(name)]
        blocks: tuple[BlockDone, ...] = ()
        if content:
            upload.write(0, memoryview(content))
            blocks = (BlockDone(upload, 1, 0, len(content), blake3(content).digest()),)
        return Finish(
            upload, 1, root_of([block.digest for block in blocks], len(blocks)), len(content), facts, blocks
        )

    def put(self, name: str, **options: object) -> str:
        """Where it was stored. Raises what it was refused with."""
        [outcome] = self.put_all(self.work(name, **options))  # type: ignore[arg-type]
        if isinstance(outcome, BlockprotoError):
            raise outcome
        return outcome

    def put_all(self, *works: Finish) -> list[str | BlockprotoError]:
        """Commit them as one batch."""
        outcomes: list[str | BlockprotoError] = []
        for work, outcome in zip(works, self.store.decide(works), strict=True):
            assert outcome is not None
            work.upload.close()
            outcomes.append(outcome.stored_as if isinstance(outcome, StoredFile) else outcome)
        return outcomes

    def names(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if ".blockproto" not in path.parts
        )


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.store.close()


def rule_of(shelf: Shelf, name: str, **options: object) -> str:
    with pytest.raises(NameRefused) as caught:
        shelf.put(name, **options)
    assert caught.value.profile == "portable"
    return caught.value.rule


@pytest.mark.clause("BP1-NAM-005")
@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("xt_dscp.h", "xt_DSCP.h"),
        ("xt_DSCP.h", "xt_dscp.h"),
        ("net/a/xt_dscp.h", "net/a/XT_dscp.h"),
        ("Photos/a", "photos/b"),
        (NFC, NFC.upper()),
        ("straße", "STRASSE"),
        ("ﬁle", "file"),
    ],
)
def test_twins_are_refused(shelf: Shelf, there: str, name: str) -> None:
    assert shelf.put(there) == there
    before = shelf.names()
    assert rule_of(shelf, name) == "case-collision"
    assert rule_of(shelf, name, if_exists=IfExists.REPLACE) == "case-collision"
    with pytest.raises(NameRefused, match="which is there"):
        shelf.store.open_upload(shelf.key(), shelf.facts(name), 1)  # before any byte has come
    assert shelf.names() == before
    assert shelf.put(there) != there  # the same name is no twin: both are kept, as ever


def test_twins_of_one_batch(shelf: Shelf) -> None:
    first, second, third = shelf.put_all(*map(shelf.work, ("xt_DSCP.h", "xt_dscp.h", "sub/x")))
    assert first == "xt_DSCP.h"
    assert isinstance(second, NameRefused)
    assert third == "sub/x"
    made, beside = shelf.put_all(shelf.work("Made", folder=True), shelf.work("made/x"))
    assert made == "Made"
    assert isinstance(beside, NameRefused)
    assert rule_of(shelf, "MADE", folder=True) == "case-collision"


def test_what_came_another_way_counts(shelf: Shelf) -> None:
    (shelf.folder / "README").write_text("mine")
    (shelf.folder / NFD).write_text("from a Mac")
    assert rule_of(shelf, "readme") == "case-collision"
    assert rule_of(shelf, NFC) == "case-collision"
    (shelf.folder / "README").unlink()
    assert shelf.put("readme") == "readme"


def test_a_kept_name_has_no_twin(shelf: Shelf) -> None:
    assert [shelf.put("a.txt"), shelf.put("A (1).txt")] == ["a.txt", "A (1).txt"]
    assert shelf.put("a.txt") == "a (2).txt"


@pytest.mark.clause("BP1-NAM-005")
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a:b", "forbidden-character"),
        ("a?b", "forbidden-character"),
        ("COM¹.log", "device-name"),
        ("folder /x", "edge"),
        ("sub/nul.txt", "device-name"),
    ],
)
def test_names_that_others_cannot_keep(shelf: Shelf, name: str, rule: str) -> None:
    assert rule_of(shelf, name) == rule
    assert shelf.names() == []


@pytest.mark.parametrize(
    "name", [".gitignore", " a", NFD, "a\u202eb", "x" * 255, "文" * 85, "com10", "~$a.docx", ".a/.b"]
)
def test_what_windows_and_macos_can_keep_is_taken(shelf: Shelf, name: str) -> None:
    assert shelf.put(name) == name
    assert shelf.names()[-1] == name


@pytest.mark.parametrize(("there", "name"), [("x²", "x2"), ("①", "1"), ("ｆ", "f")])
def test_what_only_looks_alike_is_no_twin(shelf: Shelf, there: str, name: str) -> None:
    assert [shelf.put(there), shelf.put(name)] == [there, name]


def test_a_file_with_such_a_name_is_still_served(tmp_path: Path) -> None:
    (tmp_path / "nul").write_text("x")
    shelf = Shelf(tmp_path)
    try:
        [entry], _ = shelf.store.files("", False, "", 10)
        assert entry.filename.text == "nul"
        shelf.store.open_file(SafeName("nul"), None).close()
    finally:
        shelf.store.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("aAbBéÉ/", min_size=1, max_size=5).filter(lambda name: "" not in name.split("/"))))
def test_no_two_twins_are_ever_there(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    try:
        shelf.put_all(*map(shelf.work, names))
        there = shelf.names()
    finally:
        shelf.store.close()
    assert len({fold(name) for name in there}) == len(there)


def test_serve_names_portable(start_server: Callable[..., Server], tmp_path: Path, run: Run) -> None:
    server = start_server(None, "--names", "portable")
    (tmp_path / "a").write_bytes(b"1")
    assert run("put", tmp_path / "a", server.address + "/", "--as", "xt_dscp.h").status == Status.DONE
    for name, rule in (("xt_DSCP.h", "case-collision"), ("con", "device-name")):
        ran = run("put", tmp_path / "a", server.address + "/", "--as", name)
        assert ran.status == Status.FAILED
        assert f"rule {rule}, profile portable" in ran.err
    assert sorted(path.name for path in server.folder.iterdir()) == [".blockproto", "xt_dscp.h"]
