"""The Wireshark dissector of spec/wireshark, held against the vectors and against a real conversation.

Captures are written by hand (``captures.py``), so that most of this needs tshark and no rights; one test listens to a real
server and client on the loopback interface, which takes root (CAP_NET_RAW) and dumpcap, and is skipped without them.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from captures import Capture
from processes import TIMEOUT_S, Process, Ran, Server, wait_until
from test_vectors import joined, rows

from blockproto.errors import Code
from blockproto.wire import MESSAGES, PREFACE, Hello, Ping, Type, encode_frame, frame_bytes

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")

WIRESHARK = Path(__file__).resolve().parents[2] / "spec" / "wireshark"
GREETING = PREFACE + encode_frame(0, Hello(agent="capture"))
FLAGS = (
    "end",
    "commit",
    "more",
    "discard",
    "answer",
    "recursive",
    "exact",
    "follow",
    "b3sum",
    "left",
    "there",
    "last",
    "wanted",
)
UNKNOWN = dict.fromkeys(
    ("filesize", "expires_ms", "fetch_length", "current", "quota", "used"), str(2**64 - 1)
)
UNKNOWN |= dict.fromkeys(("blocknum", "blockno"), str(2**32 - 1))
"""What stands for null in the vectors."""

VECTORS = rows("frames") + rows("identity")

Frame = dict[str, list[str]]
"""The fields of one frame without their "blockproto.", each with all its values."""


# ---- asking tshark ----------------------------------------------------------------------------------------------


def tshark(capture: Path, *options: str) -> str:
    """What tshark prints of a capture; fails if it, or Lua, complains."""
    scripts = [f"-Xlua_script:{WIRESHARK / name}.lua" for name in ("blockproto", "blockproto_dialects")]
    ran = subprocess.run(
        ["tshark", "-n", "-r", capture, *scripts, *options],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        env=os.environ | {"HOME": str(capture.parent), "WIRESHARK_CONFIG_DIR": str(capture.parent)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "lua" not in ran.stderr.lower(), ran.stderr
    assert "Lua Error" not in ran.stdout, ran.stdout
    return ran.stdout


def frames_in(capture: Path, *options: str) -> list[Frame]:
    """Every frame and preface of a capture, in order."""
    packets = json.loads(
        tshark(capture, "-T", "json", "-J", "blockproto", *options), object_pairs_hook=lambda found: found
    )
    return [_fields(value) for packet in packets for name, value in _walk(packet) if name == "blockproto"]


def _walk(found: Any) -> Iterator[tuple[str, Any]]:
    """Every (name, value) anywhere in JSON whose objects are lists of pairs."""
    for one in found if isinstance(found, list) else ():
        if isinstance(one, tuple):
            yield one
            yield from _walk(one[1])
        else:
            yield from _walk(one)


def _fields(tree: Any) -> Frame:
    fields: Frame = {}
    for name, value in _walk(tree):
        if name.startswith("blockproto.") and isinstance(value, str) and not name.endswith("_tree"):
            fields.setdefault(name.removeprefix("blockproto."), []).append(value)
        elif name.startswith("_ws.expert.message"):
            fields.setdefault("expert", []).append(value)
    return fields


def lines_of(capture: Path, *, of: str = "blockproto") -> list[str]:
    """The Info column of the packets in which there is a protocol."""
    return tshark(capture, "-Y", of, "-T", "fields", "-e", "_ws.col.Info").splitlines()


def types(frames: list[Frame]) -> list[int]:
    return [int(frame["type"][0], 16) for frame in frames if "type" in frame]


def raw_of(row: dict[str, Any]) -> bytes:
    return bytes.fromhex(row["head"]) + joined(row["payload"])


# ---- every message against the vectors ----------------------------------------------------------------------------


def expected_of(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields of a vector's values, as (name, what tshark prints without colons)."""
    for name, value in values.items():
        yield from _expected("fetch_length" if name == "length" else name, value)


