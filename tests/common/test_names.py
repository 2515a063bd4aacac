from __future__ import annotations

import sys
import time
import unicodedata
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockproto.common import names
from blockproto.common.names import COMPONENT_LENGTH_MAX, FILENAME_LENGTH_MAX, RESERVED, SafeName, show_name
from blockproto.errors import Code, NameRefused

EVERY_CHARACTER = [chr(point) for point in range(sys.maxunicode + 1)]

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

TAKEN = [
    "a", "a b", " a ", "a.b", "...", "..a", "a..", "a/b/c", ".hidden",
    ".blockprot", ".blockprotocol", "blockproto", "12:30.log", "xt_DSCP.h", "CON", "a\\b", "*?\"<>|", "~", "-rf",
    "文件/照片 1.jpg", "é", "e\u0301", "a\u202eb", "\u2028", "\ufeff", "😀" * 60, "$(x)", "a\u200db", "x" * 255,
    "/".join(["x" * 255] * 4), ".\u200d.", "%2e%2e/x", "．．/x",
]  # fmt: skip

REFUSED = {
    "empty": [""],
    "encoding": ["\udcff", "a/\udc80b", "\ud800", "a\udfff", b"\xff\xfe".decode("utf-8", "surrogateescape")],
    "name-length": ["x" * 1025, "/".join(["x" * 255] * 4) + "/y", "é" * 513, "/" * 2000, "\0" * 1025],
    "control-character": ["\0", "a\0b", "\n", "a\rb", "\x1b[31m", "\x7f", "\x80", "\x9b31m", "a/\t", "../\0"],
    "absolute": ["/", "/etc/passwd", "//", "/.."],
    "empty-component": ["a//b", "a/", "a/b/", "é//b"],
    "dot-component": [".", "..", "../x", "a/..", "a/../b", "./a", "a/.", "a/./b", "é/../b", "../../../etc/passwd"],
    "component-length": ["x" * 256, "a/" + "x" * 256, "é" * 128, "a/" + "文" * 86, "." + "x" * 255],
    "reserved": [
        ".blockproto", ".blockproto/ledger", ".BLOCKPROTO", ".BlockProto/x", "．ｂｌｏｃｋｐｒｏｔｏ", ".bloc\u212aproto",
        ".block\u200dproto", ".block\u00adproto", "\u200b.blockproto", ".blockproto\ufe0f", "\ufeff.blockproto",
        ".blockproto.", ".blockproto ", ".blockproto. .", ".ⓑlockproto", ".\U0001d41blockproto", ".ＢＬＯＣＫproto/x",
        ".blockproto\u200b.", ".blockproto\U000e0041", ".blo\u034fckproto",
        "a/.blockproto", "a/.blockproto/b", "a/b/.BLOCKPROTO/ledger", "é/.blockproto. ", "a/.block\u200dproto/x",
    ],
}  # fmt: skip

PORTABLE_REFUSED = {
    "forbidden-character": [f"a{character}b" for character in '\\:*?"<>|'],
    "edge": ["a ", "a.", "a/b.", "a ./b", "..."],
    "device-name": [
        "con", "CON", "Con.txt", "a/nul", "AUX", "prn", "com1", "COM9.tar.gz", "lpt0", "LPT¹", "com³.x", "CONIN$",
        "conout$", "nul .txt", "com1  .x",
    ],
}  # fmt: skip

PORTABLE_TAKEN = [
    "a", "a b", "console", "com", "com10", "a.con", "lptx", "文件/照片 1.jpg", "é", "a..b", "😀", "nul-l", "a\u200db",
    ".gitignore", ".hidden/x", " a", "a/ b", ".a", "e\u0301", "\u212b", unicodedata.normalize("NFD", "가"), "\u2028",
    *(f"a{character}b" for character in BIDI), "COM", "com12", "x" * 255, "文" * 85, "~$a.docx", "[a]", "a;b", "a'b`c", "%a",
]  # fmt: skip


def rule_of(text: str, *, portable: bool = False) -> str:
    """The rule that ``text`` breaks, or an empty string."""
    try:
        SafeName.parse(text, portable=portable)
    except NameRefused as error:
        return error.rule
    return ""


@pytest.mark.parametrize("text", TAKEN)
def test_names_that_are_taken_as_they_are(text):
    name = SafeName.parse(text)
    assert name.text == text
    assert "/".join(name.components) == text
    assert name == SafeName(text)
    assert hash(name) == hash(SafeName(text))


@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in REFUSED.items() for text in texts]
)
def test_names_that_are_refused_with_their_rule(rule, text):
    for portable in (False, True):
        with pytest.raises(NameRefused) as caught:
            SafeName.parse(text, portable=portable)
        error = caught.value
        assert (error.rule, error.profile, error.code) == (rule, "wire", Code.NAME_REFUSED)
        assert rule in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    with pytest.raises(NameRefused):
        SafeName(text)


@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in PORTABLE_REFUSED.items() for text in texts]
)
def test_names_that_only_the_portable_profile_refuses(rule, text):
    assert rule_of(text) == ""
    with pytest.raises(NameRefused) as caught:
        SafeName.parse(text, portable=True)
    assert (caught.value.rule, caught.value.profile) == (rule, "portable")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", PORTABLE_TAKEN)
def test_names_that_are_portable(text):
    assert rule_of(text, portable=True) == ""


