"""The spec as a test: its clauses, tables, examples and links hold together, and agree with code and vectors."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blockproto import wire
from blockproto.errors import ERRORS

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "spec"
CHAPTERS_OF = {
    "protocol.md": [
        "FRM",
        "HEL",
        "STR",
        "CRD",
        "BLK",
        "RES",
        "DIG",
        "COM",
        "FIL",
        "FET",
        "LST",
        "ERR",
        "END",
        "NAM",
        "EXT",
        "LIM",
    ],
    "dialects.md": ["DIA", "SID", "S82"],
    "identity.md": ["TLS", "AUT", "PRN"],
}
"""The documents that hold clauses, and their chapters in order."""
CHAPTERS = [chapter for chapters in CHAPTERS_OF.values() for chapter in chapters]
TEXT = "\n".join((SPEC / name).read_text(encoding="utf-8") for name in CHAPTERS_OF)
PROFILES = {"CORE", "CONNECTION", "IDENTITY", "DELIVERY", "DIALECTS"}

CLAUSE = re.compile(
    r"^- \*\*\[BP1-(?P<chapter>[A-Z0-9]{3})-(?P<number>\d{3}) (?P<level>MUST|SHOULD|MAY) "
    r"(?P<role>both|client|server|sender|receiver) · (?P<profile>[A-Z]+) · (?P<proof>wire|fault|inspect)\]\*\* "
    r"(?P<sentence>\S.*)$",
    re.M,
)
CITED = re.compile(r"(?:BP1-)?\b([A-Z][A-Z0-9]{2})-(\d{3})\b")


def clauses() -> list[dict[str, str]]:
    return [match.groupdict() for match in CLAUSE.finditer(TEXT)]


def ids() -> list[str]:
    return [f"{clause['chapter']}-{clause['number']}" for clause in clauses()]


def in_spec(*patterns: str) -> list[Path]:
    """The spec's files, without the packages that its examples install."""
    found = [path for pattern in patterns for path in SPEC.rglob(pattern)]
    return sorted(path for path in found if "node_modules" not in path.parts)


# ---- clauses


def test_every_tag_is_well_formed() -> None:
    assert len(re.findall(r"\*\*\[", TEXT)) == len(clauses()) > 150


def test_ids_are_unique_and_every_chapter_begins_at_one() -> None:
    assert [id_ for id_, times in Counter(ids()).items() if times > 1] == []
    for chapter in CHAPTERS:
        numbers = [int(clause["number"]) for clause in clauses() if clause["chapter"] == chapter]
        assert numbers[:1] == [1], chapter
    assert {clause["chapter"] for clause in clauses()} == set(CHAPTERS)


def test_a_clause_stands_in_the_chapter_it_names() -> None:
    chapter = ""
    for line in TEXT.splitlines():
        if heading := re.match(r"## \d+\. (\S+)", line):
            chapter = heading[1].rstrip(":")
        if clause := CLAUSE.match(line):
            assert clause["chapter"] == chapter, line


def test_every_clause_has_a_profile_and_ends_as_a_sentence() -> None:
    for clause in clauses():
        assert clause["profile"] in PROFILES
        assert clause["sentence"].endswith((".", ".)")), clause


def test_a_clause_that_is_cited_exists() -> None:
    known = set(ids())
    for path in in_spec("*.md", "*.py", "*.json"):
        text = path.read_text(encoding="utf-8")
        cited = {f"{chapter}-{number}" for chapter, number in CITED.findall(text) if chapter in CHAPTERS}
        assert cited <= known, (path.name, cited - known)


@pytest.mark.parametrize("folder", ["blockproto", "tests"])
def test_the_code_cites_clauses_that_exist(folder: str) -> None:
    known = {f"BP1-{id_}" for id_ in ids()} | {f"BP1-{chapter}" for chapter in CHAPTERS}
    for path in sorted((ROOT / folder).rglob("*.py")):
        cited = set(re.findall(r"\bBP1-[A-Z][A-Z0-9]{2}(?:-\d{3})?\b", path.read_text(encoding="utf-8")))
        assert cited <= known, (path.name, cited - known)