def _expected(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name == "tlvs":
        for tlv, inside in value.items():
            if tlv == "LEFT_OUT":
                for group in inside:
                    yield "left_out", str(group["reason"])
                    yield "left_out.count", str(group["count"])
                    yield from (("left_out.name", name) for name in group["names"])
                continue
            for one in inside if isinstance(inside, list) else [inside]:
                yield from _expected("mtime_ns" if tlv == "MTIME" else tlv.lower(), one)
    elif name == "items":
        yield name, str(len(value))
        for item in value:
            yield from expected_of({"item.kind" if key == "kind" else key: item[key] for key in item})
    elif name in STRINGS:
        yield name, str(len(value))
        yield from ((STRINGS[name], str(one)) for one in value)
    elif name == "names":
        yield from ((name, one) for one in value)
    elif name == "files":
        yield name, str(len(value))
        for record in value:
            yield from expected_of(
                {f"record.{key}" if key in INDEXES else key: record[key] for key in record}
            )
    elif name == "outcomes":
        yield name, str(len(value))
        for item in value:
            yield from expected_of(item)
    elif isinstance(value, list):
        first, second = PAIRS[name]
        yield name, str(len(value))
        for pair in value:
            yield from ((first, str(pair[0])), (second, str(pair[1])))
    else:
        yield name, UNKNOWN[name] if value is None else str(value)


STRINGS = {"folders": "folder", "filetypes": "frame_filetype", "statuses": "status"}
INDEXES = ("folder", "filetype", "name_length")
PAIRS = {
    "held": ("run.first", "run.count"),
    "prefixes": ("prefix.blockno", "prefix.bytes"),
    "digests": ("have.blockno", "have.digest"),
}


def plain(name: str, shown: str) -> str:
    """A value of tshark in the form of the vectors."""
    if name in ("features", "scopes"):
        return str(int(shown, 0))
    return shown.replace(":", "") if re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2})+", shown) else shown


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Frame]:
    """Each frame vector as the dissector shows it, from one capture with a frame for each packet."""
    capture = Capture(tmp_path_factory.mktemp("wireshark") / "vectors.pcap")
    capture.connect()
    capture.say(True, PREFACE)
    for row in VECTORS:
        capture.say(True, raw_of(row))
    found = frames_in(capture.save())
    assert found[0]["preface"] == ["ff:42:4b:50:0d:0a:1a:0a"]
    assert len(found) == 1 + len(VECTORS)
    return {row["name"]: frame for row, frame in zip(VECTORS, found[1:], strict=True)}


@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in VECTORS])
def test_a_vector_is_decoded(row: dict[str, Any], decoded: dict[str, Frame]) -> None:
    frame = decoded[row["name"]]
    assert frame["stream"] == [str(row["stream"])]
    assert frame["check.status"] == ["1"]
    assert int(frame["length"][0]) == len(raw_of(row)) - 16
    if row["message"] == "UNKNOWN":
        assert "unknown, and skipped by everybody" in frame["expert"]
        return
    assert MESSAGES[int(frame["type"][0], 16)].TYPE.name == row["message"]
    assert {name.upper() for name in FLAGS if frame.get(f"flags.{name}", ["0"])[0] in ("1", "True")} == set(
        row["flags"]
    )
    wanted: Frame = {}
    for name, value in expected_of(row["values"]):
        wanted.setdefault(name, []).append(value)
    assert {name: [plain(name, one) for one in frame[name]] for name in wanted} == wanted
    payload = joined(row["payload"])
    assert int(frame.get("payload_length", ["0"])[0]) == len(payload)
    if payload:
        assert bytes.fromhex(frame["payload"][0].replace(":", "")) == payload


def test_the_vectors_have_every_message() -> None:
    assert {row["message"] for row in VECTORS} >= {message.TYPE.name for message in MESSAGES.values()}


def test_what_is_unknown_is_named(decoded: dict[str, Frame]) -> None:
    assert decoded["grease/tlvs-among-known"]["tlv.type"] == ["0", "1", "2", "27", "58", "32767"]
    assert decoded["grease/flag-bit-11"]["flags.grease"][0] in ("1", "True")
    assert decoded["grease/tlv-of-another-message"]["expert"] == ["unknown, and skipped by everybody"]


def test_the_dissector_knows_the_error_table() -> None:
    text = (WIRESHARK / "blockproto.lua").read_text(encoding="utf-8")
    table = text[text.index("local ERRORS") : text.index("local SCOPES")]
    assert {int(code): name for code, name in re.findall(r'\[(\d+)\] = "([A-Z_]+)"', table)} == {
        code.value: code.name for code in Code
    }


# ---- segments -----------------------------------------------------------------------------------------------------


CONVERSATION = next(row for row in rows("conversations") if row["name"] == "listing")["steps"]


def said(from_client: bool) -> bytes:
    side = "client" if from_client else "server"
    return GREETING + b"".join(raw_of(step) for step in CONVERSATION if step["from"] == side)


