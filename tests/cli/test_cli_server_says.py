"""What a server says of an upload, in sentences that a user can do something with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hostile_server import Answer, Asked, HostileServer, frame
from test_hostile_answers import ID, entry, here, honest, opened  # noqa: F401 - a fixture

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.errors import Code, NotPermitted, Scope, StoreFailed
from blockproto.store.part_file.store import PartFileStore
from blockproto.wire import Block, Commit, Error, Fetch, Have, Open, Opened


def refuses(code: Code, text: str) -> Answer:
    """Refuses every upload."""

    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, Open | Block):
            yield frame(asked.stream, Error(code, Scope.STREAM, False, text))
        else:
            yield from honest(asked)

    return answer


def differs(asked: Asked) -> Iterable[object]:
    """Has other bytes at each COMMIT."""
    message = asked.message
    if isinstance(message, Commit):
        yield frame(asked.stream, Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True, ""))
    elif isinstance(message, Have):
        held = Opened(bytes(16), ID, 1 << 40, 0, 1, None, held=((0, 3),))
        yield frame(asked.stream, held)
    else:
        yield from opened(held=((0, 3),))(asked)


def damaged(asked: Asked) -> Iterable[object]:
    """Says that a block arrived damaged before it came."""
    if isinstance(asked.message, Open):
        yield frame(asked.stream, Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, "", blockno=0))
    yield from opened()(asked)


@pytest.mark.parametrize("words", [["put"], ["queue"]])
def test_what_the_servers_disk_refuses_names_the_server(
    words: list[str],
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    with HostileServer(refuses(Code.NOT_PERMITTED, "the file system is read-only")) as server:
        if words == ["put"]:
            status = main(["put", "big", f"{server.address}/", "--retry-for", "0"])
        else:
            assert main(["queue", "add", "big", f"{server.address}/"]) == Status.DONE
            status = main(["queue", "run", "--until-empty", "--retry-for", "0"])
    assert status == Status.FAILED
    assert f"big: on {server.address}: the file system is read-only" in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", [differs, damaged])
def test_nobody_is_told_to_speak_the_protocol(
    answer: Answer,
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    with HostileServer(answer) as server:
        assert main(["put", "big", f"{server.address}/", "--retry-for", "0"]) == Status.FAILED
    told = capsys.readouterr().err
    assert "the other side says that" in told
    assert "report it to whoever runs the server" in told
    assert not [word for word in ("HAVE", "COMMIT", "sender", "root") if word in told]


@pytest.mark.clause("BP1-ERR-003")
@pytest.mark.parametrize("dest", ["there", "-"])
def test_the_words_of_a_server_decide_no_advice(
    dest: str,
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It uses those that this side has for a range behind the end."""

    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, Fetch):
            said = Error(Code.BAD_FACTS, Scope.STREAM, False, "the range begins at 1, the file has 0 bytes")
            yield frame(asked.stream, said)
        else:
            yield from honest(asked, entry(filesize=2 << 20))

    with HostileServer(answer) as server:
        assert main(["get", f"{server.address}/a", dest, "--retry-for", "0"]) == Status.FAILED
    told = capsys.readouterr().err
    assert "the range begins at 1" in told
    assert "give a range" not in told


LOCAL = {
    "": NotPermitted("the file system is read-only"),
    "; look at the disk of this machine": StoreFailed("the medium reported: Input/output error"),
}


@pytest.mark.parametrize("advice", LOCAL)
@pytest.mark.parametrize("remote", [False, True])
def test_what_a_disk_refuses_of_a_download_is_said_of_the_machine_that_has_it(
    remote: bool,
    advice: str,
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = LOCAL[advice]

    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, Fetch) and remote:
            yield frame(asked.stream, Error(error.code, Scope.STREAM, False, str(error)))
        else:
            yield from honest(asked, entry(filesize=2 << 20))

    def refuse(*_: object, **__: object) -> None:
        raise error

    if not remote:
        monkeypatch.setattr(PartFileStore, "__init__", refuse)
    with HostileServer(answer) as server:
        assert main(["get", f"{server.address}/a", "there", "--retry-for", "0"]) == Status.FAILED
    told = capsys.readouterr().err
    if remote:
        assert told.startswith(f"blockproto: a: {error}")
        assert "this machine" not in told
    else:
        assert told == f"blockproto: there: {error}{advice}\n"
