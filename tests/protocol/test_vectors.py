"""The vectors of spec/vectors against this implementation, and against the program that makes them.

Each frame is decoded and encoded again to equal bytes; each refusal is refused with the code and scope it names; each
conversation is said by two sessions to each other. What takes a store is said to a server over a memory stream.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from blake3 import blake3
from processes import Server as Running

from blockproto import wire
from blockproto.common.blocks import BLOCK_LENGTH, block_span, blocknum_of, root_of
from blockproto.common.file_table import FileTable
from blockproto.common.names import SafeName
from blockproto.errors import NameRefused, RemoteProtocolError, Scope
from blockproto.protocol.events import Greeted, Limits, Payload, Received, Rejected, Side
from blockproto.protocol.framing import FrameReader
from blockproto.protocol.session import Session
from blockproto.protocol.streams import TABLE, Kind, Role, State
from blockproto.serving.server import Server
from blockproto.testing.memory_store import MemoryStore

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
LEAST = Limits(
    head_length_max=4_096,
    piece_length_max=65_536,
    streams_max=256,
    connection_allowance=1 << 20,
    stream_allowance=256 << 10,
    undurable_max=1 << 20,
)
PATTERN = bytes(range(251))


def rows(name: str) -> list[dict[str, Any]]:
    document = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    assert document["protocol"] == "BP1"
    assert document["kind"] == name
    return document["vectors"]


def identity(part: str) -> list[dict[str, Any]]:
    """What profile IDENTITY adds: ``vectors`` (frames), ``conversations`` or ``transitions``."""
    return json.loads((VECTORS / "identity.json").read_text(encoding="utf-8"))[part]


def frames() -> list[dict[str, Any]]:
    """The frames of all profiles."""
    return rows("frames") + identity("vectors")


def each(of: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in of])


def named(name: str) -> Any:
    return each(rows(name))


def joined(parts: list[Any]) -> bytes:
    return b"".join(bytes.fromhex(part) if isinstance(part, str) else patterned(**part) for part in parts)


def patterned(pattern_from: int, length: int) -> bytes:
    return (PATTERN * ((pattern_from + length) // 251 + 1))[pattern_from : pattern_from + length]


# ---- the files themselves


def test_the_vectors_are_what_their_program_makes() -> None:
    ran = subprocess.run(
        [sys.executable, "-B", VECTORS / "make_vectors.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


def test_the_program_imports_nothing_of_the_package() -> None:
    allowed = {path.stem for path in VECTORS.glob("*.py")} | sys.stdlib_module_names | {"blake3"}
    for path in VECTORS.glob("*.py"):
        imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.M)
        assert set(imported) <= allowed, path.name


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.name)
def test_every_file_follows_the_schema(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    schema = json.loads((VECTORS / "schema.json").read_text(encoding="utf-8"))
    if path.name != "schema.json":
        assert faults(document, schema, schema, path.stem) == []


def faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> list[str]:
    """What of ``value`` does not follow ``schema``: the few words of JSON Schema that schema.json uses."""
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "oneOf" in schema:
        tried = [faults(value, option, root, at) for option in schema["oneOf"]]
        return (
            []
            if tried.count([]) == 1
            else [f"{at}: follows {tried.count([])} of {len(tried)}: {min(tried, key=len)}"]
        )
    found: list[str] = []
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    kinds = schema.get("type", list(types))
    if type(value) not in {types[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)}:
        return [f"{at}: {value!r} is no {kinds}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if isinstance(value, str) and re.search(schema.get("pattern", ""), value) is None:
        found.append(f"{at}: {value!r} does not match {schema['pattern']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += faults(item, schema.get("items", {}), root, f"{at}[{index}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{at}: has no {name}" for name in schema.get("required", ()) if name not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{at}: {name} is unknown" for name in value if name not in known]
        for name, inner in known.items():
            if name in value:
                found += faults(value[name], inner, root, f"{at}.{name}")
    return found


# ---- frames

RENAMED = {"MTIME": "mtime_ns", "files": "table"}
CLASSES = {cls.__name__.upper(): cls for cls in wire.MESSAGES.values()}
FLAGS_AS_FIELDS = {"END": None}


def expected(row: Mapping[str, Any]) -> wire.Message:
    """The message that a vector describes."""
    values = dict(row["values"])
    tlvs = values.pop("tlvs", {})
    decoded = {name: value_of(row["message"], name, value) for name, value in values.items()}
    if row["message"] == "FILES":
        decoded["table"] = FileTable(decoded.pop("files"), decoded.pop("names"))
    if row["message"] == "STORED":
        classes = [classes_of[status] for status in values["statuses"] if status]
        decoded["outcomes"] = tuple(
            cls(**item) for cls, item in zip(classes, decoded["outcomes"], strict=True)
        )
    for name, value in tlvs.items():
        decoded[RENAMED.get(name, name.lower())] = tlv_of(name, value)
    for flag in row["flags"]:
        if flag not in FLAGS_AS_FIELDS:
            decoded[flag.lower()] = True
    return CLASSES[row["message"]](**decoded)


def value_of(message: str, name: str, value: Any) -> Any:
    if name in {"held", "prefixes"}:
        return tuple((first, second) for first, second in value)
    if name == "digests":
        return tuple((blockno, bytes.fromhex(digest)) for blockno, digest in value)
    if name == "items":
        return tuple(item_of(item) for item in value)
    if name == "files":
        return tuple(tuple(scalar_of(part, record[part]) for part in RECORD_FIELDS) for record in value)
    if name == "statuses":
        return bytes(value)
    if name == "outcomes":
        return tuple(values_of(item) for item in value)
    if isinstance(value, list):
        return tuple(value)
    return scalar_of(name, value)


def scalar_of(name: str, value: Any) -> Any:
    if isinstance(value, str) and name in WIDE:
        return int(value)
    if isinstance(value, str) and name in RAW:
        return bytes.fromhex(value)
    return value


WIDE = {
    "filesize", "position", "attempt", "incarnation", "expires_ms", "allowance", "received", "first", "length", "current",
    "connection_allowance", "stream_allowance", "undurable_max", "features", "mtime_ns",
    "server_time_ms", "quota", "used",
}  # fmt: skip
RECORD_FIELDS = (
    "sourceid", "digest", "filesize", "mtime_ns", "mode", "folder", "filetype", "name_length",
)  # fmt: skip
classes_of = {1: wire.StoredItem, 2: wire.StoredItem, 3: wire.StoredItem, 4: wire.RefusalItem}
RAW = {"sourceid", "file_id", "digest", "root", "version", "id", "opaque", "principal", "device"}


def values_of(item: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: scalar_of(name, value) for name, value in item.items() if name != "tlvs"}
    for name, value in item.get("tlvs", {}).items():
        values[name.lower()] = tlv_of(name, value)
    return values


def item_of(item: Mapping[str, Any]) -> wire.Item:
    values = values_of(item)
    if "principal" in item:
        return wire.PrincipalItem(**values)
    cls = wire.UploadItem if "held_count" in item else wire.FileItem if "kind" in item else wire.ReceiptItem
    return cls(**values)


def tlv_of(name: str, value: Any) -> Any:
    if name == "IDS":
        return tuple(bytes.fromhex(sourceid) for sourceid in value)
    if name == "LEFT_OUT":
        return tuple(wire.LeftOut(group["reason"], group["count"], tuple(group["names"])) for group in value)
    return int(value) if name in {"MTIME", "MODE", "PRIORITY", "IF_EXISTS"} else bytes.fromhex(value)


def decoded(row: Mapping[str, Any]) -> wire.Message | None:
    head = bytes.fromhex(row["head"])
    header = wire.decode_header(head)
    assert header.head_length == len(head) - wire.HEADER_LENGTH
    assert header.payload_length == len(joined(row["payload"]))
    assert header.stream == row["stream"]
    assert wire.check_frame(head[:16], head[16:], header.check)
    return wire.decode_head(header, head[16:])


@each(frames())
def test_a_frame_means_what_its_vector_says(row: dict[str, Any]) -> None:
    assert decoded(row) == (None if row["message"] == "UNKNOWN" else expected(row))


@each(frames())
def test_a_message_is_encoded_as_its_vector_says(row: dict[str, Any]) -> None:
    if row["canonical"]:
        encoded = wire.encode_frame(row["stream"], expected(row), len(joined(row["payload"])))
        assert encoded.hex() == row["head"]
    else:
        assert row["name"].startswith("grease/")


@pytest.mark.clause("BP1-EXT-007")
@each(frames())
def test_the_fields_of_a_vector_are_its_bytes(row: dict[str, Any]) -> None:
    at = 0
    for field in row["fields"]:
        assert field["offset"] == at
        at += len(field["hex"]) // 2
    assert "".join(field["hex"] for field in row["fields"]) == row["head"]


def test_every_message_has_a_vector() -> None:
    assert {row["message"] for row in frames()} == {*CLASSES, "UNKNOWN"}


def test_every_tlv_and_flag_has_a_vector() -> None:
    used = {
        (row["message"], name) for row in rows("frames") for name in row.get("values", {}).get("tlvs", ())
    }
    flags = {(row["message"], flag) for row in rows("frames") for flag in row["flags"]}
    assert {("BLOCK", "IF_EXISTS"), ("OPEN", "FILE_ID"), ("LIST", "IDS"), ("CREDIT", "PRIORITY")} <= used
    assert {("HAVE", "MORE"), ("LIST", "B3SUM"), ("CANCEL", "DISCARD"), ("PING", "ANSWER")} <= flags


# ---- refusals


def receive(session: Session, raw: bytes) -> list[Any]:
    """Everything that ``raw`` makes of a session; a connection's refusal stands last, as the exception."""
    events: list[Any] = []
    while raw:
        view = session.receive_buffer()
        count = min(len(view), len(raw))
        view[:count] = raw[:count]
        session.bytes_received(count)
        raw = raw[count:]
        try:
            while (event := session.next_event()) is not None:
                if isinstance(event, Payload):
                    session.consumed(event.stream, len(event.view))
                events.append(event)
        except RemoteProtocolError as error:
            return [*events, error]
    return events


