"""Routing: who answers a connection that begins so, however the network cuts it."""

from __future__ import annotations

import json
from pathlib import Path

import fuzz_detection
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockproto.dialects import FIRST_LENGTH_MAX, Dialect, Recognition
from blockproto.dialects.registry import DIALECTS, dialects_of
from blockproto.dialects.sourceid import Sourceid
from blockproto.dialects.struct82 import Struct82
from blockproto.serving.detect_rules import ENOUGH_MOST, Detection, detect_from_bytes, enough
from blockproto.wire import PREFACE

ROOT = Path(__file__).resolve().parents[2]
OPENINGS = json.loads((ROOT / "spec" / "vectors" / "dialects.json").read_text(encoding="utf-8"))["openings"]
BOTH: tuple[Dialect, ...] = (Sourceid(), Struct82())
LINE = b"Content-Length=5;filename=a;sourceid=\r\n"


def _spoken(first: bytes, dialects: tuple[Dialect, ...] = BOTH) -> str:
    answer = detect_from_bytes(first, dialects)
    if isinstance(answer, Detection):
        return "none" if answer is Detection.NEITHER else answer.value
    return answer.name


@pytest.mark.clause("BP1-DIA-002", "BP1-DIA-004")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in OPENINGS])
def test_an_opening_is_of_the_protocol_that_its_vector_says(row: dict[str, str]) -> None:
    first = bytes.fromhex(row["bytes"])
    assert _spoken(first[:FIRST_LENGTH_MAX]) == row["spoken"]
    assert _spoken(first[:FIRST_LENGTH_MAX], BOTH[::-1]) == row["spoken"]


@pytest.mark.clause("BP1-DIA-003")
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in OPENINGS])
def test_a_byte_more_never_changes_an_answer(row: dict[str, str]) -> None:
    first = bytes.fromhex(row["bytes"])[:FIRST_LENGTH_MAX]
    said = [_spoken(first[:length]) for length in range(1, len(first) + 1)]
    decided = [answer for answer in said if answer != "more"]
    assert len(set(decided)) <= 1
    assert said == ["more"] * (len(said) - len(decided)) + decided


@pytest.mark.clause("BP1-DIA-001")
def test_only_what_is_enabled_is_answered() -> None:
    assert _spoken(LINE, ()) == "none"
    assert _spoken(LINE[:3], ()) == "none"
    assert _spoken(LINE, (Struct82(),)) in {"none", "more"}
    assert _spoken(LINE, (Sourceid(),)) == "sourceid"
    assert detect_from_bytes(b"\xff", ()) is Detection.NATIVE
    assert detect_from_bytes(b"\x16", ()) is Detection.MORE
    assert detect_from_bytes(b"\x16\x03", ()) is Detection.TLS
    assert detect_from_bytes(b"\x16\x02", ()) is Detection.NEITHER


@pytest.mark.clause("BP1-DIA-004")
def test_padding_tells_a_header_from_a_line_that_begins_alike() -> None:
    header = b"filename=1.txt".ljust(70, b"\0") + bytes.fromhex("0500000001000000 00000000".replace(" ", ""))
    assert _spoken(header) == "struct82"
    assert _spoken(header[:14] + b";Content-Length=5;sourceid=\n") == "sourceid"


@pytest.mark.clause("BP1-DIA-003")
def test_with_84_bytes_everybody_knows() -> None:
    for filler in (b"a", b"\0", b"=", b";", b"\xe4"):
        for dialect in BOTH:
            assert dialect.recognise(filler * FIRST_LENGTH_MAX) is not Recognition.MORE


@pytest.mark.fuzz
@pytest.mark.clause("BP1-DIA-002", "BP1-DIA-003")
def test_a_slice_of_the_routing_campaign() -> None:
    seen = fuzz_detection.campaign(10_000, 0)
    assert set(seen) == {"native", "tls", "sourceid", "struct82", "neither"}


def test_the_campaign_notices_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_detection, "detect_from_bytes", lambda first, dialects: Detection.NATIVE)
    with pytest.raises(AssertionError, match="opening"):
        fuzz_detection.campaign(10, 0)


def test_dialects_are_picked_by_name_once_each() -> None:
    assert [dialect.name for dialect in dialects_of(["sourceid", "struct82", "sourceid"])] == [
        "sourceid",
        "struct82",
    ]
    assert {"sourceid", "struct82"} <= set(DIALECTS)
    with pytest.raises(ValueError, match="there is no dialect 'x'"):
        dialects_of(["x"])


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(min_size=1, max_size=600), st.binary(max_size=500).map(lambda rest: PREFACE[:5] + rest)
    )
)
@example(PREFACE)
@example(LINE)
@example(b"\x16\x03\x01\x02\x00" + bytes(600))
def test_fewer_bytes_than_enough_are_answered_by_nobody(said: bytes) -> None:
    """Whoever waits for so many bytes misses no answer; only a preface is judged when it could be whole (BP1-HEL-003)."""
    for length in range(1, len(said) + 1):
        wanted = enough(said[:length], BOTH)
        assert wanted <= max(length, ENOUGH_MOST)
        for short in {length, min(wanted - 1, len(said))} if wanted > length else ():
            spoken = detect_from_bytes(said[: min(short, FIRST_LENGTH_MAX)], BOTH)
            assert spoken in {Detection.MORE, Detection.TLS} or (
                said[0] == PREFACE[0] and short < len(PREFACE)
            )


def test_how_much_is_enough() -> None:
    assert [enough(first, BOTH) for first in (b"", PREFACE[:1], PREFACE[:7], PREFACE)] == [1, 8, 8, 8]
    assert [enough(first, BOTH) for first in (b"\x16", b"\x16\x03", b"\x16\x03\x01\x00\x20")] == [2, 5, 37]
    assert enough(b"\x16\x03\x01\x40\x00", BOTH) == ENOUGH_MOST
    assert enough(b"\xff\x00", BOTH) <= 2
    assert enough(b"GET /", ()) <= 5