@pytest.mark.parametrize("length", [1, 61, 60_000])
def test_frames_are_put_together_from_segments(length: int, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "segments.pcap")
    capture.connect()
    capture.say(True, said(True), length)
    capture.say(False, said(False), length)
    frames = frames_in(capture.save())
    wanted = [Type.HELLO] + [Type[step["message"]] for step in CONVERSATION if step["from"] == "client"]
    wanted += [Type.HELLO] + [Type[step["message"]] for step in CONVERSATION if step["from"] == "server"]
    assert types(frames) == wanted
    assert all(frame["check.status"] == ["1"] for frame in frames if "type" in frame)
    assert sum("preface" in frame for frame in frames) == 2
    assert not [frame["expert"] for frame in frames if "expert" in frame]


def test_info_tells_every_frame_of_a_packet(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "info.pcap")
    capture.connect()
    capture.say(True, said(True))
    capture.say(False, said(False))
    client, server = lines_of(capture.save())
    assert client.startswith(
        "preface; 0 HELLO versions 1 to 1, capture; 1 OPEN photos/2024/sea.jpg, 2097157 bytes, "
    )
    assert (
        "; 1 BLOCK 2 of 3, photos/2024/sea.jpg +2; 3 LIST files ; 1 PIECE END at 2097154 (photos/2024/sea.jpg) +3"
        in client
    )
    assert (
        "; 1 OPENED position 2097152 held 0-1 (photos/2024/sea.jpg); 3 RESULT 1 items; 1 ACK position 2097157"
        in server
    )


def test_a_name_cannot_play_with_the_terminal(tmp_path: Path) -> None:
    row = next(row for row in rows("frames") if row["name"] == "remove/file")
    head = bytes.fromhex(row["head"])[16:].replace(b"hello.txt", b"h\x1b[31m\xc2\x9b\n")
    capture = Capture(tmp_path / "escape.pcap")
    capture.connect()
    capture.say(True, GREETING + frame_bytes(1, Type.REMOVE, 0, head))
    assert lines_of(capture.save())[0].endswith(r"1 REMOVE h\x1b[31m\xc2\x9b\x0a")


# ---- what is wrong ------------------------------------------------------------------------------------------------


def test_a_wrong_check_is_flagged(tmp_path: Path) -> None:
    damaged = bytearray(encode_frame(0, Ping(b"12345678", 15)))
    damaged[20] ^= 1
    capture = Capture(tmp_path / "check.pcap")
    capture.connect()
    capture.say(True, GREETING + bytes(damaged) + encode_frame(0, Ping(b"87654321", 15)))
    saved = capture.save()
    hello, bad, good = [frame for frame in frames_in(saved) if "type" in frame]
    assert (hello["check.status"], bad["check.status"], good["check.status"]) == (["1"], ["0"], ["1"])
    assert bad["expert"] == ["the check is not that of header and head"]
    right = zlib.crc32(damaged[16:], zlib.crc32(damaged[:12]))
    assert f"should be 0x{right:08x}" in tshark(saved, "-V")
    assert "PING next_s 15 [bad check]" in lines_of(saved)[0]


def test_what_can_be_no_frame_is_flagged_and_not_waited_for(tmp_path: Path) -> None:
    """A length over every limit, in a frame of a known type: nobody would send the 16 MiB it promises."""
    capture = Capture(tmp_path / "noise.pcap")
    capture.connect()
    capture.say(True, GREETING)
    capture.say(True, b"\xff\xff\xff\x85" + bytes(40))
    assert frames_in(capture.save())[-1]["expert"] == ["this is no frame"]


FLAGGED = {"BP1-FRM-005", "BP1-FRM-010", "BP1-FRM-012", "BP1-FRM-014", "BP1-FRM-015", "BP1-EXT-001", "BP1-EXT-003",
           "BP1-EXT-004"}  # fmt: skip
"""The clauses whose breach can be seen in one frame by itself and is shown."""


DAMAGE = " || ".join(
    f"blockproto.expert.{name}" for name in ("bad_check", "malformed", "not_understood", "noise")
)