def greeted_session(side: Side, limits: Limits | None = None) -> Session:
    session = Session(side, limits)
    session.greeting()
    hello = next(row for row in rows("frames") if row["name"] == "hello/usual")
    [greeted] = receive(session, wire.PREFACE + bytes.fromhex(hello["head"]))
    assert isinstance(greeted, Greeted)
    return session


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["name"]) for row in rows("refusals") if row["layer"] != "file"]
)
def test_a_session_refuses(row: dict[str, Any]) -> None:
    side = Side(row["judge"])
    limits = LEAST if row["limits"] == "least" else None
    if row["layer"] == "greeting":
        session = Session(side, limits)
        session.greeting()
    else:
        session = greeted_session(side, limits)
    for before in row["before"]:
        events = receive(session, joined(before))
        assert all(isinstance(event, Received | Payload) for event in events), events
    events = receive(session, joined(row["bytes"]))
    assert refusal_of(events[-1] if events else None) == (row["expect"]["code"], row["expect"]["scope"])
    assert all(isinstance(event, Greeted) for event in events[:-1])


def refusal_of(event: Any) -> tuple[int, str] | None:
    if isinstance(event, RemoteProtocolError):
        return event.code, "connection"
    return (event.error.code, "stream") if isinstance(event, Rejected) else None


