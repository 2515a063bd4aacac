"""Write the vectors and the examples of the spec, or say which of them differ.

    python spec/vectors/make_vectors.py            write *.json here and the fenced examples of ../*.md
    python spec/vectors/make_vectors.py --check    change nothing; exit 1 if something differs

It needs Python and blake3 and imports nothing of the package: see encode.py. The output depends on nothing but these
sources.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dialect_struct82
import dialects
import tables
from conversations import Conversation, Step, conversations
from encode import (
    ITEM_LAYOUTS,
    LAYOUTS,
    OUTCOME_LAYOUTS,
    PREFACE,
    RECORD_LAYOUT,
    TLVS,
    Field,
    Frame,
    join,
    pattern,
)
from frames import Vector, vectors
from identity import identity_conversations, identity_transitions, identity_vectors
from refusals import Refusal
from refusals_frames import refusals_of_frames
from refusals_streams import refusals_of_streams

HERE = Path(__file__).resolve().parent
CORE = HERE.parent / "protocol.md"
SHORT = 64
LINE_BYTES = 16
ERROR_ROW = re.compile(r"^\| (\d+) \| ([A-Z0-9_]+) \| (block|stream|connection) \|", re.M)
FENCE = re.compile(r"^```(frame|conversation|transcript|openings) (\S+)\n(.*?)^```$", re.M | re.S)


def as_parts(raw: bytes) -> list[Any]:
    """Bytes as hex strings, with long runs of the pattern named instead of written out."""
    parts: list[Any] = []
    at = start = 0
    while at < len(raw):
        length = _pattern_length(raw, at)
        if length > SHORT:
            if at > start:
                parts.append(raw[start:at].hex())
            parts.append({"pattern_from": raw[at], "length": length})
            at = start = at + length
        else:
            at += 1
    if start < len(raw):
        parts.append(raw[start:].hex())
    return parts


def _pattern_length(raw: bytes, at: int) -> int:
    """How many bytes from ``at`` on follow i mod 251; most places are settled by the first few."""
    if raw[at] > 250 or raw[at : at + 4] != pattern(raw[at] + 4)[raw[at] :][: len(raw) - at]:
        return 0
    whole = pattern(raw[at] + len(raw) - at)[raw[at] :]
    if raw[at:] == whole:
        return len(raw) - at
    return next(index for index, (one, other) in enumerate(zip(raw[at:], whole, strict=True)) if one != other)


def as_json(value: Any, kind: str) -> Any:
    """A value as JSON: bytes as hex, 64-bit numbers as decimal strings, unknown as null."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.hex() if kind != "str" else {"hex": value.hex()}
    if kind.rstrip("?") in {"u64", "i64"}:
        return str(value)
    if isinstance(value, list | tuple):
        return [as_json(item, "") for item in value]
    return value


def as_values(
    layout: str, values: Mapping[str, Any], tlvs: Mapping[str, Any], end: bool = True
) -> dict[str, Any]:
    """The values of a message or item by name; lower-case TLV names beside them."""
    shown: dict[str, Any] = {}
    for part in layout.split():
        name, kind = part.split(":")
        if kind == "items":
            item_layout = ITEM_LAYOUTS[values["kind"]]
            shown[name] = [as_values(item_layout, item, item.get("tlvs", {})) for item in values[name]]
        elif kind == "records":
            shown[name] = [
                as_values(RECORD_LAYOUT, {"name_length": len(last.encode()), **record}, {})
                for record, last in zip(values[name], values["names"], strict=True)
            ]
        elif kind == "outcomes":
            statuses = [status for status in values["statuses"] if status]
            shown[name] = [
                as_values(OUTCOME_LAYOUTS[status], item, item.get("tlvs", {}))
                for status, item in zip(statuses, values[name], strict=True)
            ]
        elif kind != "digest?" or end:
            shown[name] = as_json(values.get(name), kind)
    known = {name: as_json(value, TLVS[name][1]) for name, value in tlvs.items() if name in TLVS}
    if known:
        shown["tlvs"] = known
    return shown


def frame_json(frame: Frame) -> dict[str, Any]:
    """What every vector says of a frame."""
    shown: dict[str, Any] = {"message": frame.message, "stream": frame.stream, "flags": frame.flags}
    if frame.message in LAYOUTS:
        shown["values"] = as_values(LAYOUTS[frame.message], frame.values, frame.tlvs, "END" in frame.flags)
    shown["head"] = join(frame.fields).hex()
    shown["payload"] = as_parts(frame.payload)
    return shown


def field_json(fields: list[Field]) -> list[dict[str, Any]]:
    """Header and head field by field, with the offset of each."""
    rows, offset = [], 0
    for field in fields:
        rows.append({"offset": offset, "name": field.name, "hex": field.raw.hex(), "meaning": field.meaning})
        offset += len(field.raw)
    return rows