def test_refused_frames_are_flagged_and_none_upsets_lua(tmp_path: Path) -> None:
    refused = [row for row in rows("refusals") if row["layer"] != "greeting"]
    capture = Capture(tmp_path / "refused.pcap")
    for row in refused:
        capture.connect()
        before = b"".join(joined(parts) for parts in row["before"])
        capture.say(True, GREETING + before + joined(row["bytes"]))
    flagged = set(tshark(capture.save(), "-Y", DAMAGE, "-T", "fields", "-e", "tcp.stream").split())
    named = {row["name"]: str(number) for number, row in enumerate(refused) if row["clause"] in FLAGGED}
    assert len(named) > 20
    assert [name for name, number in named.items() if number not in flagged] == []


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, perhaps cut off, perhaps with something behind."""
    changed = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed[: rng.randrange(len(changed) + 1)]) + rng.randbytes(rng.randrange(40))


def test_nothing_that_comes_upsets_lua(tmp_path: Path) -> None:
    rng = random.Random(4)
    whole = [raw_of(row) for row in VECTORS if len(raw_of(row)) < 2000]
    steps = [step for row in rows("dialects") for step in row["steps"] if step.get("bytes")]
    openings = [
        step["bytes"] for step in steps if step["from"] == "client" and len(joined(step["bytes"])) < 100
    ]
    answers = [step["bytes"] for step in steps if step["from"] == "server"]
    capture = Capture(tmp_path / "mutated.pcap")
    for _ in range(300):
        capture.connect()
        capture.say(True, GREETING + damaged(rng.choice(whole), rng))
    for _ in range(300):
        capture.connect()
        opening = joined(rng.choice(openings))
        capture.say(True, rng.choice((opening, damaged(opening, rng))))
        capture.say(False, damaged(joined(rng.choice(answers)), rng))
        capture.say(True, damaged(joined(rng.choice(openings)), rng))
    tshark(capture.save(), "-V")


def test_a_capture_that_cut_its_packets_is_still_read(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "whole.pcap")
    capture.connect()
    capture.say(True, GREETING)
    capture.say(True, raw_of(next(row for row in rows("frames") if row["name"] == "result/files")))
    cut = tmp_path / "cut.pcap"
    subprocess.run(
        ["editcap", "-s", "120", capture.save(), cut], check=True, capture_output=True, timeout=TIMEOUT_S
    )
    assert types(frames_in(cut)) == [Type.HELLO, Type.RESULT]


# ---- which traffic is ours ----------------------------------------------------------------------------------------


def test_another_port_is_recognised_by_the_preface(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "port.pcap", port=9999)
    capture.connect()
    capture.say(True, said(True), 100)
    capture.say(False, said(False), 100)
    assert Type.PIECE in types(frames_in(capture.save()))


def test_decode_as_reads_from_the_middle(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "middle.pcap", port=9999)
    capture.connect()
    capture.say(True, said(True)[len(GREETING) :])
    saved = capture.save()
    assert frames_in(saved) == []
    assert types(frames_in(saved, "-d", "tcp.port==9999,blockproto"))[0] == Type.OPEN


def test_others_on_the_port_are_left_alone(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "others.pcap")
    for words in (
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-x\r\n",
    ):
        capture.connect()
        capture.say(True, words)
    assert frames_in(capture.save()) == []


# ---- the older dialects -------------------------------------------------------------------------------------------


def transcript(capture: Capture, name: str) -> None:
    """Say what a transcript of the dialects says."""
    row = next(row for row in rows("dialects") if row["name"] == name)
    before = None
    for step in row["steps"]:
        if step["connection"] != before:
            capture.connect()
            before = step["connection"]
        if step.get("bytes"):
            capture.say(step["from"] == "client", joined(step["bytes"]))


@pytest.mark.parametrize("port", [7878, 9999])
def test_every_transcript_of_a_dialect_is_understood(port: int, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "dialects.pcap", port=port)
    for row in rows("dialects"):
        transcript(capture, row["name"])
    saved = capture.save()
    assert (
        tshark(
            saved, "-Y", "blockproto || blockproto_dialect.expert.noise || blockproto_dialect.expert.guessed"
        )
        == ""
    )
    known = set(tshark(saved, "-Y", "blockproto_dialect", "-T", "fields", "-e", "tcp.stream").split())
    connections = sum(len({step["connection"] for step in row["steps"]}) for row in rows("dialects"))
    assert len(known) == connections > 10


def test_a_transcript_of_sourceid_is_told(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "sourceid.pcap")
    transcript(capture, "sourceid/new")
    transcript(capture, "sourceid/refused")
    assert lines_of(capture.save(), of="blockproto_dialect") == [
        "sourceid: hello.txt, 14 bytes",
        "sourceid: go on at 0",
        "sourceid: 14 bytes of the file",
        "sourceid: .., 14 bytes",
        "sourceid: ERROR NAME_REFUSED",
    ]


def test_a_transcript_of_struct82_is_told(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "struct82.pcap")
    transcript(capture, "struct82/resumed")
    transcript(capture, "struct82/refused")
    assert lines_of(capture.save(), of="blockproto_dialect") == [
        "struct82: film.mp4, what is held?",
        "struct82: -1: 0 blocks held",
        "struct82: film.mp4, block 3 of 3 +5",
        "struct82: 3: durable",
        "struct82: film.mp4, block 1 of 3 +1048576",
        "struct82: 1: durable",
        "struct82: film.mp4, what is held?",
        "struct82: -1: 2 blocks held",
        "struct82: film.mp4, block 2 of 3 +1048576",
        "struct82: 2: durable, complete",
        "struct82: film.mp4, what is held?",
        "struct82: -1: 3 blocks held, complete",
        "struct82: .., what is held?",
        "struct82: -1: NAME_REFUSED",
        "struct82: .., block 0 of 1 +14",
        "struct82: 0: NAME_REFUSED",
        "struct82: hello.txt, block 0 of 1 +14",
        "struct82: 0: durable, complete",
    ]


# ---- what README says ---------------------------------------------------------------------------------------------


def test_the_filters_of_readme_and_rules_are_filters(tmp_path: Path) -> None:
    readme = (WIRESHARK / "README.md").read_text(encoding="utf-8")
    filters = re.findall(r"^\| `([^`]*blockproto[^`]*)` \|", readme, re.MULTILINE)
    rules = (WIRESHARK / "coloring_rules").read_text(encoding="utf-8").splitlines()
    filters += [rule.split("@")[2] for rule in rules]
    assert len(filters) > 12
    capture = Capture(tmp_path / "filters.pcap")
    capture.connect()
    capture.say(True, said(True))
    tshark(capture.save(), "-Y", " || ".join(f"({one})" for one in filters))


# ---- a real conversation ------------------------------------------------------------------------------------------


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Capture a port of the loopback interface until the test ends; returns the file once the capture runs."""
    running: list[subprocess.Popen[str]] = []

    def begin(port: int) -> Path:
        if shutil.which("dumpcap") is None:
            pytest.skip("dumpcap is not installed")
        path = tmp_path / "real.pcapng"
        command = ["dumpcap", "-q", "-B", "64", "-i", "lo", "-f", f"tcp port {port}", "-w", str(path)]
        process = Process(command, stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stderr is not None
        heard = ""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stderr, selectors.EVENT_READ)
            while "File: " not in heard:
                assert selector.select(TIMEOUT_S), f"dumpcap said only: {heard}"
                line = process.stderr.readline()
                if not line:
                    pytest.skip(f"no capture on the loopback interface without CAP_NET_RAW: {heard.strip()}")
                heard += line
        return path

    yield begin
    for process in running:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Let dumpcap write what it has, and end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)