@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in rows("refusals")])
def test_the_wrong_bytes_are_there(row: dict[str, Any]) -> None:
    wrong = row["wrong"]
    assert 0 <= wrong["offset"] < wrong["offset"] + wrong["length"] <= len(joined(row["bytes"]))


# ---- conversations

CONVERSATIONS = {row["name"]: row for row in rows("conversations")}


class Ends:
    """A client's and a server's session of one connection."""

    def __init__(self, greeted: bool) -> None:
        limits = Limits(features=wire.FEATURE_FILES | wire.FEATURE_WANTED)
        self.of = {side: Session(Side(side), limits) for side in ("client", "server")}
        for side, session in self.of.items():
            greeting = session.greeting()
            if greeted:
                self.hear(side, greeting)

    def hear(self, speaker: str, raw: bytes) -> list[Any]:
        """Let the other end receive what ``speaker`` said."""
        return receive(self.of["server" if speaker == "client" else "client"], raw)


@each(rows("conversations") + identity("conversations"))
def test_two_sessions_hold_a_conversation(row: dict[str, Any]) -> None:
    connections: dict[int, Ends] = {}
    for step in row["steps"]:
        ends = connections.setdefault(step["connection"], Ends(row["greeted"]))
        if step["message"] == "PREFACE":
            assert ends.hear(step["from"], bytes.fromhex(step["bytes"])) == []
            continue
        payload = joined(step["payload"])
        message = decoded(step)
        assert message == expected(step)
        speaker = ends.of[step["from"]]
        if step["message"] != "HELLO":
            if speaker.state(step["stream"]) is State.CLOSED and step["stream"] == speaker._own_next:
                speaker.open_stream()
            if is_late(speaker, step):
                assert ends.hear(step["from"], bytes.fromhex(step["head"]) + payload) == []
                continue
            assert speaker.send(step["stream"], message, len(payload)).hex() == step["head"]
        events = ends.hear(step["from"], bytes.fromhex(step["head"]) + payload)
        assert all(isinstance(event, Greeted | Received | Payload) for event in events), events


