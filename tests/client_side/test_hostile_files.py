"""``get`` of a folder from a server that lies in FILES: it ends, says what is wrong, and writes only what was listed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from zlib import crc32

import pytest
from hostile_server import CLOSE, Asked, Drip, HostileServer, forged, frame
from peers import bytes_of
from processes import wait_until

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.common.blocks import digest_of
from blockproto.common.file_table import FileTable
from blockproto.errors import Code, Scope
from blockproto.wire import (
    FEATURE_FILES,
    FEATURE_WANTED,
    HEADER_LENGTH,
    PREFACE,
    Error,
    FileItem,
    Files,
    Hello,
    List,
    Result,
    Stored,
    encode_frame,
)

HELLO = PREFACE + encode_frame(0, Hello(features=FEATURE_FILES | FEATURE_WANTED, agent="hostile"))
NAMES = tuple(f"{number:02}" for number in range(24))
CONTENT = {name: bytes_of(100, seed) for seed, name in enumerate(NAMES)}
EACH = 4
"""Files that the client asks for at once: so it has more to ask for than it may ask for at once."""

FLAGS_AT = 4
"""Where a frame has its flags."""
COUNT_AT = 4 + 1 + (2 + 2) + (2 + 2 + len("text/plain"))
"""Where the head of ``files`` says how many there are: behind number, if_exists, one empty folder and one filetype."""

Lie = Callable[[int, Files], Iterable[object]]


def version(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def listed(asked: Asked) -> Iterable[object]:
    """All the files, to whoever lists the folder; nothing else is known."""
    message = asked.message
    if isinstance(message, List):
        items = tuple(
            FileItem(1, 100, 10**18, 0o644, bytes(16), version(name), name, "text/plain") for name in NAMES
        )
        yield frame(asked.stream, Result(message.kind, items, ""))


def files(stream: int, number: int, *names: str, last: bool = False, folder: str = "") -> bytes:
    """FILES that bring these files as they are; those that there are not have a byte."""
    contents = [CONTENT.get(name, b"x" * 100) for name in names]
    records = tuple(
        (version(name), digest_of(content), len(content), 10**18, 0o644, 0, 0, len(name))
        for name, content in zip(names, contents, strict=True)
    )
    message = Files(number, (folder,), ("text/plain",), FileTable(records, names), last=last)
    return frame(stream, message, b"".join(contents))


def each_asked(asked: Files) -> list[str]:
    return list(asked.table.names)


def silent(stream: int, asked: Files) -> Iterable[object]:
    return ()


def without_last(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, *each_asked(asked))


def drips(stream: int, asked: Files) -> Iterable[object]:
    yield Drip(files(stream, 0, *each_asked(asked), last=True), 0.1)


def half_a_frame(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, *each_asked(asked), last=True)[:-50]


def cut(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, *each_asked(asked), last=True)[:-50]
    yield CLOSE


def the_same_for_ever(stream: int, asked: Files) -> Iterable[object]:
    first = each_asked(asked)[0]
    yield from (files(stream, number, first) for number in range(10_000))


def nothing_for_ever(stream: int, asked: Files) -> Iterable[object]:
    for number in range(10_000):
        raw = frame(stream, Files(number, last=True))
        begin, head = raw[:FLAGS_AT] + bytes(2) + raw[FLAGS_AT + 2 : HEADER_LENGTH - 4], raw[HEADER_LENGTH:]
        yield begin + struct.pack(">I", crc32(begin + head)) + head


def behind_the_last(stream: int, asked: Files) -> Iterable[object]:
    first, *others = each_asked(asked)
    yield files(stream, 0, first, last=True) + files(stream, 1, *others, last=True)


def in_another_order(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, *reversed(each_asked(asked)), last=True)


def outside(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, each_asked(asked)[0], last=True, folder="..")


def not_asked_for(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, *each_asked(asked), "evil", last=True)


def a_path_for_a_name(stream: int, asked: Files) -> Iterable[object]:
    yield files(stream, 0, "../evil", last=True)


def more_than_there_are(stream: int, asked: Files) -> Iterable[object]:
    names = each_asked(asked)
    raw = files(stream, 0, *names, last=True)
    yield forged(raw, COUNT_AT, struct.pack(">H", len(names) + 300))


def numbers_that_fall(stream: int, asked: Files) -> Iterable[object]:
    first, *others = each_asked(asked)
    yield files(stream, 5, first) + files(stream, 4, *others, last=True)


def asks_back(stream: int, asked: Files) -> Iterable[object]:
    yield frame(stream, asked)


def stored(stream: int, asked: Files) -> Iterable[object]:
    yield frame(stream, Stored(0, bytes(len(asked.table.names)), last=True))


LIES: dict[str, Lie] = {lie.__name__.replace("_", " "): lie for lie in (
    silent, without_last, drips, half_a_frame, cut, the_same_for_ever, nothing_for_ever, behind_the_last, in_another_order,
    outside, not_asked_for, a_path_for_a_name, more_than_there_are, numbers_that_fall, asks_back, stored,
)}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs; it asks for few files at once, and waits for nothing long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("blockproto.client_side.download_files.FILES_MAX", EACH)
    monkeypatch.setattr("blockproto.client_side.download_many.FILES_MAX", EACH)
    monkeypatch.setattr("blockproto.client_side.connections.UNGREETED_S", 0.0)
    monkeypatch.setattr("blockproto.client_side.connections.RETRY_FOR_S", 0.0)
    monkeypatch.setattr("blockproto.client_side.request.ANSWER_S", 0.5)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.FIRST_S", 0.5)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.STALLED_S", 1.0)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.PATIENCE_S", 1.5)
    for name in ("GREETING_S", "HEAD_S", "ANSWER_S"):
        monkeypatch.setattr(f"blockproto.connection.liveness.{name}", 0.5)
    return tmp_path


def get(
    lie: Lie, on_stored: Callable[[int], Iterable[object]] = lambda stream: ()
) -> tuple[int, HostileServer]:
    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if isinstance(message, Files) and message.wanted:
            yield from lie(asked.stream, message)
        elif isinstance(message, Stored) and not message.last:
            yield from on_stored(asked.stream)
        else:
            yield from listed(asked)

    with HostileServer(answer, hello=HELLO) as server:
        return main(["get", server.address, "all/", "--retry-for", "0"]), server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked_of(server: HostileServer) -> list[int]:
    """How many files were asked for each time."""
    messages = [one.message for one in server.heard]
    return [len(one.table.names) for one in messages if isinstance(one, Files) and one.wanted]


@pytest.mark.clause("BP1-FIL-019")
@pytest.mark.clause("BP1-END-018")
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_in_a_sentence_and_leaves_whole_files_only(
    lie: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, server = get(LIES[lie])
    told = capsys.readouterr().err
    assert asked_of(server)
    assert status in (Status.FAILED, Status.UNREACHABLE), told
    assert told
    assert "Traceback" not in told
    assert len(server.heard) < 500
    assert contents(here).items() <= CONTENT.items()
    assert {path.name for path in here.iterdir()} <= {"all"}
    assert not (here.parent / "evil").exists()


def test_the_same_server_without_a_lie(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, server = get(lambda stream, asked: [files(stream, 0, *each_asked(asked), last=True)])
    assert status == Status.DONE, capsys.readouterr().err
    assert contents(here / "all") == CONTENT
    assert asked_of(server) == [EACH] * (len(NAMES) // EACH)


@pytest.mark.clause("BP1-FIL-019")
def test_last_may_come_by_itself_once_everything_is_stored(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, server = get(without_last, lambda stream: [files(stream, 1, last=True)])
    assert status == Status.DONE, capsys.readouterr().err
    assert contents(here / "all") == CONTENT
    assert asked_of(server) == [EACH] * (len(NAMES) // EACH)


def test_whoever_never_says_last_is_told_that_all_has_come(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream brings all: the command does not wait for its end, nor leave it open."""
    for module in ("download_files", "download_many"):
        monkeypatch.setattr(f"blockproto.client_side.{module}.FILES_MAX", len(NAMES))

    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, Files):
            return without_last(asked.stream, asked.message)
        return listed(asked)

    def was_told() -> bool:
        said = [one.message for one in server.heard if isinstance(one.message, Error)]
        return [(one.code, one.scope) for one in said] == [(Code.CANCELLED, Scope.STREAM)]

    with HostileServer(answer, hello=HELLO) as server:
        assert main(["get", server.address, "all/", "--retry-for", "0"]) == Status.DONE
        wait_until(was_told)
    assert contents(here / "all") == CONTENT