def test_a_real_upload_and_download(
    server: Server, run: Callable[..., Ran], listen: Callable[[int], Path], tmp_path: Path
) -> None:
    captured = listen(server.port)
    source = tmp_path / "film.bin"
    source.write_bytes(random.Random(7).randbytes((1 << 20) + 77))
    assert run("put", source, f"{server.address}/").status == 0
    assert run("get", f"{server.address}/film.bin", tmp_path / "copy.bin").status == 0
    assert run("get", f"{server.address}/../up", tmp_path).status == 1
    assert run("ls", f"{server.address}/nothing-after-this").status == 1
    wait_until(lambda: b"nothing-after-this" in captured.read_bytes())
    assert server.stop() == 0
    frames = [frame for frame in frames_in(captured) if "type" in frame]
    kinds = types(frames)
    assert set(kinds) >= {Type.HELLO, Type.OPEN, Type.OPENED, Type.BLOCK, Type.COMMIT, Type.COMMITTED,
                          Type.FETCH, Type.LIST, Type.RESULT, Type.ERROR}  # fmt: skip
    assert all(frame["check.status"] == ["1"] for frame in frames)
    assert not [frame for frame in frames if "expert" in frame and int(frame["type"][0], 16) != Type.ERROR]
    assert sum(int(frame.get("payload_length", ["0"])[0]) for frame in frames) == 2 * source.stat().st_size
    assert {name for frame in frames for name in frame.get("stored_as", [])} >= {"film.bin"}
    assert ["22"] in [frame["code"] for frame in frames if "code" in frame]