def is_late(speaker: Session, step: Mapping[str, Any]) -> bool:
    """Whether the stream was closed by what the speaker cannot have heard yet."""
    return step["stream"] != 0 and not speaker.is_open(step["stream"])


# ---- said to a server


class Peer:
    """A client that says bytes and hears messages; it knows frames and nothing of streams.

    Attributes:
        heard: (stream, message) that nobody has asked for yet; a block comes as (position, bytes, digest), however it
            was cut; ACK and CREDIT are left out.
        acknowledged: the greatest position of an ACK.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.heard: list[tuple[int, Any]] = []
        self.acknowledged = 0
        self._reader = FrameReader()
        self._reader.head_length_max = wire.HEAD_LENGTH_MAX
        self._reader.piece_length_max = wire.PIECE_LENGTH_MAX
        self._greeted = False
        self._blocks: dict[int, tuple[int, bytes]] = {}
        self._frame: tuple[int, Any, int] | None = None
        self._payload = b""

    async def say(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def hear(self, stream: int) -> Any:
        """The next message on ``stream``."""
        while True:
            for index, (where, message) in enumerate(self.heard):
                if where == stream:
                    del self.heard[index]
                    return message
            await self.listen()

    def committed(self, stream: int) -> bool:
        """Whether COMMITTED has come, which acknowledges everything."""
        return any(where == stream and isinstance(message, wire.Committed) for where, message in self.heard)

    async def listen(self) -> None:
        """Receive once."""
        view = self._reader.receive_buffer()
        raw = bytes(await self.stream.receive_some(len(view)))
        assert raw, "the server closed"
        view[: len(raw)] = raw
        self._reader.bytes_received(len(raw))
        while self._next():
            pass

    def _next(self) -> bool:
        """Take one step with what has come; whether there may be more."""
        if not self._greeted:
            self._greeted = bool(self._reader.skip_prefix(wire.PREFACE))
            return self._greeted
        if self._frame is None:
            frame = self._reader.next_frame()
            if frame is None:
                return False
            header, head = frame
            self._frame = header.stream, wire.decode_head(header, head), header.payload_length
            self._payload = b""
        stream, message, length = self._frame
        if len(self._payload) < length:
            view = self._reader.take_payload(length - len(self._payload))
            if view is None:
                return False
            self._payload += bytes(view)
        if len(self._payload) == length:
            self._frame = None
            self._take(stream, message)
        return True

    def _take(self, stream: int, message: Any) -> None:
        if isinstance(message, wire.Ack):
            self.acknowledged = max(self.acknowledged, message.position)
        elif isinstance(message, wire.Block | wire.Piece):
            position, before = self._blocks.pop(stream, (message.position, b""))
            if message.digest is None:
                self._blocks[stream] = position, before + self._payload
            else:
                self.heard.append((stream, (position, before + self._payload, message.digest)))
        elif message is not None and not isinstance(message, wire.Credit):
            self.heard.append((stream, message))

    async def ping(self) -> bool:
        """Whether the connection is still good."""
        await self.say(wire.encode_frame(0, wire.Ping(b"stillyou", 0)))
        answer = await self.hear(0)
        return isinstance(answer, wire.Ping) and answer.answer and answer.opaque == b"stillyou"


class Served:
    """A server on an empty store in memory, and how to reach it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._streams: list[trio.abc.Stream] = []
        self._serving: list[trio.Event] = []
        self.server = Server(MemoryStore())

    async def connect(self) -> Peer:
        ours, theirs = trio.testing.memory_stream_pair()
        self._streams.append(ours)
        self._serving.append(trio.Event())
        self._nursery.start_soon(self._serve, theirs, self._serving[-1])
        return Peer(ours)

    async def _serve(self, stream: trio.abc.Stream, ended: trio.Event) -> None:
        await self.server.serve_stream(stream)
        ended.set()

    async def rest(self) -> None:
        """End every connection, and wait until what was received is durable."""
        for stream in self._streams:
            await stream.aclose()
        for ended in self._serving:
            await ended.wait()
        await self.server.engine.committer.drain()

    async def greeted(self) -> Peer:
        """A connection over which both have greeted."""
        peer = await self.connect()
        await peer.say(
            Session(Side.CLIENT, Limits(features=wire.FEATURE_FILES | wire.FEATURE_WANTED)).greeting()
        )
        assert isinstance(await peer.hear(0), wire.Hello)
        return peer


