"""Random openings of connections through routing: `python tests/fuzz_detection.py COUNT SEED`.

Each is the beginning of a native connection, of a TLS handshake, of one of the dialects as clients write it, or of something
else, and comes cut into random pieces. However it is cut, the first answer that is not MORE must be the right one, and no
more bytes may change it. COUNT 1,000,000 takes about two minutes on one core.
"""

from __future__ import annotations

import random
import string
import sys
import time
from collections import Counter

from struct82_peers import LAYOUTS, MIB

from blockproto.dialects import FIRST_LENGTH_MAX
from blockproto.dialects.sourceid import Sourceid
from blockproto.dialects.struct82 import Struct82
from blockproto.serving.detect_rules import Detection, detect_from_bytes
from blockproto.wire import PREFACE

DIALECTS = (Sourceid(), Struct82())
_TEXTS = (string.ascii_letters + string.digits + " ._-;=%()/\\", "照片视频文档 0123456789.", "éüñ ß-x1.")
_ENDS = (b"\n", b"\r\n", b"%", b"/r/n", b"\r\n", b"\r\n")
_OTHERS = (
    b"GET / HTTP/1.1\r\nHost: ",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"EHLO mail\r\n",
    b"\x00\x00\x00\x2f",
    b"USER me\r\n",
    b"",
)


def _name(rng: random.Random, length: int) -> bytes:
    """A file's name in UTF-8 or GB18030, of at most ``length`` bytes, cut where a C program would cut it."""
    text = "".join(rng.choices(rng.choice(_TEXTS), k=rng.randint(1, 60)))
    name = text.encode(rng.choice(("utf-8", "gb18030")))[: rng.randint(1, length)]
    return rng.choice((name, name, b"filename=1.txt", b"Content-Length=1"))[:length]


def native(rng: random.Random) -> bytes:
    return PREFACE[: rng.randint(1, 8)] if rng.random() < 0.2 else PREFACE + rng.randbytes(rng.randrange(100))


def tls(rng: random.Random) -> bytes:
    return b"\x16\x03" + rng.randbytes(rng.randrange(150))


def sourceid(rng: random.Random) -> bytes:
    blank = rng.choice((b"", b"", b" ", b"\t"))
    case = rng.choice((bytes, bytes.lower, bytes.upper, bytes.title))
    size = b"%d" % rng.choice((0, rng.randint(1, 10**6), rng.randint(1, 10**12)))
    key = rng.choice((b"filename", b"filename", b"filenname"))
    fields = [
        case(b"Content-Length") + blank + b"=" + blank + size,
        blank + case(key) + b"=" + _name(rng, 200),
        case(b"sourceid") + b"=" + blank + (b"" if rng.random() < 0.5 else b"%d" % rng.getrandbits(63)),
    ]
    if rng.random() < 0.1:
        fields.insert(0, b"v=%d" % rng.randrange(100))
    end = rng.choice(_ENDS)
    return b";".join(fields) + end + (b"" if end in (b"%", b"/r/n") else rng.randbytes(rng.randrange(3)))


def struct82(rng: random.Random) -> bytes:
    layout = rng.choice(list(LAYOUTS.values()))
    filesize = rng.choice((rng.randint(1, 100), rng.randint(1, 5 * MIB), rng.randint(1, (1 << 31) - 1)))
    blocknum = rng.choice((-(-filesize // MIB), filesize // MIB + 1))
    name, kind = _name(rng, 50), rng.choice((b"", b"jpg", b"video/mp4", b"application/octet-stream"[:20]))
    header = layout.header(name, kind, filesize, blocknum, rng.randint(0, blocknum))
    return header + rng.randbytes(rng.randrange(100))


def neither(rng: random.Random) -> bytes:
    opening = rng.choice(_OTHERS) + rng.randbytes(FIRST_LENGTH_MAX)
    return opening if opening[0] != PREFACE[0] and opening[:2] != b"\x16\x03" else b"\x01" + opening


SPEAKERS = {
    native: Detection.NATIVE,
    tls: Detection.TLS,
    sourceid: DIALECTS[0],
    struct82: DIALECTS[1],
    neither: Detection.NEITHER,
}


def one(rng: random.Random) -> str:
    """One opening, in pieces; returns what it was."""
    speaker, expected = rng.choice(list(SPEAKERS.items()))
    opening = speaker(rng)
    cuts = sorted({*rng.choices(range(1, len(opening) + 1), k=rng.randrange(4)), len(opening)})
    answers = [detect_from_bytes(opening[:cut][:FIRST_LENGTH_MAX], DIALECTS) for cut in cuts]
    decided = [answer for answer in answers if answer is not Detection.MORE]
    assert decided, f"{opening!r} is {speaker.__name__} and was not recognised"
    assert all(answer is expected for answer in decided), f"{opening!r} is {speaker.__name__}: {answers}"
    return speaker.__name__


def campaign(count: int, seed: int) -> Counter[str]:
    """``count`` openings; one that fails is named by its own seed, `fuzz_detection.py 1 THAT`."""
    seen: Counter[str] = Counter()
    for number in range(seed, seed + count):
        try:
            seen[one(random.Random(number))] += 1
        except AssertionError as error:
            raise AssertionError(f"opening {number}: {error}") from error
    return seen


def main() -> None:
    """Run the campaign of the command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun = time.perf_counter()
    seen = campaign(count, seed)
    took = time.perf_counter() - begun
    print(f"{count} openings from seed {seed}, none misrouted: {dict(seen)}, {took:.1f} s")


if __name__ == "__main__":
    main()
