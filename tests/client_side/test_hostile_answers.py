"""Every command against a server that lies: one sentence, exit code 1 or 3, never a traceback, never a wait without end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile_server import CLOSE, Answer, Asked, Drip, HostileServer, frame
from peers import bytes_of

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.wire import (
    PREFACE,
    Ack,
    Block,
    Commit,
    Committed,
    Error,
    Fetch,
    FileItem,
    Hello,
    List,
    ListKind,
    Open,
    Opened,
    Piece,
    PrincipalItem,
    Remove,
    Result,
    UploadItem,
    encode_frame,
)

ID = b"\x11" * 16
OTHER = b"\x22" * 16
U63, U62 = (1 << 63) - 1, 1 << 62
NAME = "a"


def entry(name: str = NAME, **changes: Any) -> FileItem:
    fields: dict[str, Any] = {
        "kind": 1, "filesize": 10, "mtime_ns": 10**18, "mode": 0o644, "file_id": ID, "version": ID,
        "filename": name, "filetype": "text/plain",
    }  # fmt: skip
    return FileItem(**fields | changes)


def unfinished(**changes: Any) -> UploadItem:
    fields: dict[str, Any] = {
        "sourceid": ID, "file_id": ID, "filesize": 10, "blocknum": 1, "position": 0, "held_count": 0,
        "expires_ms": 10**13, "filename": NAME, "filetype": "text/plain",
    }  # fmt: skip
    return UploadItem(**fields | changes)


def page(asked: Asked, *items: Any, cursor: str = "", kind: int | None = None) -> bytes:
    assert isinstance(asked.message, List | Remove)
    return frame(asked.stream, Result(asked.message.kind if kind is None else kind, items, cursor))


def honest(asked: Asked, item: FileItem | None = None) -> Iterator[object]:
    """What a server with one file, and one unfinished upload, says to questions."""
    message = asked.message
    if isinstance(message, Remove):
        yield page(asked)
    elif isinstance(message, List) and message.kind == ListKind.FILES:
        yield page(
            asked, replace(item or entry(), filename=message.name) if message.exact else item or entry()
        )
    elif isinstance(message, List) and message.kind == ListKind.UPLOADS:
        yield page(asked, unfinished())
    elif isinstance(message, List):
        yield page(asked)


def questions(asked: Asked) -> bool:
    return isinstance(asked.message, List | Remove)


# ---- the lies


def wrong_kind(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List | Remove):
        if asked.message.kind == ListKind.FILES:
            yield page(asked, unfinished(), kind=2)
        else:
            yield page(asked, entry(), kind=1)


def of_nobody(asked: Asked) -> Iterable[object]:
    if questions(asked):
        who = PrincipalItem(ID, None, 0, None, None, 3, "you")
        yield page(asked, who, kind=0)


def nothing(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and not asked.message.ids:
        yield page(asked, cursor="more")
    else:
        yield from honest(asked)


def exact_nothing(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and asked.message.exact:
        yield page(asked)
    else:
        yield from honest(asked)


def exact_two(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and asked.message.exact:
        yield page(asked, entry(asked.message.name), entry(asked.message.name))
    else:
        yield from honest(asked)


def exact_another(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and asked.message.exact:
        yield page(asked, entry("../../etc/passwd"))
    else:
        yield from honest(asked)


def same_cursor(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and not asked.message.exact:
        items = [entry()] if asked.message.kind == ListKind.FILES else [unfinished()]
        yield page(asked, *items * (asked.message.kind != ListKind.RECEIPTS), cursor="again")
    else:
        yield from honest(asked, entry(kind=2))


def two_cursors(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and not asked.message.exact:
        item = entry(f"a{asked.number % 2}") if asked.message.kind == ListKind.FILES else unfinished()
        yield page(asked, *[item] * (asked.message.kind != ListKind.RECEIPTS), cursor=f"{asked.number % 2}")
    else:
        yield from honest(asked, entry(kind=2))


def counting_for_ever(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and not asked.message.exact:
        count = asked.number
        item = (
            entry(f"a{count:09}")
            if asked.message.kind == ListKind.FILES
            else unfinished(sourceid=count.to_bytes(16))
        )
        yield page(asked, *[item] * (asked.message.kind != ListKind.RECEIPTS), cursor=f"{count}")
    else:
        yield from honest(asked, entry(kind=2))


def absurd(**changes: Any) -> Answer:
    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if isinstance(message, List) and message.kind == ListKind.UPLOADS:
            yield page(
                asked, unfinished(**{name: value for name, value in changes.items() if name in UPLOAD_FIELDS})
            )
        elif isinstance(message, Fetch):
            yield frame(asked.stream, Error(22, 2, False, "no"))
        else:
            yield from honest(
                asked, entry(**{name: value for name, value in changes.items() if name in FILE_FIELDS})
            )

    return answer


FILE_FIELDS = {"filesize", "mtime_ns", "mode", "filename", "filetype", "kind"}
UPLOAD_FIELDS = {"filesize", "expires_ms", "position", "held_count", "filename", "filetype", "blocknum"}


def hostile_names(asked: Asked) -> Iterable[object]:
    if isinstance(asked.message, List) and asked.message.kind == ListKind.FILES and not asked.message.exact:
        below = asked.message.name + "/" if asked.message.name else ""
        names = [
            below + name
            for name in ("..", "../../x", "\x1b[2J", "/etc/x", "a//b", "\u202egpj", ".blockproto/x", "a\nb")
        ]
        names += ["/etc/passwd", "zz/elsewhere"]
        yield page(asked, *(entry(name) for name in sorted(names, key=str.encode)))
    elif isinstance(asked.message, List) and asked.message.kind == ListKind.UPLOADS:
        yield page(asked, unfinished(filename="\x1b[2J/../../x\r\n"))
    else:
        yield from honest(asked, entry(kind=2))


def opened(**changes: Any) -> Answer:
    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if isinstance(message, Open):
            fields: dict[str, Any] = {
                "sourceid": message.sourceid, "file_id": ID, "attempt": message.attempt, "position": 0, "incarnation": 1,
                "expires_ms": None,
            }  # fmt: skip
            yield frame(asked.stream, Opened(**fields | changes))
        else:
            yield from honest(asked)

    return answer


def committed(**changes: Any) -> Answer:
    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        commits = isinstance(message, Commit) or (isinstance(message, Block) and message.commit)
        if isinstance(message, Open):
            yield from opened()(asked)
        if isinstance(message, Open) or commits:
            fields: dict[str, Any] = {
                "sourceid": getattr(message, "sourceid", ID), "file_id": ID, "root": bytes(32), "filesize": 3,
                "stored_as": NAME,
            }  # fmt: skip
            yield frame(asked.stream, Committed(**fields | changes))
        yield from honest(asked)

    return answer


def served(**changes: Any) -> Answer:
    """Answers FETCH with an OPEN that is wrong in ``changes``, and then with bytes."""

    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if isinstance(message, Fetch):
            fields: dict[str, Any] = {
                "sourceid": bytes(16), "attempt": 0, "filesize": 10, "blocknum": 1, "filename": NAME,
                "filetype": "text/plain", "mtime_ns": 10**18, "mode": 0o644, "version": ID, "file_id": ID,
            }  # fmt: skip
            yield frame(asked.stream, Open(**fields | changes))
            yield frame(asked.stream, Error(22, 2, False, "no more"))
        else:
            size = changes.get("filesize")
            yield from honest(asked, entry(filesize=10 if size is None else size))

    return answer


def says(*made: Callable[[int], bytes]) -> Answer:
    """Answers everything with the same frames."""

    def answer(asked: Asked) -> Iterable[object]:
        for make in made:
            yield make(asked.stream)

    return answer


def closes(asked: Asked) -> Iterable[object]:
    yield CLOSE


LIES: dict[str, Answer] = {
    "the wrong kind": wrong_kind,
    "of the kind of AUTH": of_nobody,
    "no entry and a cursor": nothing,
    "EXACT with nothing": exact_nothing,
    "EXACT with two": exact_two,
    "EXACT with another": exact_another,
    "the same cursor": same_cursor,
    "two cursors": two_cursors,
    "counts for ever": counting_for_ever,
    "all bits of mode": absurd(mode=0xFFFFFFFF),
    "a size of 2^64": absurd(filesize=U63, position=U63, held_count=0xFFFFFFFE),
    "a time of 2^63": absurd(mtime_ns=(1 << 63) - 1, expires_ms=U62),
    "a time of -2^63": absurd(mtime_ns=-(1 << 63), expires_ms=U63),
    "a type that is no type": absurd(filetype="\x1b]0;x\x07" * 20, kind=77),
    "names": hostile_names,
    "OPENED at 2^62": opened(position=U62),
    "OPENED with blocks behind the end": opened(held=((0, 1), (1 << 31, 5))),
    "OPENED with prefixes of nothing": opened(prefixes=((0, 1 << 19), (77, 1 << 19))),
    "OPENED of another": opened(sourceid=OTHER),
    "OPENED of an attempt to come": opened(attempt=U62),
    "OPENED at the end": opened(position=1 << 21, held=((0, 2),)),
    "COMMITTED of another": committed(sourceid=OTHER),
    "COMMITTED of another root": committed(root=b"\x33" * 32),
    "COMMITTED of another size": committed(filesize=U62),
    "COMMITTED as something else": committed(stored_as="../\x1b[2J"),
    "OPEN of another size": served(filesize=1 << 51, blocknum=1 << 31),
    "OPEN of another name": served(filename="../../x"),
    "OPEN of another version": served(version=OTHER),
    "ERROR of an unknown code": says(lambda stream: frame(stream, Error(999, 2, True, "\x1b[2J"))),
    "ERROR with all hints": says(
        lambda stream: frame(stream, Error(22, 2, False, "x" * 1024, 0xFFFFFFFE, 5, U62))
    ),
    "ERROR (connection)": says(lambda stream: frame(0, Error(4, 3, False, "\x1b[2J"))),
    "RESULT to everything": says(lambda stream: frame(stream, Result(1, (entry(),)))),
    "COMMITTED to everything": says(lambda stream: frame(stream, Committed(ID, ID, bytes(32), 5, NAME))),
    "ACK to everything": says(lambda stream: frame(stream, Ack(U62, ((0, 0xFFFFFFF0),)))),
    "PIECE to everything": says(lambda stream: frame(stream, Piece(0), b"x")),
    "a stream of its own": says(lambda stream: frame(stream + 1001, List(1))),
    "bytes": says(lambda stream: os.urandom(4096)),
    "a frame without end": says(lambda stream: b"\xff\xff\xff\x8f" + bytes(12)),
    "the end": closes,
}

COMMANDS: dict[str, list[str]] = {
    "ls": ["ls", "{}"],
    "ls of a folder": ["ls", "-r", "{}/a"],
    "stat": ["stat", "{}/a"],
    "stat --b3sum": ["stat", "--b3sum", "{}/a"],
    "uploads": ["uploads", "{}"],
    "rm": ["rm", "{}/a"],
    "rm -r": ["rm", "-r", "{}/a"],
    "cancel": ["cancel", "11" * 16, "{}"],
    "get": ["get", "{}/a", "dest", "--retry-for", "0"],
    "get of everything": ["get", "{}", "all/", "--retry-for", "0"],
    "get --upload": ["get", "--upload", "11" * 16, "{}", "dest", "--retry-for", "0"],
    "put": ["put", "small", "{}/", "--retry-for", "0"],
    "put of a big one": ["put", "big", "{}/", "--retry-for", "0"],
    "put of a folder": ["put", "folder", "{}/", "--retry-for", "0"],
    "queue": ["queue", "run", "--until-empty", "--retry-for", "0"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with things to send, where the commands run; nothing is waited for between two tries."""
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "big").write_bytes(bytes_of(2 * 1024 * 1024 + 5))
    (tmp_path / "folder").mkdir()
    for name in "xyz":
        (tmp_path / "folder" / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKPROTO_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setattr("blockproto.client_side.connections.UNGREETED_S", 0.0)
    monkeypatch.setattr("blockproto.client_side.connections.RETRY_FOR_S", 0.0)
    monkeypatch.setattr("blockproto.client_side.paging.PAGES_MAX", 200)
    monkeypatch.setattr("blockproto.client_side.request.ANSWER_S", 0.5)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.FIRST_S", 0.5)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.STALLED_S", 1.0)
    monkeypatch.setattr("blockproto.client_side.stall_timeout.PATIENCE_S", 1.5)
    return tmp_path


