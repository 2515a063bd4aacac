r"""The line that begins a connection of the dialect ``sourceid``, and the one that answers it: pure functions.

    Content-Length=<decimal>;filename=<name>;sourceid=<empty or id>\r\n        →  sourceid=<id>;position=<n>\r\n

The clients have many authors, so their lines are read leniently: keys in any case, blanks around keys and values, fields in
any order, unknown fields, ``filenname``, no ``sourceid`` if there is no id yet. A name may contain ``;``: it extends to the
next known field, and of several ``sourceid`` the last one counts. The line ends with LF or CRLF; or, if the client then
waits, with ``%`` or the four characters ``/r/n`` right after the digits of the id. Old servers may end their answers like
that, too, and may read names differently: so our client sends no name that any of them would cut (``check_name``).

Spec: BP1-SID.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from ..common.blocks import BLOCK_LENGTH
from ..common.names import SafeName, cut_in_the_middle, show_character, show_name
from ..errors import (
    ERRORS,
    BadFacts,
    BlockprotoError,
    Code,
    MalformedFrame,
    NameRefused,
    error_from_code,
)
from .dialect import FIRST_LENGTH_MAX, TEXT_LENGTH, Recognition, begins_with_key

LINE_LENGTH_MAX = 4096
"""Bytes of a line with its end (BP1-SID)."""
SOURCEID_LENGTH_MAX = 64
"""Characters of an id (BP1-SID)."""
POSITION_MAX = (1 << 31) - 1
"""The greatest position that clients can read (BP1-SID)."""
FILESIZE_MAX = ((1 << 32) - 2) * BLOCK_LENGTH
"""The greatest file there can be (BP1-BLK)."""

TEXT_LENGTH_MAX = 600
"""Characters of the text in a refusal (BP1-SID-015)."""
assert 4 * TEXT_LENGTH_MAX < LINE_LENGTH_MAX  # UTF-8, with room for the rest of the line

_OTHER_END = re.compile(rb"(?:^|;)[ \t]*sourceid[ \t]*=[ \t]*[0-9]*(%|/r/n)\Z", re.I)
_FIELD = re.compile(rb"(?:^|;)[ \t]*(?:(content-length)|(filenn?ame)|(sourceid))[ \t]*=", re.I)
_ANSWER_END = re.compile(rb"[^;=]*=[^;]*;[^;=]*=[ \t]*[0-9]+[ \t]*(?:;[^;]*)*?(%|/r/n|\r)\Z")
_UNSAYABLE = re.compile("[;\\\\\u2028\u2029]").search  # other line ends break a rule of every name
_DURABLE = re.compile(rb";[ \t]*durable[ \t]*=[ \t]*(?:;|\Z)", re.I)
_DECIMAL = re.compile(rb"[0-9]{1,19}").fullmatch
_ID = re.compile(rb"[!-:<-~]*").fullmatch


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        filename: the last component of the name it gave.
        filesize: bytes.
        sourceid: the id it was given before, or "" for a new upload.
        durable: whether it wants the unbounded position, too (BP1-SID-018).
    """

    filename: SafeName
    filesize: int
    sourceid: str
    durable: bool = False


def recognise(first: bytes) -> Recognition:
    """Whether a connection that begins with ``first`` speaks this dialect: it has a known key and no NUL.

    Spec: BP1-SID, BP1-DIA.
    """
    if not begins_with_key(first):
        hopeless = len(first) >= FIRST_LENGTH_MAX or re.search(rb"[\x00-\x08\x0a-\x1f]", first)
        return Recognition.NO if hopeless else Recognition.MORE
    end = end_of_line(first)
    if b"\0" in first[: TEXT_LENGTH if end is None else min(end[0], TEXT_LENGTH)]:
        return Recognition.NO
    return Recognition.MORE if end is None and len(first) < TEXT_LENGTH else Recognition.YES


def end_of_line(received: bytes) -> tuple[int, int] | None:
    """Where the line ends and where the bytes after it begin; None: it has not ended yet.

    Args:
        received: everything that has come, from the line's beginning.
    """
    feed = received.find(b"\n")
    if feed >= 0:
        return feed, feed + 1
    other = _OTHER_END.search(received)
    return None if other is None else (other.start(1), other.end(1))


def parse(line: bytes) -> Request:
    """Read a client's line, without its end.

    Raises:
        MalformedFrame: the length or the name is missing, or the length or the id is malformed.
        BadFacts: the file would be larger than possible.
        NameRefused: the name breaks a rule.
    """
    line = _without_other_end(line.rstrip(b"\r"))
    fields = list(_FIELD.finditer(line))
    length = next((field for field in fields if field[1]), None)
    name = next((field for field in fields if field[2]), None)
    sourceid = next((field for field in reversed(fields) if field[3]), None)
    if length is None or name is None:
        missing = [key for key, field in (("Content-Length", length), ("filename", name)) if field is None]
        raise MalformedFrame(f"the line has no {' and no '.join(missing)}")
    others = [one.start() for one in (length, sourceid) if one is not None and one.start() > name.start()]
    filename = line[name.end() : min(others)] if others else line[name.end() :].removesuffix(b";")
    return Request(
        filename=_filename(filename),
        filesize=_filesize(_value(line, length.end())),
        sourceid=_sourceid(_value(line, sourceid.end())) if sourceid is not None else "",
        durable=sourceid is not None and _DURABLE.search(line, sourceid.end()) is not None,
    )