def vector_json(vector: Vector) -> dict[str, Any]:
    """One row of frames.json."""
    row = {
        "name": vector.name,
        "explain": vector.explain,
        "clauses": vector.clauses,
        "canonical": vector.canonical,
    }
    return row | frame_json(vector.frame) | {"fields": field_json(vector.frame.fields)}


def refusal_json(refusal: Refusal, codes: Mapping[str, int]) -> dict[str, Any]:
    """One row of refusals.json."""
    offset, length, why = refusal.wrong
    return {
        "name": refusal.name,
        "clause": refusal.clause,
        "layer": refusal.layer,
        "judge": refusal.judge,
        "limits": refusal.limits,
        "before": [as_parts(raw) for raw in refusal.before],
        "bytes": as_parts(refusal.raw),
        "wrong": {"offset": offset, "length": length, "why": why},
        "expect": {"code": codes[refusal.code], "name": refusal.code, "scope": refusal.scope},
    }


def step_json(step: Step) -> dict[str, Any]:
    """One step of a conversation."""
    row: dict[str, Any] = {"connection": step.connection, "from": step.speaker, "says": step.says}
    if step.frame is None:
        return row | {"message": "PREFACE", "bytes": PREFACE.hex()}
    return row | frame_json(step.frame) | {"chosen": list(step.chosen)}


def conversation_json(conversation: Conversation) -> dict[str, Any]:
    """One row of conversations.json."""
    return {
        "name": conversation.name,
        "explain": conversation.explain,
        "clauses": conversation.clauses,
        "greeted": conversation.greeted,
        "after": list(conversation.after),
        "condition": conversation.condition,
        "steps": [step_json(step) for step in conversation.steps],
    }


def transcripts() -> list[dialects.Transcript]:
    """Those of both dialects."""
    return [*dialects.transcripts(), *dialect_struct82.struct82_transcripts()]


def openings() -> list[dict[str, Any]]:
    """First bytes of both dialects, and of what is neither."""
    return [*dialects.openings(), *dialect_struct82.openings()]


def transcript_json(transcript: dialects.Transcript) -> dict[str, Any]:
    """One transcript of dialects.json."""
    steps = []
    for say in transcript.steps:
        row: dict[str, Any] = {"connection": say.connection, "from": say.speaker, "says": say.says}
        row |= {"closes": True} if isinstance(say.raw, str) else {"bytes": as_parts(say.raw)}
        steps.append(row | ({"fields": field_json(say.fields)} if say.fields else {}))
    return {
        "name": transcript.name,
        "dialect": transcript.dialect,
        "explain": transcript.explain,
        "clauses": transcript.clauses,
        "chosen": transcript.chosen,
        "stored": [
            {"filename": name, "content": as_parts(content)} for name, content in transcript.stored.items()
        ],
        "steps": steps,
    }


def documents() -> dict[str, dict[str, Any]]:
    """Every file by its name."""
    codes = {name: int(number) for number, name, _ in ERROR_ROW.findall(CORE.read_text(encoding="utf-8"))}
    refused = [*refusals_of_frames(), *refusals_of_streams()]
    return {
        "frames.json": {"kind": "frames", "vectors": [vector_json(vector) for vector in vectors()]},
        "refusals.json": {
            "kind": "refusals",
            "vectors": [refusal_json(refusal, codes) for refusal in refused],
        },
        "conversations.json": {
            "kind": "conversations",
            "vectors": [conversation_json(it) for it in conversations()],
        },
        "transitions.json": {"kind": "transitions", "vectors": tables.transitions()},
        "digests.json": {"kind": "digests", "vectors": tables.digests(), "checks": tables.checks()},
        "names.json": {"kind": "names", "vectors": tables.names()},
        "dialects.json": {
            "kind": "dialects",
            "vectors": [transcript_json(it) for it in transcripts()],
            "openings": openings(),
            "lines": dialects.lines(),
            "headers": dialect_struct82.headers(),
        },
        "identity.json": {
            "kind": "identity",
            "vectors": [vector_json(vector) for vector in identity_vectors()],
            "conversations": [conversation_json(it) for it in identity_conversations()],
            "transitions": identity_transitions(),
        },
    }


def example_of(frame: Frame) -> str:
    """A frame as the spec shows it: bytes on the left, what they are on the right."""
    rows = [(field.raw, f"{field.name}: {field.meaning}") for field in frame.fields]
    if frame.payload:
        shown = frame.payload[:LINE_BYTES]
        more = len(frame.payload) - len(shown)
        rows.append((shown, f"payload{f', and {more:,} bytes more' if more else ''}"))
    lines = []
    for raw, meaning in rows:
        for at in range(0, len(raw), LINE_BYTES):
            lines.append(f"{raw[at : at + LINE_BYTES].hex(' '):<47}  # {meaning if at == 0 else '…'}")
    return "\n".join(lines) + "\n"


