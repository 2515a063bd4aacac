"""The bytes of the dialect ``struct82``: vectors, random headers in every form, and beginnings that are none."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of
from blockproto.dialects import FIRST_LENGTH_MAX, Recognition
from blockproto.dialects.registry import DIALECTS, dialects_of
from blockproto.dialects.struct82 import Struct82
from blockproto.dialects.struct82_wire import (
    FILESIZE_MAX,
    FORMS,
    QUESTION,
    Form,
    Header,
    Reply,
    read_bitmap,
    read_stored_as,
    recognise,
    write_bitmap,
    write_stored_as,
)
from blockproto.serving.detect_rules import Detection, detect_from_bytes

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "dialects.json"
DOCUMENT = json.loads(VECTORS.read_text(encoding="utf-8"))
NAMED = dict(zip(["packed-little", "packed-big", "aligned-little", "aligned-big"], FORMS, strict=True))

TEXT = st.binary(min_size=1, max_size=50).map(lambda raw: bytes(byte % 95 + 32 for byte in raw))
FILESIZES = st.one_of(
    st.integers(1, FILESIZE_MAX),
    st.integers(1, 70_000),
    st.integers(1, FILESIZE_MAX // BLOCK_LENGTH).map(lambda blocks: blocks * BLOCK_LENGTH),
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    filesize = draw(FILESIZES)
    blocknum = draw(st.sampled_from([blocknum_of(filesize), filesize // BLOCK_LENGTH + 1]))
    blockno = draw(st.one_of(st.integers(-1, blocknum), st.sampled_from([-1, 0, blocknum])))
    return Header(draw(TEXT), draw(TEXT)[:20], filesize, blocknum, blockno)


def random_headers(count: int, seed: int) -> Iterator[Header]:
    """Headers whose sizes are spread over all orders of magnitude."""
    rng = random.Random(seed)
    for _ in range(count):
        filesize = min(FILESIZE_MAX, max(1, int(2 ** rng.uniform(0, 31))))
        if rng.random() < 0.2:
            filesize = max(1, filesize // BLOCK_LENGTH) * BLOCK_LENGTH
        blocknum = rng.choice([blocknum_of(filesize), filesize // BLOCK_LENGTH + 1])
        blockno = rng.choice([QUESTION, 0, blocknum, rng.randint(0, blocknum)])
        name, kind = rng.randbytes(rng.randint(1, 50)), rng.randbytes(rng.randint(0, 20))
        yield Header(name.replace(b"\0", b"0"), kind.replace(b"\0", b"0"), filesize, blocknum, blockno)


def ambiguous_or_wrong(count: int, seed: int) -> tuple[int, int]:
    """How many of so many random headers, in four forms each, fit more than one form, and are taken for another."""
    rng = random.Random(seed)
    ambiguous = wrong = 0
    for header in random_headers(count, seed):
        for form in FORMS:
            raw = form.write(header) + rng.randbytes(2)
            ambiguous += sum(other.read(raw) is not None for other in FORMS) > 1
            wrong += recognise(raw) is not form or form.read(raw) != header
    return ambiguous, wrong


# ---- forms ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-001", "BP1-S82-003")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in DOCUMENT["headers"]])
def test_a_header_is_what_its_vector_says(row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["bytes"])
    form = recognise(raw)
    if row["form"] is None:
        assert form is None
        assert Struct82().recognise(raw) is Recognition.NO
        return
    assert form is NAMED[row["form"]]
    header = form.read(raw)
    assert header is not None
    values = row["values"]
    names = bytes.fromhex(values.pop("filename")), bytes.fromhex(values.pop("filetype"))
    assert header == Header(*names, **values)
    assert form.write(header) == raw


@given(headers(), st.sampled_from(FORMS), st.binary(min_size=2, max_size=2))
def test_a_header_fits_its_own_form_and_no_other(header: Header, form: Form, behind: bytes) -> None:
    raw = form.write(header) + behind
    assert [other for other in FORMS if other.read(raw) is not None] == [form]
    assert form.read(raw) == header


@given(headers(), st.sampled_from(FORMS[2:]), st.binary(min_size=2, max_size=2))
def test_an_aligned_header_may_have_anything_in_its_gap(header: Header, form: Form, gap: bytes) -> None:
    raw = form.write(header)
    raw = raw[:70] + gap + raw[72:]
    assert form.read(raw) == header
    assert recognise(raw) in (form, *FORMS[:2])


@pytest.mark.clause("BP1-S82-003")
def test_none_of_many_random_headers_is_ambiguous_or_wrong() -> None:
    """A slice; ``python tests/dialects/test_struct82_wire.py`` runs 300,000 headers, 1,200,000 with their forms."""
    assert ambiguous_or_wrong(1_500, seed=1) == (0, 0)


@given(st.binary(min_size=84, max_size=84))
def test_random_bytes_are_no_header(raw: bytes) -> None:
    form = recognise(raw)
    assert form is None or form.read(raw) is not None


# ---- first bytes ----------------------------------------------------------------------------------------------


@given(headers(), st.sampled_from(FORMS), st.binary(max_size=200))
def test_recognition_only_becomes_surer(header: Header, form: Form, behind: bytes) -> None:
    header = Header(header.filename.replace(b"=", b"-"), header.filetype, *_numbers(header))
    raw = form.write(header) + behind.ljust(2, b"x")
    answers = [Struct82().recognise(raw[:length]) for length in range(1, len(raw) + 1)]
    assert answers[: form.header_length - 1] == [Recognition.MORE] * (form.header_length - 1)
    assert set(answers[form.header_length - 1 :]) == {Recognition.YES}


def _numbers(header: Header) -> tuple[int, int, int]:
    return header.filesize, header.blocknum, header.blockno


@given(st.binary(min_size=1, max_size=FIRST_LENGTH_MAX))
def test_no_never_becomes_yes_and_the_last_byte_tells(raw: bytes) -> None:
    answers = [Struct82().recognise(raw[:length]) for length in range(1, len(raw) + 1)]
    first_no = answers.index(Recognition.NO) if Recognition.NO in answers else len(answers)
    assert set(answers[first_no:]) <= {Recognition.NO}
    assert len(raw) < FIRST_LENGTH_MAX or answers[-1] is not Recognition.MORE


@pytest.mark.clause("BP1-DIA-002", "BP1-DIA-004")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in DOCUMENT["openings"]])
def test_with_both_dialects_every_opening_is_of_whom_its_vector_says(row: dict[str, Any]) -> None:
    spoken = detect_from_bytes(bytes.fromhex(row["bytes"]), dialects_of(["sourceid", "struct82"]))
    names = {Detection.NEITHER: "none"}
    name = names.get(spoken, spoken.value) if isinstance(spoken, Detection) else spoken.name
    assert name == row["spoken"]


@given(st.data())
def test_no_bytes_are_of_both_dialects(data: st.DataObject) -> None:
    header = data.draw(headers())
    raw = data.draw(st.sampled_from(FORMS)).write(header) + bytes(2)
    key = data.draw(st.sampled_from([b"filename=", b"sourceid=1;", b"Content-Length=5;"]))
    raw = data.draw(st.sampled_from([raw, key + raw[len(key) :]]))
    answers = [dialect.recognise(raw) for dialect in dialects_of(["sourceid", "struct82"])]
    assert answers.count(Recognition.YES) <= 1


def test_the_operator_names_the_numbering() -> None:
    assert [DIALECTS[name]().name for name in DIALECTS] == ["sourceid", "struct82", "struct82", "struct82"]


# ---- replies --------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 99),
    st.integers(-1, 2048),
    st.integers(0, 2048),
    st.booleans(),
    st.binary(min_size=32, max_size=32),
)
def test_a_reply_has_48_bytes_in_every_form(
    code: int, blockno: int, held: int, complete: bool, digest: bytes
) -> None:
    reply = Reply(code, blockno, held, complete, digest)
    for form in FORMS:
        raw = form.write_reply(reply)
        assert len(raw) == form.reply_length == 48
        assert form.read_reply(raw) == reply
    assert FORMS[0].write_reply(reply) == FORMS[2].write_reply(reply)


@given(st.integers(1, 2048), st.data())
def test_a_bitmap_has_a_bit_for_every_blockno_from_0_to_blocknum(blocknum: int, data: st.DataObject) -> None:
    blocknos = data.draw(st.sets(st.integers(0, blocknum)))
    bitmap = write_bitmap(blocknum, blocknos)
    assert len(bitmap) == blocknum // 8 + 1
    assert read_bitmap(bitmap) == blocknos


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_a_name_comes_back_from_its_256_bytes(name: str) -> None:
    raw = write_stored_as(name)
    assert len(raw) == 256
    assert read_stored_as(raw) == name


if __name__ == "__main__":
    print("ambiguous, wrong:", ambiguous_or_wrong(300_000, seed=2))
