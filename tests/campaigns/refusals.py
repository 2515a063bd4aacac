"""What cannot work: a folder or disk that is read-only, a port in use, nobody there, a web browser, garbage, wrong blocks.

Each ends with the exit code of the contract and one clear sentence, the server serves on, and nothing is left behind: no
file, no partial, no upload, no open file descriptor.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from blockproto.errors import Code, Scope
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Block,
    Committed,
    Error,
    Hello,
    Open,
    Opened,
    decode_head,
    decode_header,
    encode_frame,
    frame_bytes,
)

from .raw import Raw, RawFile
from .tools import (
    DONE,
    FAILED,
    MIB,
    STEP_S,
    UNREACHABLE,
    CannotMount,
    Figures,
    Place,
    Ran,
    Running,
    Server,
    campaign,
    make_file,
    open_fds,
    parser,
    partials,
    read_only,
    require,
    require_same,
    unfinished,
    wait_until,
)

_HOST = "127.0.0.1"
WRONG_NAMES = (
    "../up",
    "/root",
    "a//b",
    "a/../b",
    ".",
    "",
    "a\0b",
    "a\nb",
    ".blockproto/ledger/data.mdb",
    ".BlockProto/lock",
    "not UTF-8: \udcff",
    "x" * 256,
    "y/" * 600,
)


def require_one_sentence(ran: Ran, *words: str) -> None:
    """What the command says is one line, and has these words."""
    require(ran.err.count("\n") == 1, f"more than a sentence: {ran.err}")
    for word in words:
        require(word in ran.err, f"{word!r} is not in: {ran.err}")


@contextmanager
def nothing_left(place: Place, server: Server) -> Iterator[None]:
    """What happens inside leaves no file, partial, upload or open descriptor, and the server still serves."""
    before = sorted(place.served.iterdir()), open_fds(server.pid)
    yield
    wait_until(lambda: open_fds(server.pid) <= before[1], "the server's descriptors of before")
    require(sorted(place.served.iterdir()) == before[0], "something is in the served folder")
    require(not partials(place.served), f"partials: {partials(place.served)}")
    require(not unfinished(server), f"unfinished: {unfinished(server)}")


# ---- the machine ----------------------------------------------------------------------------------------------


def second_server(place: Place) -> None:
    """Another server on the port of the first, or on its folder."""
    other = place.folder / "other"
    other.mkdir()
    with Server(place) as server:
        told = place.run("serve", other, "--listen", f"{_HOST}:{server.port}").require(FAILED)
        require_one_sentence(told, str(server.port), "in use")
        require(list(other.iterdir()) == [], f"left in the folder: {list(other.iterdir())}")
        told = place.run("serve", place.served, "--listen", f"{_HOST}:0").require(FAILED)
        require_one_sentence(told, str(place.served))
        require(not unfinished(server), "the first serves on")


def nobody_there(place: Place) -> None:
    """Every command against a port where nobody listens ends with 3."""
    source = make_file(place.folder / "nobody.bin", 3 * MIB, "nobody")
    with socket.create_server((_HOST, 0)) as reserved:
        port = reserved.getsockname()[1]
    address = f"bp://{_HOST}:{port}/"
    running = [
        place.start("put", source, address),
        place.start("get", address + "a", place.folder / "a"),
        place.start("ls", address),
        place.start("rm", address + "a"),
    ]
    for told in [command.end() for command in running]:
        told.require(UNREACHABLE)
        require_one_sentence(told, "cannot reach", str(port))
    require(not (place.folder / "a").exists(), "a file was made of nothing")


def read_only_folder(place: Place) -> None:
    """Serving a folder on a read-only mount. Raises CannotMount."""
    with read_only(place.served):
        told = place.run("serve", place.served, "--listen", f"{_HOST}:0").require(FAILED)
        require_one_sentence(told, str(place.served), "read-only")
    require(list(place.served.iterdir()) == [], "something is left")


def read_only_below(place: Place) -> None:
    """A folder inside the served one is read-only: uploads into it are refused, others go on. Raises CannotMount.

    What was sent of a big file is kept, as the message says: once the folder's rights are right, the same command ends
    without sending a byte.
    """
    below = place.served / "fixed"
    below.mkdir()
    small = make_file(place.folder / "small.bin", 4096, "small")
    big = make_file(place.folder / "big.bin", 3 * MIB, "big")
    with Server(place) as server:
        with read_only(below):
            for source in (small, big):
                told = place.run("put", source, server.address + "fixed/").require(FAILED)
                require_one_sentence(told, source.name)
            place.run("put", small, server.address).require(DONE)
            require(list(below.iterdir()) == [], "something was written below a read-only mount")
            require(unfinished(server) == ["fixed/big.bin"], f"unfinished: {unfinished(server)}")
        receipt = place.run("put", big, server.address + "fixed/", "--json").require(DONE).objects[-1]
        require(receipt["payload_bytes_sent"] == 0, f"it travelled again: {receipt}")
        require_same(below / big.name, big)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()


# ---- those who speak something else ---------------------------------------------------------------------------


def http_request(place: Place, server: Server) -> None:
    """A web browser gets a sentence it can show, and the connection is closed."""
    with nothing_left(place, server):
        url = f"http://{_HOST}:{server.port}/"
        told = Running(
            ["curl", "--silent", "--show-error", "--http0.9", "--max-time", "20", url], place.env
        ).end()
        require("speaks blockproto" in told.out, f"curl was told {told.out!r} {told.err!r}")


def wrong_preface(place: Place, server: Server) -> None:
    """Garbage, half a preface, and nothing at all."""
    with nothing_left(place, server):
        garbage = random.Random(1).randbytes(4096)
        require(
            b"speaks blockproto" in _converse(server.port, garbage, ends=True),
            "garbage is told what speaks here",
        )
        damaged = PREFACE.replace(b"\r\n", b"\n") + bytes(64)
        require(
            b"speaks blockproto" in _converse(server.port, damaged, ends=True),
            "a preface that text mode damaged",
        )
        require(_converse(server.port, PREFACE[:4], ends=True) == b"", "half a preface gets no answer")
        require(_converse(server.port, b"", ends=True) == b"", "silence gets no answer")


def broken_frames(place: Place, server: Server) -> None:
    """A length over its limit, a wrong check: the connection ends with that error and nothing else happens."""
    with nothing_left(place, server):
        hello = PREFACE + encode_frame(0, Hello())
        opening = encode_frame(1, RawFile(bytes(MIB)).open(1))
        oversized = b"\xff\xff\xff" + opening[3:]
        _require_error(_last_error(server.port, hello, oversized), Code.TOO_LARGE, Code.MALFORMED)
        bad_check = opening[:20] + bytes([opening[20] ^ 1]) + opening[21:]
        _require_error(_last_error(server.port, hello, bad_check), Code.BAD_CHECK)


def wrong_facts(place: Place, server: Server) -> None:
    """blockno out of range, a position outside its block, a blocknum that does not fit: the stream ends with BAD_FACTS."""
    file = RawFile(random.Random(2).randbytes(2 * MIB + 5))
    wrong: dict[str, bytes] = {
        "blockno out of range": _patched(file.block(2), {28: (3, 4), 32: (3 * MIB, 8)}, 5),
        "position outside its block": _patched(file.block(2), {32: (MIB, 8)}, 5),
        "blocknum does not fit": _patched(file.open(1), {32: (4, 4)}, 0),
    }
    with nothing_left(place, server), Raw(server.port) as raw:
        for number, (what, frame) in enumerate(wrong.items()):
            stream = 2 * number + 1
            if "blocknum" not in what:
                raw.say_open(stream, file.open(number + 1), [Opened])
            raw.say_bytes(_on_stream(frame, stream) + bytes(decode_header(frame).payload_length))
            error = raw.hear(Error)
            _require_error(error, Code.BAD_FACTS, scope=Scope.STREAM)


def wrong_names(place: Place, server: Server) -> None:
    """Names that leave the folder or break another rule, in OPEN and in a file without OPEN: NAME_REFUSED."""
    file = RawFile(b"12345")
    with nothing_left(place, server), Raw(server.port) as raw:
        stream = 1
        for name in WRONG_NAMES:
            named = replace(file, filename=name)
            raw.say(stream, named.open(1))
            _require_error(raw.hear(Error), Code.NAME_REFUSED, scope=Scope.STREAM)
            brief = replace(named.block(0), commit=True)
            raw.say(stream + 2, brief, file.content)
            _require_error(raw.hear(Error), Code.NAME_REFUSED, scope=Scope.STREAM)
            stream += 4


def wrong_digest(place: Place, server: Server) -> None:
    """A block whose bytes are not those of its digest is asked for again, and the file is right in the end."""
    file = RawFile(random.Random(3).randbytes(MIB + 7), filename="digest.bin", sourceid=b"wrong digest....")
    with Raw(server.port) as raw:
        raw.say_open(1, file.open(1), [Opened])
        raw.say(1, file.block(0), bytes(MIB))
        error = raw.hear(Error)
        _require_error(error, Code.DIGEST_MISMATCH, scope=Scope.BLOCK)
        require(error.blockno == 0, f"the block is {error.blockno}")
        for blockno in range(file.blocknum):
            raw.say(1, file.block(blockno), file.bytes_of(blockno))
        raw.say(1, file.commit())
        committed = raw.hear(Committed, Error)
        require(isinstance(committed, Committed), f"done, not {committed}")
    stored = place.served / "digest.bin"
    require(stored.read_bytes() == file.content, "the stored file is not what was sent in the end")
    stored.unlink()


def _patched(message: Open | Block, changes: dict[int, tuple[int, int]], payload_length: int) -> bytes:
    """The frame of a message with other numbers (offset in the head: value, bytes) that a dataclass would refuse."""
    flags, head = message.LAYOUT.encode(message)
    changed = bytearray(head)
    for offset, (value, length) in changes.items():
        changed[offset : offset + length] = value.to_bytes(length, "big")
    return frame_bytes(0, message.TYPE, flags, bytes(changed), payload_length)


def _on_stream(frame: bytes, stream: int) -> bytes:
    header = decode_header(frame)
    return frame_bytes(stream, header.type, header.flags, frame[HEADER_LENGTH:], header.payload_length)


def _require_error(error: Error, *codes: Code, scope: Scope = Scope.CONNECTION) -> None:
    require(error.code in codes, f"the error is {error}, not {codes}")
    require(error.scope == scope, f"its scope is {error.scope}: {error}")


def _converse(port: int, said: bytes, *, ends: bool = False) -> bytes:
    """Say something, and if ``ends`` nothing after it; returns all that is answered until the server closes."""
    with socket.create_connection((_HOST, port), timeout=STEP_S) as sock:
        sock.sendall(said)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


def _last_error(port: int, *said: bytes) -> Error:
    """Say frames that the server does not take; returns the ERROR it says before it closes."""
    answer = _converse(port, b"".join(said), ends=True)
    at, found = len(PREFACE), None
    while at < len(answer):
        header = decode_header(answer, at)
        start = at + HEADER_LENGTH
        found = decode_head(header, answer[start : start + header.head_length])
        at = start + header.length
    require(isinstance(found, Error), f"the last frame is {found}")
    assert isinstance(found, Error)
    return found


def run(place: Place) -> Figures:
    """Every case; those that need a mount are left out, and named, where that is not allowed."""
    skipped: list[str] = []
    for case in MACHINE:
        try:
            case(_sub_place(place, case.__name__))
        except CannotMount as error:
            skipped.append(f"{case.__name__}: {error}")
    with Server(place) as server:
        for speaking in SPEAKING:
            speaking(place, server)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    return {"campaign": "refusals", "cases": len(MACHINE) + len(SPEAKING), "skipped": skipped}


def _sub_place(place: Place, name: str) -> Place:
    return Place(place.folder / name)


MACHINE: tuple[Callable[[Place], None], ...] = (
    second_server,
    nobody_there,
    read_only_folder,
    read_only_below,
)
SPEAKING: tuple[Callable[[Place, Server], None], ...] = (
    http_request,
    wrong_preface,
    broken_frames,
    wrong_facts,
    wrong_names,
    wrong_digest,
)


def main() -> int:
    """The campaign's command line."""
    return campaign(parser(__doc__).parse_args(), run)


if __name__ == "__main__":
    sys.exit(main())
