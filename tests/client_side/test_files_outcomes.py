"""What became of a file of a frame: said by the server, understood by the client, and the same as without frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from blockproto.client_side.upload_decision import Prepared, prepare
from blockproto.client_side.upload_files import outcome_of
from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.connection.connection import error_of
from blockproto.errors import BlockprotoError, Code, Refused, error_from_code
from blockproto.identity.realm import Realm
from blockproto.protocol.session import stream_error
from blockproto.results import UploadJob
from blockproto.store import FileOutcome, IfExists, StoredFile, UploadKey, WholeFile
from blockproto.transfer.engine import FileEngine
from blockproto.transfer.file_service import FileWriter
from blockproto.transfer.files_receiver import status_of
from blockproto.transfer.receiver import committed_message
from blockproto.wire import (
    HEADER_LENGTH,
    ZERO_ID,
    Committed,
    Message,
    Status,
    Stored,
    decode_head,
    decode_header,
    encode_frame,
)

CONTENT = b"hello"
ROOT = digest_of(CONTENT)
HELD = StoredFile(b"sourceid of file", b"file id of it...", ROOT, len(CONTENT), "up/a", ROOT)
OTHER = digest_of(b"something else")

STORED: dict[str, tuple[Status, StoredFile]] = {
    "stored": (Status.STORED, HELD),
    "stored, and not known whether as a whole": (Status.STORED, replace(HELD, b3sum=None)),
    "renamed": (Status.RENAMED, replace(HELD, stored_as="up/a (1)")),
    "there": (Status.THERE, replace(HELD, there=True)),
    "there under another name": (Status.THERE, replace(HELD, stored_as="up/b", there=True, b3sum=None)),
    "left": (Status.LEFT, replace(HELD, left=True, root=OTHER, filesize=77)),
    "left, and not to be told": (
        Status.LEFT, replace(HELD, left=True, file_id=ZERO_ID, root=bytes(32), filesize=0, b3sum=None),
    ),
}  # fmt: skip
REFUSED = [
    *(error_from_code(code, f"because of {code.name}", retryable=False) for code in Code),
    error_from_code(Code.BUSY, "", retryable=True, retry_after_ms=700),
    error_from_code(Code.QUOTA, "full", retryable=False, current=0),
    error_from_code(Code.SUPERSEDED, "x" * 3000, retryable=True, retry_after_ms=1, current=1 << 40),
    Refused("what only this side knows", code=Code.HOOK_REFUSED, retryable=True),
]


@pytest.fixture(params=["", "home/alice"])
def realm(request: pytest.FixtureRequest) -> Realm:
    return Realm(folder=SafeName.parse(request.param)) if request.param else Realm()


@pytest.fixture(params=[IfExists.KEEP, IfExists.SKIP])
def sent(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    (tmp_path / "a").write_bytes(CONTENT)
    one = prepare(UploadJob(tmp_path / "a", "up/a"), lambda *_: HELD.sourceid)
    return replace(one, facts=replace(one.facts, if_exists=request.param))


def over_the_wire(message: Message) -> Message:
    frame = encode_frame(1, message)
    decoded = decode_head(decode_header(frame), memoryview(frame)[HEADER_LENGTH:])
    assert decoded is not None
    return decoded


def told(sent: Prepared, outcome: FileOutcome, realm: Realm) -> tuple[Status, Committed | BlockprotoError]:
    """What the client hears of a file of which the store says ``outcome``."""
    facts = replace(sent.facts, filename=realm.inward(sent.facts.filename.text))
    whole = WholeFile(UploadKey(realm.principal, sent.sourceid), facts, ROOT, memoryview(CONTENT))
    status, item = status_of(whole, outcome, writer_of(realm))
    stored = over_the_wire(Stored(1, bytes([status]), () if item is None else (item,)))
    assert isinstance(stored, Stored)
    return status, outcome_of(sent, ROOT, Status(stored.statuses[0]), next(iter(stored.outcomes), None))


def writer_of(realm: Realm) -> FileWriter:
    return FileWriter(cast(FileEngine, None), realm)  # it only translates names here


def facts_of(error: BlockprotoError) -> tuple[object, ...]:
    return (
        type(error), error.code, str(error), error.retryable, error.retry_after_ms, error.current, error.blockno,
    )  # fmt: skip


def test_every_status_is_among_these() -> None:
    assert {status for status, _ in STORED.values()} | {Status.REFUSED} == set(Status)


@pytest.mark.clause("BP1-FIL-006", "BP1-FIL-013")
@pytest.mark.parametrize("what", STORED)
def test_the_client_hears_what_committed_would_have_said(what: str, sent: Prepared, realm: Realm) -> None:
    wanted, outcome = STORED[what]
    outcome = replace(outcome, stored_as=realm.inward(outcome.stored_as).text)
    status, heard = told(sent, outcome, realm)
    assert status == wanted
    committed = over_the_wire(committed_message(outcome, writer_of(realm)))
    assert isinstance(committed, Committed)
    if status == Status.STORED:  # has no item: what the client knows already
        committed = replace(committed, file_id=ZERO_ID, b3sum=None)
    if status == Status.LEFT and sent.facts.if_exists < IfExists.SKIP:
        assert isinstance(heard, BlockprotoError)
    else:
        assert heard == committed


@pytest.mark.parametrize("what", ["renamed", "there"])
@pytest.mark.parametrize("changes", [{"root": OTHER}, {"filesize": 6}])
def test_the_client_takes_no_other_file_for_its_own(
    what: str, changes: dict[str, object], sent: Prepared, realm: Realm
) -> None:
    _, heard = told(sent, replace(STORED[what][1], **changes), realm)  # type: ignore[arg-type]
    assert isinstance(heard, BlockprotoError)
    assert heard.code == Code.SOURCE_CHANGED


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: f"{error.code.name}-{error.retryable}")
def test_the_client_hears_what_error_would_have_said(
    error: BlockprotoError, sent: Prepared, realm: Realm
) -> None:
    status, heard = told(sent, error, realm)
    assert status == Status.REFUSED
    assert isinstance(heard, BlockprotoError)
    alone = over_the_wire(stream_error(error))
    assert facts_of(heard) == facts_of(error_of(alone))  # type: ignore[arg-type]