@asynccontextmanager
async def serving(timeout_s: float = 10) -> AsyncIterator[Served]:
    with trio.fail_after(timeout_s):
        async with trio.open_nursery() as nursery:
            served = Served(nursery)
            await nursery.start(served.server.run)
            yield served
            await served.rest()
            nursery.cancel_scope.cancel()


NOT_YET: set[str] = set()
"""Refusals that the server does not make yet; they are expected to fail, so that this set cannot go stale."""


def file_refusals() -> list[Any]:
    found = [row for row in rows("refusals") if row["layer"] == "file"]
    failing = [pytest.mark.xfail(raises=BaseExceptionGroup, reason="not refused yet", strict=True)]
    return [
        pytest.param(row, id=row["name"], marks=failing if row["name"] in NOT_YET else ()) for row in found
    ]


@pytest.mark.parametrize("row", file_refusals())
async def test_a_server_refuses(row: dict[str, Any]) -> None:
    async with serving(1 if row["name"] in NOT_YET else 10) as served:
        peer = await served.greeted()
        for before in row["before"]:
            await peer.say(joined(before))
            header = wire.decode_header(joined(before))
            if header.type == wire.Type.BLOCK and header.flags & wire.COMMIT:
                assert isinstance(await peer.hear(header.stream), wire.Committed)
        await peer.say(joined(row["bytes"]))
        stream = int.from_bytes(joined(row["bytes"])[8:12], "big")
        answer = await peer.hear(stream)
        while not isinstance(answer, wire.Error):
            answer = await peer.hear(stream)
        assert (answer.code, Scope(answer.scope).name.lower()) == (
            row["expect"]["code"],
            row["expect"]["scope"],
        )
        assert await peer.ping()


async def hold(served: Served, row: Mapping[str, Any]) -> None:
    """Say the client's part of a conversation and compare what the server says."""
    peers: dict[int, Peer] = {}
    for step in row["steps"]:
        if step["connection"] not in peers:
            peers[step["connection"]] = await (served.greeted() if row["greeted"] else served.connect())
        peer = peers[step["connection"]]
        if step["from"] == "client":
            raw = step["bytes"] if step["message"] == "PREFACE" else step["head"]
            await peer.say(bytes.fromhex(raw) + joined(step.get("payload", [])))
        elif step["message"] == "ACK":
            while peer.acknowledged < int(step["values"]["position"]) and not peer.committed(step["stream"]):
                await peer.listen()
        elif step["message"] == "BLOCK":
            message = decoded(step)
            assert isinstance(message, wire.Block)
            heard = await peer.hear(step["stream"])
            assert heard == (message.position, joined(step["payload"]), message.digest)
        elif step["message"] != "PREFACE":
            heard = await peer.hear(step["stream"])
            assert comparable(heard, step) == comparable(decoded(step), step)


