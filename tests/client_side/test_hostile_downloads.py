"""A server that lies about the file it sends: one sentence that says so, and no wait without end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hostile_server import Answer, Asked, HostileServer, frame
from test_hostile_answers import ID, NAME, entry, here, honest, judge  # noqa: F401 - a fixture

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.common.blocks import digest_of
from blockproto.store import FOLDER_FILETYPE
from blockproto.wire import Block, Commit, Fetch, Open

CONTENT = b"0123456789"


def sends(filesize: int, filetype: str, digest: bytes | None) -> Answer:
    """Answers FETCH with OPEN, the block if there is a digest, and COMMIT; then with PONG only."""

    def answer(asked: Asked) -> Iterable[object]:
        if not isinstance(asked.message, Fetch):
            yield from honest(asked)
            return
        count = min(filesize, 1)
        opened = Open(
            bytes(16), 0, filesize, count, NAME, filetype, mtime_ns=10**18, mode=0o644, version=ID, file_id=ID
        )
        yield frame(asked.stream, opened)
        if digest is not None:
            block = Block(bytes(16), filesize, count, 0, 0, NAME, filetype, digest=digest)
            yield frame(asked.stream, block, CONTENT)
        yield frame(asked.stream, Commit(bytes(16), digest_of(CONTENT), filesize, count))

    return answer


LIES = {
    "COMMIT without the block": sends(10, "text/plain", None),
    "a block with another digest": sends(10, "text/plain", b"x" * 32),
    "a folder": sends(0, FOLDER_FILETYPE, None),
    "another size": sends(11, "text/plain", None),
}


@pytest.mark.clause("BP1-END-018")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("command", ["get", "get of everything"])
def test_a_download_from_a_liar_ends(
    lie: str,
    command: str,
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the server has said COMMIT: it is the one who owes bytes then, and is given no more time for that."""
    monkeypatch.setattr("blockproto.client_side.stall_timeout.PATIENCE_S", 3600.0)
    with HostileServer(LIES[lie]) as server:
        words = [f"{server.address}/a", "dest"] if command == "get" else [f"{server.address}", "all/"]
        status = main(["get", *words, "--retry-for", "0"])
    assert status in (Status.FAILED, Status.UNREACHABLE)
    told = capsys.readouterr().err
    judge(status, told)
    if lie in ("a folder", "another size"):
        assert "the server contradicts itself: it named a file of 10 bytes, and sends one of" in told
        assert "report it to whoever runs the server" in told
    assert "range" not in told
    assert "PIECE" not in told