# ---- tables


def table(heading: str, *, after: str = "") -> list[list[str]]:
    """The cells of the table whose header row begins with ``heading``, from the text ``after`` on."""
    start = TEXT.index(f"\n| {heading} |", TEXT.index(after))
    rows = TEXT[start + 1 :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_the_error_table_is_that_of_the_code() -> None:
    expected = [
        [
            str(int(code)),
            code.name,
            row.scope.name.lower(),
            "yes" if row.retryable else "no",
            row.meaning,
            row.advice,
        ]
        for code, row in ERRORS.items()
    ]
    assert table("code", after="### The error table") == expected


def test_the_transition_table_is_that_of_the_vectors() -> None:
    rows = json.loads((SPEC / "vectors" / "transitions.json").read_text(encoding="utf-8"))["vectors"]
    expected = [
        [row["speaker"], ", ".join(row["messages"]), ", ".join(row["in"]), row["next"]] for row in rows
    ]
    assert table("speaker") == expected


def test_the_tlv_table_is_that_of_the_code() -> None:
    known = {
        name.removeprefix("TLV_"): tlv.number for name, tlv in vars(wire).items() if name.startswith("TLV_")
    }
    rows = table("type", after="### TLVs")
    assert {name: int(number) for number, name, *_ in rows if name != "RECIPIENTS"} == known
    assert [int(number) for number, *_ in rows] == sorted(int(number) for number, *_ in rows)


@pytest.mark.clause("BP1-EXT-008")
def test_the_tlvs_of_a_message_are_those_of_the_tlv_table() -> None:
    where: dict[str, set[str]] = {}
    for _, name, _, messages in table("type", after="### TLVs"):
        for message in filter(None, messages.split(", ")):
            where.setdefault(message, set()).add(name)
    for title, body in sections():
        message = {
            "File item": "file item",
            "Receipt item": "receipt item",
            "Stored item": "stored item",
        }.get(title.split(" (")[0], title.split(" (")[0])
        said = re.search(r"TLVs: (.*)", body)
        named = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", said[1])) - {"FETCH"} if said else set()
        assert named == where.get(message, set()), title


def sections() -> list[tuple[str, str]]:
    """The layouts: (title, text up to the first clause or heading)."""
    found = re.split(r"^#### (.+)$", TEXT, flags=re.M)[1:]
    return [
        (title, re.split(r"^(?:#|- \*\*\[)", body, maxsplit=1, flags=re.M)[0])
        for title, body in zip(found[::2], found[1::2], strict=True)
    ]


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The vectors' own encoder."""
    monkeypatch.syspath_prepend(str(SPEC / "vectors"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import encode

    yield encode
    sys.modules.pop("encode", None)


@pytest.mark.clause("BP1-EXT-007")
def test_the_layouts_are_those_of_the_encoder(encoder: Any) -> None:
    sizes = {"str": "string", "digest?": "32", "u64?": "u64", "u32?": "u32", "strings": "list of string"}
    items = {
        "File item (RESULT kind 1)": 1,
        "Upload item (RESULT kind 2)": 2,
        "Receipt item (RESULT kind 3)": 3,
        "Principal item (RESULT kind 0)": 0,
    }
    others = {
        "Group of LEFT_OUT": encoder.GROUP_LAYOUT,
        "Record of FILES": encoder.RECORD_LAYOUT,
        "Stored item (STORED, status 1 to 3)": encoder.OUTCOME_LAYOUTS[1],
        "Refusal item (STORED, status 4)": encoder.OUTCOME_LAYOUTS[4],
    }
    seen = set()
    for title, body in sections():
        rows = [re.split(r" *\| *", row)[1:3] for row in body.splitlines() if row.startswith("| ")][1:]
        if title in others:
            layout = others[title]
        elif title in items:
            layout = encoder.ITEM_LAYOUTS[items[title]]
        else:
            message, number = re.fullmatch(r"([A-Z]+) \(0x([0-9A-F]{2})\)", title).groups()  # type: ignore[union-attr]
            assert encoder.TYPES[message] == wire.Type[message] == int(number, 16)
            layout = encoder.LAYOUTS[message]
            seen.add(message)
        fields = [part.split(":") for part in layout.split()]
        assert rows == [[name, sizes.get(kind, kind)] for name, kind in fields], title
    assert seen == set(encoder.LAYOUTS)


@pytest.mark.clause("BP1-EXT-008")
def test_the_flags_are_those_of_the_encoder(encoder: Any) -> None:
    for title, body in sections():
        said = re.search(r"Flags: (.*?)(?: TLVs:.*)?$", body, re.M)
        bits = (
            {name: int(bit, 16) for name, bit in re.findall(r"\b([A-Z0-9]+) 0x(\d{4})", said[1])}
            if said
            else {}
        )
        assert bits == encoder.FLAGS.get(title.split(" (")[0], {}), title


# ---- examples and links


def vectors(name: str, part: str = "vectors") -> dict[str, dict[str, Any]]:
    document = json.loads((SPEC / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return {row["name"]: row for row in document[part]}


def test_every_fence_is_an_example_that_exists() -> None:
    kinds = set(re.findall(r"^```(\w+) \S+$", TEXT, re.M))
    assert kinds == {"frame", "conversation", "openings", "transcript"}
    assert len(re.findall(r"^```", TEXT, re.M)) == 2 * len(re.findall(r"^```\w+ \S+$", TEXT, re.M))


def fences(kind: str) -> Any:
    """Every example of a kind: its name and what stands in it."""
    found = re.findall(rf"^```{kind} (\S+)\n(.*?)^```", TEXT, re.M | re.S)
    return pytest.mark.parametrize(("name", "lines"), [pytest.param(*fence, id=fence[0]) for fence in found])


@fences("frame")
def test_the_bytes_of_an_example_are_those_of_its_vector(name: str, lines: str) -> None:
    frames = vectors("frames") | vectors("identity")
    conversations = vectors("conversations") | vectors("identity", "conversations")
    conversation, _, number = name.rpartition("/")
    row = frames.get(name) or conversations[conversation]["steps"][int(number) - 1]
    shown = bytes.fromhex("".join(line.split("#")[0] for line in lines.splitlines()))
    payload = b"".join(
        bytes.fromhex(part)
        if isinstance(part, str)
        else bytes((part["pattern_from"] + i) % 251 for i in range(16))
        for part in row["payload"]
    )
    assert shown == bytes.fromhex(row["head"]) + payload[:16]


@fences("conversation")
def test_the_steps_of_an_example_are_those_of_its_vector(name: str, lines: str) -> None:
    steps = (vectors("conversations") | vectors("identity", "conversations"))[name]["steps"]
    for step, line in zip(steps, lines.splitlines(), strict=True):
        assert re.search(rf"\b{step['from']} .*\b{step['message']}\b", line, re.I)
        assert line.endswith(step["says"])


def test_a_chapter_begins_with_an_example() -> None:
    for chapter in CHAPTERS_OF["protocol.md"][:-1]:
        body = TEXT[TEXT.index(f". {chapter}: ") :]
        rest = [body.find(mark) for mark in ("\n#### ", "- **[BP1")]
        assert body.index("```") < min(at for at in rest if at >= 0), chapter


def documents() -> list[Path]:
    return sorted([*in_spec("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_spec_names_no_path_outside_the_project() -> None:
    for path in in_spec("*.md", "*.py"):
        assert not re.search(r"\.\./shared|/work/", path.read_text(encoding="utf-8")), path.name


def test_every_snippet_of_the_guide_is_code_of_the_example_word_for_word() -> None:
    example = SPEC / "examples" / "node"
    files = [path for folder in ("src", "bin", "test") for path in (example / folder).glob("*.js")]
    code = [" ".join(path.read_text(encoding="utf-8").split()) for path in files]
    snippets = re.findall(
        r"^```js\n(.*?)^```$", (SPEC / "implementing.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert len(snippets) >= 7
    for snippet in snippets:
        assert any(" ".join(snippet.split()) in text for text in code), snippet
