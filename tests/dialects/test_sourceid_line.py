"""The line of the dialect sourceid: the vectors, and properties over many lines."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto.dialects import FIRST_LENGTH_MAX, Recognition
from blockproto.dialects.sourceid_line import (
    FILESIZE_MAX,
    LINE_LENGTH_MAX,
    POSITION_MAX,
    SOURCEID_LENGTH_MAX,
    end_of_line,
    error_line,
    parse,
    recognise,
    reply,
)
from blockproto.errors import BadFacts, BlockprotoError, Code, MalformedFrame, NameRefused

ROOT = Path(__file__).resolve().parents[2]
LINES = json.loads((ROOT / "spec" / "vectors" / "dialects.json").read_text(encoding="utf-8"))["lines"]

PLAIN = st.text(string.ascii_letters + string.digits + "-_()~ é照", min_size=1, max_size=30).filter(
    lambda text: text.strip() == text
)
NAMES = st.lists(PLAIN, min_size=1, max_size=3).map(";".join)
IDS = st.text("".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != ";"), max_size=64)
KEYS = st.sampled_from(["Content-Length", "content-length", "CONTENT-LENGTH", "Content-length"])
BLANKS = st.sampled_from(["", " ", "\t", "  "])


def _understood(raw: bytes) -> dict[str, Any]:
    end = end_of_line(raw)
    assert end is not None
    try:
        request = parse(raw[: end[0]])
    except BlockprotoError as error:
        return {"filename": None, "filesize": None, "sourceid": None, "refused": error.code.name}
    return {
        "filename": request.filename.text,
        "filesize": str(request.filesize),
        "sourceid": request.sourceid,
        "refused": None,
    }


@pytest.mark.clause("BP1-SID-003", "BP1-SID-005", "BP1-SID-006", "BP1-SID-007")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in LINES])
def test_a_line_means_what_its_vector_says(row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["bytes"])
    assert {"name": row["name"], "bytes": row["bytes"]} | _understood(raw) == row


@given(st.data())
def test_the_fields_come_back_whatever_stands_around_them(data: st.DataObject) -> None:
    filesize = data.draw(st.integers(0, FILESIZE_MAX))
    name, sourceid, blank = data.draw(NAMES), data.draw(IDS), data.draw(BLANKS)
    filename = data.draw(st.sampled_from(["filename", "filenname", "FileName", "FILENNAME"]))
    fields = [f"{data.draw(KEYS)}{blank}={blank}{filesize}", f"{blank}{filename}={blank}{name}{blank}"]
    extra = data.draw(st.sampled_from([[], ["v=2"], ["app=mine", "lang=zh"]]))
    line = ";".join([*extra, *fields, f"sourceid{blank}={sourceid}{blank}", *extra])
    request = parse(line.encode())
    assert (request.filename.text, request.filesize, request.sourceid) == (name, filesize, sourceid)
    assert not request.durable


@given(NAMES, st.sampled_from(["utf-8", "gb18030"]))
def test_a_name_survives_in_both_encodings(name: str, encoding: str) -> None:
    raw = name.encode(encoding)
    request = parse(b"Content-Length=1;filename=" + raw + b";sourceid=")
    try:
        expected = raw.decode()
    except UnicodeDecodeError:
        expected = name
    assert request.filename.text == expected


@given(st.binary(max_size=200))
def test_any_line_is_understood_or_refused_by_an_error_of_the_table(line: bytes) -> None:
    for raw in (line, b"Content-Length=1;filename=a;sourceid=" + line, b"Content-Length=1;filename=" + line):
        error = _refusal(raw)
        if error is None:
            request = parse(raw)
            assert "/" not in request.filename.text
            assert 0 <= request.filesize <= FILESIZE_MAX
            assert len(request.sourceid) <= SOURCEID_LENGTH_MAX
            continue
        said = error_line(error)
        assert said.startswith(b"error=%d;name=%s;text=" % (error.code, error.code.name.encode()))
        assert said.endswith(b"\r\n")
        assert said.count(b";") == 2
        assert said.count(b"\n") == said.count(b"\r") == 1


def _refusal(line: bytes) -> BlockprotoError | None:
    try:
        parse(line)
    except (MalformedFrame, BadFacts, NameRefused) as error:
        return error
    return None


@pytest.mark.clause("BP1-SID-003")
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"%", b"/r/n", b"%\n", b"/r/n\r\n"])
def test_every_end_is_found_and_not_before_it_is_there(end: bytes) -> None:
    line = b"Content-Length=5;filename=/r/n%;sourceid=77"
    assert parse(line + end[:-1] if end == b"/r/n" else line).filename.text == "n%"
    for cut in range(len(line + end)):
        found = end_of_line((line + end)[:cut])
        assert found is None or cut >= len(line) + 1, cut
    found = end_of_line(line + end)
    assert found is not None
    assert found[1] == len(line + end)
    assert parse((line + end)[: found[0]]).sourceid == "77"


@pytest.mark.clause("BP1-SID-003")
def test_a_carriage_return_alone_ends_nothing() -> None:
    assert end_of_line(b"Content-Length=5;filename=a;sourceid=7\r") is None


@pytest.mark.clause("BP1-SID-003")
def test_what_comes_behind_the_line_belongs_to_the_file() -> None:
    received = b"Content-Length=5;filename=a;sourceid=7\r\nab\ncd"
    end = end_of_line(received)
    assert end is not None
    assert received[end[1] :] == b"ab\ncd"


@pytest.mark.clause("BP1-SID-018")
@pytest.mark.parametrize(
    ("tail", "durable"),
    [
        (";durable=", True),
        ("; Durable =", True),
        (";v=1;durable=;w=2", True),
        (";durable=1", False),
        ("", False),
    ],
)
def test_who_wants_to_hear_what_is_durable_says_so(tail: str, durable: bool) -> None:
    request = parse(f"Content-Length=5;filename=a;sourceid=7{tail}".encode())
    assert (request.sourceid, request.durable) == ("7", durable)


def test_a_name_cannot_ask_for_what_is_durable() -> None:
    assert not parse(b"Content-Length=5;filename=a;durable=;sourceid=7").durable


@pytest.mark.clause("BP1-SID-008", "BP1-SID-009", "BP1-SID-018")
def test_the_answer_is_one_line_that_every_client_can_read() -> None:
    assert reply("77", 12) == b"sourceid=77;position=12\r\n"
    assert reply("77", 1 << 40) == b"sourceid=77;position=2147483647\r\n"
    assert reply("77", 1 << 40, durable=True) == b"sourceid=77;position=2147483647;durable=1099511627776\r\n"
    assert POSITION_MAX == 2**31 - 1


@pytest.mark.clause("BP1-SID-015")
def test_an_error_shows_nothing_that_a_terminal_would_obey() -> None:
    said = error_line(MalformedFrame("a;b\x1b[2J\r\nposition=5"))
    assert said == b"error=1;name=MALFORMED;text=a,b\\x1b[2J\\x0d\\x0aposition=5\r\n"
    assert len(error_line(MalformedFrame("x" * 5000))) < LINE_LENGTH_MAX


@pytest.mark.clause("BP1-SID-001", "BP1-DIA-003")
@given(st.binary(max_size=120), st.booleans())
def test_recognition_only_becomes_surer(tail: bytes, known: bool) -> None:
    raw = (b"Content-Length=1;filename=" if known else b"") + tail
    before = Recognition.MORE
    for length in range(1, len(raw) + 1):
        now = recognise(raw[:length])
        assert before in (Recognition.MORE, now)
        before = now
        if length >= FIRST_LENGTH_MAX:
            assert now is not Recognition.MORE


def test_codes_of_lines_are_those_of_the_table() -> None:
    assert error_line(NameRefused("x")).startswith(b"error=%d;" % Code.NAME_REFUSED)