def runs(words: list[str], server: HostileServer) -> int:
    if words[0] == "queue":
        assert main(["queue", "add", "small", "big", f"{server.address}/"]) == Status.DONE
        assert main(["queue", "get", f"{server.address}/a"]) == Status.DONE
    return main([word.format(server.address) for word in words])


def judge(status: int, told: str) -> None:
    """Whatever came of it: an exit code of ours, no traceback, nothing that a terminal obeys."""
    assert status in (Status.DONE, Status.FAILED, Status.UNREACHABLE), status
    assert "Traceback" not in told
    assert not [character for character in told if not character.isprintable() and character != "\n"]
    assert bool(status) <= bool(told)


QUESTIONS = (
    "ls",
    "ls of a folder",
    "stat",
    "uploads",
    "rm -r",
    "cancel",
    "get of everything",
    "get --upload",
    "queue",
)
UPLOADS = ("put", "put of a big one", "put of a folder", "queue")
DOWNLOADS = ("get", "get of everything", "get --upload")


def cases() -> Iterator[tuple[str, str]]:
    """Each lie with the commands that hear it; those that are said to everything with all."""
    for lie in LIES:
        begin = lie.partition(" ")[0]
        every = lie.endswith("to everything") or begin in ("ERROR", "a", "bytes", "the")
        commands: Iterable[str] = COMMANDS if every else QUESTIONS
        if begin in ("OPENED", "COMMITTED"):
            commands = COMMANDS if every else UPLOADS
        elif begin == "OPEN":
            commands = DOWNLOADS
        yield from ((lie, command) for command in commands)