def summary_of(conversation: Conversation) -> str:
    """A conversation as the spec shows it: one line for each step."""
    several = any(step.connection > 1 for step in conversation.steps)
    lines = []
    for step in conversation.steps:
        name, stream = ("preface", "") if step.frame is None else (step.frame.message, str(step.frame.stream))
        where = f"connection {step.connection}  " if several else ""
        lines.append(f"{where}{step.speaker:<6}  {stream:>2}  {name:<9}  {step.says}")
    return "\n".join(lines) + "\n"


def words_of(raw: bytes) -> str:
    """Bytes of a dialect as the spec shows them: text as text, anything else as hex, long ones cut."""
    shown = raw[:LINE_BYTES] if len(raw) > 2 * SHORT else raw
    more = f" and {len(raw) - len(shown):,} bytes more" if len(shown) < len(raw) else ""
    text = shown.decode("ascii", errors="replace").replace("\r", "\\r").replace("\n", "\\n")
    return (text if text.isascii() and text.isprintable() else shown.hex(" ")) + more


def header_words(raw: bytes) -> str:
    """As ``words_of``; of a header of struct82 its two names, and what is behind them."""
    if len(raw) <= 70 or b"\0" not in raw:
        return words_of(raw)
    names = [
        name.rstrip(b"\0").decode() + (" 00…" if b"\0" in name else "") for name in (raw[:50], raw[50:70])
    ]
    return f"{names[0]} | {names[1]} | {raw[70:].hex(' ')}"


def field_lines(field: Field) -> list[str]:
    """The lines that show some bytes and what they are; of many zeros the first line is enough."""
    shown = field.raw if any(field.raw) else field.raw[:LINE_BYTES]
    more = f", {len(field.raw)} bytes of it" if len(shown) < len(field.raw) else ""
    return [
        f"{shown[at : at + LINE_BYTES].hex(' '):<47}  # {f'{field.name}: {field.meaning}{more}' if at == 0 else '…'}"
        for at in range(0, len(shown), LINE_BYTES)
    ]


def transcript_of(transcript: dialects.Transcript) -> str:
    """A transcript as the spec shows it: one line for each step, or for each field of one."""
    several = any(say.connection > 1 for say in transcript.steps)
    lines = []
    for say in transcript.steps:
        where = f"connection {say.connection}  " if several else ""
        if say.fields:
            lines.append(f"{where}{say.speaker:<6}  # {say.says}")
            lines += ["    " + line for part in say.fields for line in field_lines(part)]
            continue
        words = f"({say.raw})" if isinstance(say.raw, str) else words_of(say.raw)
        lines.append(f"{where}{say.speaker:<6}  {words:<55}  # {say.says}")
    return "\n".join(lines) + "\n"


def openings_of(rows: list[dict[str, Any]]) -> str:
    """First bytes as the spec shows them."""
    lines = [f"{row['spoken']:<9} {header_words(bytes.fromhex(row['bytes']))}" for row in rows]
    return "\n".join(lines) + "\n"


def examples() -> dict[tuple[str, str], str]:
    """What can stand in a fence of the spec, by kind and name."""
    shown = {("frame", vector.name): example_of(vector.frame) for vector in [*vectors(), *identity_vectors()]}
    for conversation in [*conversations(), *identity_conversations()]:
        shown["conversation", conversation.name] = summary_of(conversation)
        for number, step in enumerate(conversation.steps, 1):
            if step.frame is not None:
                shown["frame", f"{conversation.name}/{number}"] = example_of(step.frame)
    shown["openings", "all"] = openings_of(openings())
    for transcript in transcripts():
        shown["transcript", transcript.name] = transcript_of(transcript)
    return shown


def spec_texts() -> dict[Path, str]:
    """The documents of the spec with their examples filled in."""
    shown = examples()

    def fill(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        return f"```{kind} {name}\n{shown[kind, name]}```"

    paths = sorted(HERE.parent.glob("*.md"))
    return {path: FENCE.sub(fill, path.read_text(encoding="utf-8")) for path in paths}


def as_text(document: Mapping[str, Any]) -> str:
    """JSON with one vector a line, so that differences can be read."""
    rows = {key: value for key, value in document.items() if isinstance(value, list)}
    head = {"$schema": "schema.json", "protocol": "BP1"} | {
        k: v for k, v in document.items() if k not in rows
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, value in rows.items():
        items = ",\n".join(json.dumps(row, ensure_ascii=False) for row in value)
        lines.append(f"{json.dumps(key)}: [\n{items}\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def outputs() -> dict[Path, str]:
    """Every file this program owns (a part of), and what should stand in it."""
    return {HERE / name: as_text(document) for name, document in documents().items()} | spec_texts()


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    differing = [
        path
        for path, text in outputs().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in differing:
        print(f"{'differs' if arguments else 'written'}: {path.relative_to(HERE.parent.parent)}")
        if not arguments:
            path.write_text(outputs()[path], encoding="utf-8")
    return 1 if arguments and differing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