def test_a_safe_name_stays_safe():
    with pytest.raises(FrozenInstanceError):
        SafeName("a").text = "../a"  # type: ignore[misc]


def test_a_refusal_shows_the_name():
    with pytest.raises(
        NameRefused, match=r"the name 'a\\x1bb' holds the control character U\+001B"
    ) as caught:
        SafeName.parse("a\x1bb")
    assert "rule control-character, profile wire" in str(caught.value)
    with pytest.raises(NameRefused, match=r"'\\u200b.blockproto\\U000e0041'"):
        SafeName.parse("\u200b.blockproto\U000e0041")
    with pytest.raises(NameRefused, match=r"'x{120}…'"):
        SafeName.parse("x" * 5000)


def expected(text: str) -> bool:
    """The wire profile once more, slowly and otherwise: whether ``text`` is taken (reserved names apart)."""
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    if len(raw) > 1024 or any(unicodedata.category(character) == "Cc" for character in text):
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= 255 for part in raw.split(b"/"))


def test_every_code_point_as_a_name():
    refused = [character for character in EVERY_CHARACTER if rule_of(character)]
    assert refused == [character for character in EVERY_CHARACTER if not expected(character)]
    assert len(refused) == 65 + 2048 + 2  # Cc, surrogates, "." and "/"


def test_every_code_point_at_the_edges_of_the_reserved_name():
    """Nothing that normalises, folds or is ignored into the reserved name gets past."""
    for character in EVERY_CHARACTER:
        for text in (
            character + RESERVED[1:],
            RESERVED[:-1] + character,
            RESERVED + character,
            character + RESERVED,
        ):
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
            if folded == RESERVED:
                assert rule_of(text) == "reserved", ascii(text)


@given(st.text(max_size=40) | st.text(st.sampled_from("a./ é\0\udc80B\u200d"), max_size=12))
@example("a" * 255 + "/" + "b" * 256)
@example("/".join(["é" * 127] * 5))
def test_the_rules_said_twice_agree(text):
    assert (rule_of(text) in {"", "reserved"}) == expected(text)
    assert (rule_of(text) == "reserved") == (expected(text) and any(map(names.is_reserved, text.split("/"))))
    assert not expected(text) or names.is_hidden(text) == (rule_of(text) == "reserved")


@given(st.text(st.sampled_from("ab./ -~!\x7f\x1f" + "z" * 3), max_size=30), st.integers(0, 1100))
def test_the_quick_way_is_never_more_lenient(text, padding):
    padded = text + "x" * padding
    if names._PLAIN(padded) and len(padded) <= FILENAME_LENGTH_MAX:
        names._judge(padded)


def test_lengths_at_the_edge():
    for unit in ("x", "é", "文", "😀", "."):
        size = len(unit.encode())
        count = COMPONENT_LENGTH_MAX // size
        assert rule_of(unit * count) == ""
        assert rule_of(unit * (count + 1)) == "component-length"
    longest = "/".join(["x" * 255, "x" * 255, "x" * 255, "x" * 255])
    assert len(longest) == FILENAME_LENGTH_MAX - 1
    assert rule_of(longest) == ""
    assert rule_of("x" + longest) == "component-length"
    exact = "/".join(["é" * 127] * 4) + "/xyz"
    assert len(exact.encode()) == FILENAME_LENGTH_MAX - 1
    assert rule_of(exact + "z") == ""
    assert rule_of(exact + "zz") == "name-length"
    assert rule_of("a/" + "/".join(["x" * 255] * 3) + "/" + "x" * 254) == ""
    assert rule_of("aa/" + "/".join(["x" * 255] * 3) + "/" + "x" * 254) == "name-length"


@given(st.text(max_size=30))
def test_portable_is_narrower(text):
    if rule_of(text, portable=True) == "":
        assert rule_of(text) == ""


@given(st.text("abIiSsßſKkéÉ\u212a", max_size=6).filter(bool))
def test_folded_is_the_same_for_names_that_differ_in_case(text):
    for twin in (text.upper(), text.lower(), unicodedata.normalize("NFD", text), text.swapcase()):
        if twin.casefold() == text.casefold():
            assert SafeName(twin).folded == SafeName(text).folded
    assert SafeName("A/b").folded != SafeName("A/c").folded


def test_shown_names_never_steer_a_terminal():
    for character in EVERY_CHARACTER:
        shown = show_name(f"a{character}b")
        steering = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in BIDI
        assert (character in shown) is not (steering or character in "\ufeff\ufff9\ufffa\ufffb"), ascii(
            character
        )


@given(st.binary(max_size=60))
def test_shown_names_can_be_printed(raw):
    shown = show_name(raw.decode("utf-8", "surrogateescape"))
    shown.encode("utf-8")
    assert "\x1b" not in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("中文", "中文"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("\x9b", "\\x9b"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("\udc7f\udc80\udd00", "\\udc7f\\x80\\udd00"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\n\u2028", "\\x0a\\u2028"),
        ("", ""),
    ],
)
def test_how_names_are_shown(name, shown):
    assert show_name(name) == shown


def test_a_plain_name_is_judged_quickly():
    if sys.gettrace() is not None:
        pytest.skip("a tracer (coverage, a debugger) takes the time that is measured")

    def once() -> float:
        begun = time.thread_time()
        for _ in range(1000):
            SafeName.parse("folder/sub/photo 123.jpg")
        return (time.thread_time() - begun) / 1000

    assert min(once() for _ in range(5)) <= 10e-6