def comparable(message: Any, step: Mapping[str, Any]) -> dict[str, Any]:
    """The values that every server says alike."""
    chosen = {RENAMED.get(name, name.lower()) for name in step["chosen"]} | {"text", "b3sum"}
    if isinstance(message, wire.Hello):
        return {"version": message.version_highest}
    assert type(message).__name__.upper() == step["message"], message
    if isinstance(message, wire.Stored):
        outcomes = [replace(item, text="") if "text" in step["chosen"] else item for item in message.outcomes]  # type: ignore[call-arg]
        message = replace(message, outcomes=tuple(outcomes))
    return {field.name: getattr(message, field.name) for field in fields(message) if field.name not in chosen}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["name"]) for row in rows("conversations") if row["condition"] is None]
)
async def test_a_server_holds_its_part(row: dict[str, Any]) -> None:
    async with serving() as served:
        for name in row["after"]:
            await hold(served, CONVERSATIONS[name])
            await served.rest()
        await hold(served, row)


# ---- the other files


def test_the_transitions_are_those_of_the_table() -> None:
    kinds = {
        "BLOCK with COMMIT": Kind.BLOCK_COMMIT, "PIECE with COMMIT": Kind.PIECE_COMMIT, "ERROR (block)": Kind.ERROR_BLOCK,
        "ERROR (differ)": Kind.ERROR_DIFFER, "ERROR (stream)": Kind.ERROR_STREAM, "FILES with LAST": Kind.FILES_LAST,
        "STORED with LAST": Kind.STORED_LAST, "FILES with WANTED": Kind.FILES_WANTED,
    } | {kind.name: kind for kind in Kind}  # fmt: skip
    table = {}
    for row in rows("transitions") + identity("transitions"):
        speakers = list(Role) if row["speaker"] == "both" else [Role[row["speaker"].upper()]]
        for state in row["in"]:
            following = State[(state if row["next"] == "same" else row["next"]).upper()]
            table.update(
                {
                    (State[state.upper()], who, kinds[name]): following
                    for who in speakers
                    for name in row["messages"]
                }
            )
    assert table == TABLE


@pytest.mark.parametrize(
    "row", rows("digests"), ids=lambda row: f"{row['filesize']}-{row['first']}-{row['length']}"
)
def test_digests_and_roots(row: dict[str, Any]) -> None:
    content = patterned(0, row["filesize"])
    first, end = row["first"], min(row["first"] + row["length"], row["filesize"])
    assert blocknum_of(row["filesize"]) == row["blocknum"]
    digests = [bytes.fromhex(block["digest"]) for block in row["blocks"]]
    for block, digest in zip(row["blocks"], digests, strict=True):
        position, length = block_span(block["blockno"], first, end)
        assert (position, length) == (block["position"], block["length"])
        assert blake3(content[position : position + length]).digest() == digest
        assert position // BLOCK_LENGTH == block["blockno"]
    assert root_of(digests, len(digests)).hex() == row["root"]
    assert blake3(content[first : max(first, end)]).hexdigest() == row["b3sum"]


def test_the_check() -> None:
    document = json.loads((VECTORS / "digests.json").read_text(encoding="utf-8"))
    assert document["checks"][0] == {"hex": b"123456789".hex(), "check": "cbf43926"}
    for row in document["checks"]:
        assert f"{zlib.crc32(bytes.fromhex(row['hex'])):08x}" == row["check"]


@pytest.mark.parametrize(
    "row", rows("names"), ids=lambda row: f"{row['profile']}-{row['hex'][:32] or 'empty'}"
)
def test_names(row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["hex"])
    text = raw.decode("utf-8", "surrogateescape")
    assert row["text"] in {None, text}
    if row["refused"] is None:
        assert SafeName.parse(text, portable=row["profile"] == "portable").text == text
        return
    with pytest.raises(NameRefused) as caught:
        SafeName.parse(text, portable=row["profile"] == "portable")
    assert (caught.value.rule, caught.value.profile) == (row["refused"], row["profile"])
    assert f"(rule {row['refused']}, profile {row['profile']})" in str(caught.value)


@pytest.mark.clause("BP1-HEL-009")
def test_the_usual_hello_is_what_a_running_server_says(server: Running) -> None:
    usual = next(row for row in rows("frames") if row["name"] == "hello/usual")
    wanted = wire.PREFACE + bytes.fromhex(usual["head"])
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(wire.PREFACE)
        said = b""
        while len(said) < len(wanted):
            said += connection.recv(len(wanted) - len(said))
    assert said == wanted