@pytest.mark.clause("BP1-LST-016")
@pytest.mark.parametrize(("lie", "command"), list(cases()))
def test_a_lie_is_one_sentence(
    lie: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer(LIES[lie]) as server:
        status = runs(COMMANDS[command], server)
    out, err = capsys.readouterr()
    judge(status, err)
    judge(0, out)
    assert not (here.parent / "x").exists()


@pytest.mark.parametrize(
    "lie",
    [
        "the wrong kind",
        "of the kind of AUTH",
        "no entry and a cursor",
        "the same cursor",
        "two cursors",
        "counts for ever",
    ],
)
@pytest.mark.parametrize("command", ["ls", "uploads", "get of everything"])
def test_what_is_no_list_is_no_success(lie: str, command: str, here: Path) -> None:
    with HostileServer(LIES[lie]) as server:
        assert runs(COMMANDS[command], server) in (Status.FAILED, Status.UNREACHABLE)
        assert len(server.heard) < 1000


@pytest.mark.parametrize("lie", ["EXACT with nothing", "EXACT with two", "EXACT with another"])
@pytest.mark.parametrize("command", ["stat", "stat --b3sum", "get"])
def test_exact_is_one_entry_of_that_name(
    lie: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer(LIES[lie]) as server:
        assert runs(COMMANDS[command], server) == Status.FAILED
    assert "was asked for one entry" in capsys.readouterr().err


def test_modes_and_times_are_shown_as_far_as_they_mean_something(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer(LIES["all bits of mode"]) as server:
        assert main(["ls", server.address]) == Status.DONE
        assert main(["stat", "--json", f"{server.address}/a"]) == Status.DONE
    out = capsys.readouterr().out
    assert out.startswith("-rwxrwxrwx")
    assert '"mode": "0777"' in out
    with HostileServer(honest) as server:
        assert main(["uploads", server.address]) == Status.DONE
    assert f"{ID.hex()}  less than a block of 10 B (0 blocks)  expires" in capsys.readouterr().out
    with HostileServer(LIES["a time of 2^63"]) as server:
        assert main(["uploads", server.address]) == Status.DONE
    assert "after the year 9999" in capsys.readouterr().out


# ---- servers that take their time


@pytest.mark.clause("BP1-END-018")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("how", ["answers PING only", "answers nothing", "drips HELLO", "drips answers"])
def test_nothing_is_waited_for_without_end(
    how: str, command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GREETING_S", "HEAD_S", "ANSWER_S"):
        monkeypatch.setattr(f"blockproto.connection.liveness.{name}", 0.5)
    hello = PREFACE + encode_frame(0, Hello(agent="slow"))

    def drips(asked: Asked) -> Iterable[object]:
        for said in honest(asked):
            assert isinstance(said, bytes)
            yield Drip(said, 0.1)

    server = HostileServer(drips if how == "drips answers" else lambda asked: ())
    server.hello = Drip(hello, 0.1) if how == "drips HELLO" else hello
    server.dead = how == "answers nothing"
    with server:
        status = runs(COMMANDS[command], server)
    assert status in (Status.FAILED, Status.UNREACHABLE)
    judge(status, capsys.readouterr().err)


def test_a_file_that_hardly_comes_is_given_up(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blockproto.connection.minimum_rate.SPAN_S", 0.3)
    monkeypatch.setattr("blockproto.client_side.connections.RETRY_FOR_S", 1.0)

    def answer(asked: Asked) -> Iterable[object]:
        if not isinstance(asked.message, Fetch):
            yield from honest(asked, entry(filesize=1 << 20))
            return
        size = 1 << 20
        yield frame(
            asked.stream,
            Open(
                bytes(16), 0, size, 1, NAME, "text/plain", mtime_ns=10**18, mode=0o644, version=ID, file_id=ID
            ),
        )
        begun = Block(bytes(16), size, 1, 0, 0, NAME, "text/plain")
        for at in range(100):
            yield Drip(b"", 0) if at else frame(asked.stream, begun, b"x")
            yield Drip(b"\0", 0.05) if at > 90 else frame(asked.stream, Piece(1 + at), b"x")

    with HostileServer(answer) as server:
        status = main(["get", f"{server.address}/a", "dest"])
    assert status in (Status.FAILED, Status.UNREACHABLE)
    assert len(server.heard) < 60
    judge(status, capsys.readouterr().err)