def _without_other_end(line: bytes) -> bytes:
    other = _OTHER_END.search(line)
    return line if other is None else line[: other.start(1)]


def _value(line: bytes, begin: int) -> bytes:
    return line[begin:].split(b";", 1)[0].strip(b" \t")


def _filesize(value: bytes) -> int:
    if _DECIMAL(value) is None:
        raise MalformedFrame(f"Content-Length is '{_shown(value)}': a decimal number of bytes belongs there")
    filesize = int(value)
    if filesize > FILESIZE_MAX:
        raise BadFacts(f"no file of {filesize} bytes can be")
    return filesize


def _sourceid(value: bytes) -> str:
    if len(value) > SOURCEID_LENGTH_MAX or _ID(value) is None:
        raise MalformedFrame(
            f"sourceid is '{_shown(value)}': what this server gave belongs there, or nothing for a new upload"
        )
    return value.decode("ascii")


def _filename(value: bytes) -> SafeName:
    return SafeName.parse(re.split(r"[/\\]", _decoded(value).strip(" \t"))[-1])


def _decoded(name: bytes) -> str:
    """Decode UTF-8 or GB18030, which old desktop programs sent; anything else is left for the name rules to refuse."""
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return name.decode(encoding)
    return name.decode(errors="surrogateescape")


def _shown(value: bytes, length_max: int = SOURCEID_LENGTH_MAX) -> str:
    return show_name(value[:length_max].decode(errors="replace"))


def reply(sourceid: str, position: int, *, durable: bool = False) -> bytes:
    """The one line that answers a request.

    Args:
        sourceid: the upload's.
        position: where the client goes on; limited to what old clients can read.
        durable: whether to add the unlimited position.
    """
    third = f";durable={position}" if durable else ""
    return f"sourceid={sourceid};position={min(position, POSITION_MAX)}{third}\r\n".encode("ascii")


def error_line(error: BlockprotoError) -> bytes:
    """The line that refuses: it has no number in the place of the position, so that no client takes it for an answer."""
    text = cut_in_the_middle(show_name(str(error)), TEXT_LENGTH_MAX).replace(";", ",")
    return f"error={int(error.code)};name={error.code.name};text={text}\r\n".encode()


# ---- the client's side ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server.

    Attributes:
        sourceid: the upload's.
        position: where to go on.
        durable: the unlimited position, which is the filesize only if the file is complete; None if not given.
    """

    sourceid: str
    position: int
    durable: int | None = None


def check_name(filename: str) -> None:
    """Refuse a name that some server would read as another one.

    A server that splits the line at ``;``, or takes only what follows the last backslash, would store the file under a part
    of its name, and would resume another file of that part and size.

    Raises:
        NameRefused: with what to do instead.

    Spec: BP1-SID-022.
    """
    found = _UNSAYABLE(filename)
    if found is not None:
        why = f"holds {show_character(found[0])}"
    elif filename != filename.strip(" "):
        why = "begins or ends with a space"
    else:
        return
    raise NameRefused(
        f"the name '{show_name(filename)}' {why}, which the dialect sourceid cannot carry: give it another name with --as, "
        "or send it without --dialect",
        rule="dialect",
    )


def answer_ended(received: bytes) -> bool:
    """Whether the server's line is complete: an old server may end it as old clients do (BP1-SID-019)."""
    return b"\n" in received or _ANSWER_END.match(received) is not None


def request_line(filename: str, filesize: int, sourceid: str) -> bytes:
    """The first line of a client; it asks for ``durable``, which old servers ignore."""
    return f"Content-Length={filesize};filename={filename};sourceid={sourceid};durable=\r\n".encode()


def parse_answer(line: bytes, filesize: int) -> Answer:
    """Read a server's line, by the position of its fields.

    Args:
        line: as it came, perhaps without an end.
        filesize: of the file, which no position may exceed.

    Raises:
        BlockprotoError: the error in the line.
        MalformedFrame: it is not an answer of this dialect.
    """
    line = line.split(b"\n", 1)[0].rstrip(b"\r")
    end = _ANSWER_END.match(line)
    fields = [field.partition(b"=") for field in (line if end is None else line[: end.start(1)]).split(b";")]
    values = [value.strip(b" \t") for _, _, value in fields]
    if fields[0][0].strip(b" \t").lower() == b"error":
        raise _named_error(values)
    if len(fields) < 2 or not values[0] or _DECIMAL(values[1]) is None:
        raise MalformedFrame(
            f"'{_shown(line)}' is not an answer of the dialect sourceid: look at address and port"
        )
    durable = None
    if len(fields) > 2 and fields[2][0].strip(b" \t").lower() == b"durable" and _DECIMAL(values[2]):
        durable = int(values[2])
    answer = Answer(values[0].decode(errors="replace"), int(values[1]), durable)
    if max(answer.position, durable or 0) > filesize:
        raise MalformedFrame(f"the server has more bytes of it than the {filesize} there are")
    return answer


def _named_error(values: list[bytes]) -> BlockprotoError:
    code = int(values[0]) if _DECIMAL(values[0]) else 0
    known = code in Code._value2member_map_
    text = cut_in_the_middle(show_name(b";".join(values[2:]).decode(errors="replace")), TEXT_LENGTH_MAX)
    return error_from_code(code, text, retryable=known and ERRORS[Code(code)].retryable)
