"""Names that want to leave the folder, and links that appear under way: nothing outside may change or be told.

    cd tests; python -m campaigns.attack_names [--swaps 100000] [--every 1]

A served folder stands beside a canary: files that no client may read, change, remove or add to. First every hostile name is
said in each message that has a name, then each code point as a name of one character. Then somebody exchanges, as fast as it
can, a folder in the path and the target itself with links to the canary, while files are uploaded, read, listed and removed
there. Kept: the canary is the same, byte by byte and inode by inode; not one of its bytes or names was sent; and what lies
in the served folder afterwards has the name that was asked for.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.store import IfExists
from blockproto.wire import Block, Committed, Fetch, List, ListKind, Message, Remove, RemoveKind, Result

from .pipeline import Asked, Pipeline
from .tools import DONE, Figures, Place, Server, campaign, parser, require

SECRET = b"THE CANARY'S OWN WORDS"
CANARY_NAME = "known-to-the-canary-only"
_EXCHANGE = 2
_HERE = -100  # AT_FDCWD
_libc = ctypes.CDLL(None, use_errno=True)

_UP = (
    "..", "../", "./..", "..\\", "....//", "..;/", "%2e%2e", "%2e%2e%2f", "..%2f", "..%5c", "%252e%252e%252f",
    "..%c0%af", "..%u2215", "\uff0e\uff0e", "\u2025", "..\u2215", "..\u2044", "..\u29f8", ".\u200d.", "\u200b..",
    "..\ufeff", "..\0", "..\n", "..\x1b[2J", "..\udcff", "..\udcc0\udcaf", "\udcc0\udcae\udcc0\udcae", "..\u0338",
    "..\u202e", ". .", "..  ", ".. ", "...", "..../", "~", "~root", "-", "--", "$HOME", "`id`", "C:", "\\\\?\\C:",
    "\\\\host\\share", "//host/share", "/proc/self/root", "/proc/self/cwd", "/dev/fd/3", "file://", ".blockproto",
    ".BLOCKPROTO", ".blockproto\u200b", ".blockproto.",
)  # fmt: skip
_WANTED = ("canary/secret.txt", "canary", "etc/passwd", ".ssh/authorized_keys", "tokens.json", "partials", "")
_SHAPES = (
    "{up}/{wanted}", "{up}{wanted}", "a/{up}/{wanted}", "a/{up}/{up}/{wanted}", "/{up}/{wanted}", "a//{up}/{wanted}",
    "{up}/{up}/{up}/{up}/{wanted}", "a/b/c/{up}/{up}/{up}/{up}/{wanted}", "{wanted}/{up}", "./{up}/{wanted}",
)  # fmt: skip
_LONG = (
    "x" * 255,
    "x" * 256,
    "x/" * 511 + "x",
    "x/" * 512,
    "é" * 127,
    "é" * 128,
    "../" * 340 + "x",
    "a/" + "../" * 300 + "x",
)


def hostile_names() -> list[str]:
    """More than three thousand names that somebody once got out with, or might."""
    made = (shape.format(up=up, wanted=wanted) for shape, up, wanted in product(_SHAPES, _UP, _WANTED))
    return sorted({*made, *_UP, *_LONG, ""}, key=ascii)


def asked_about(name: str, number: int) -> Iterator[Asked]:
    """Each message that has a name in it."""
    yield block(name, number, b"hostile")
    yield Fetch(name), b""
    yield List(ListKind.FILES, name=name, recursive=True), b""
    yield List(ListKind.FILES, name=name, exact=True, b3sum=True), b""
    yield Remove(RemoveKind.FILE, filename=name, recursive=False), b""


def block(name: str, number: int, content: bytes) -> Asked:
    """A whole file in one frame."""
    message = Block(
        sourceid=number.to_bytes(16, "big"),
        filesize=len(content),
        blocknum=1,
        blockno=0,
        position=0,
        filename=name,
        filetype="text/plain",
        digest=digest_of(content),
        commit=True,
        if_exists=IfExists.REPLACE,
    )
    return message, content


# ---- the canary


class Canary:
    """A folder beside the served one, with what nobody may see."""

    def __init__(self, place: Place) -> None:
        self.folder = place.folder / "canary"
        (self.folder / "deep").mkdir(parents=True)
        for name in ("secret.txt", "target", "victim", CANARY_NAME, "deep/secret.txt", "deep/target"):
            (self.folder / name).write_bytes(SECRET)
        self._before = self._picture()

    def require_untouched(self) -> None:
        """It is as it was."""
        require(self._picture() == self._before, "the canary was touched")

    def _picture(self) -> dict[str, tuple[int, int, int, bytes]]:
        picture = {}
        for path in sorted([self.folder, *self.folder.rglob("*")]):
            found = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            picture[str(path)] = (found.st_ino, found.st_mode, found.st_mtime_ns, content)
        return picture


# ---- names


def say_names(pipeline: Pipeline, names: Iterable[str]) -> dict[str, int]:
    """Say each name in each message; how often it was taken, and refused."""
    listed = list(names)
    asked = [one for number, name in enumerate(listed) for one in asked_about(name, number)]
    counts = {"taken": 0, "refused": 0}
    for (message, _), answer in zip(asked, pipeline.ask(asked), strict=True):
        taken = isinstance(answer, Committed)
        if taken:
            assert isinstance(message, Block)
            require(SafeName.parse(message.filename).text == answer.stored_as, f"{answer} for {message}")  # type: ignore[union-attr]
        counts["taken" if taken else "refused"] += isinstance(message, Block)
        if isinstance(answer, Result):
            require(CANARY_NAME not in repr(answer), f"{message!r} told the canary's names")
    return counts


def code_points(every: int) -> Iterator[str]:
    """Each ``every``-th code point, surrogates too (as the bytes that would stand for them)."""
    for point in range(0, sys.maxunicode + 1, every):
        yield chr(point).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def say_code_points(pipeline: Pipeline, every: int) -> int:
    """Read and remove what has one character as its name; how many there were."""
    said = 0
    asked: list[tuple[Message, bytes]] = []
    for character in code_points(every):
        asked.append((Fetch(character), b""))
        said += 1
        if len(asked) == 20_000:
            list(pipeline.ask(asked))
            asked.clear()
    list(pipeline.ask(asked))
    return said


# ---- links


def exchange(one: Path, other: Path) -> None:
    """Give two names each other's file, in one step."""
    if _libc.renameat2(_HERE, bytes(one), _HERE, bytes(other), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number != 2:  # one of them was just removed or replaced by the server
            raise OSError(number, os.strerror(number))


class Swapper:
    """Exchanges a folder of the path, and the target in it, with links to the canary: in a process of its own."""

    def __init__(self, served: Path, canary: Path, swaps: int) -> None:
        self._room, self._trap = served / "room", served / "trap"
        (self._room / "deep").mkdir(parents=True)
        self._trap.symlink_to(canary, target_is_directory=True)
        (self._room / "deep" / "target").write_bytes(b"inside")
        (self._room / "lure").symlink_to(canary / "target")
        self._process = multiprocessing.get_context("fork").Process(
            target=self._swap, args=(swaps,), daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._process.start()

    @property
    def swaps_still(self) -> bool:
        """Whether it has not ended; raises if it failed."""
        if self._process.is_alive():
            return True
        require(self._process.exitcode == 0, "swapping failed")
        return False

    def _swap(self, swaps: int) -> None:
        for number in range(swaps):
            exchange(self._room, self._trap)
            if number % 4 == 1 and not self._room.is_symlink():
                exchange(self._room / "deep" / "target", self._room / "lure")
            os.sched_yield()


def swap_under_way(pipeline: Pipeline, swapper: Swapper, rng: random.Random) -> dict[str, int]:
    """Use the paths that are being swapped until the swapper has ended."""
    answered = {"taken": 0, "refused": 0}
    number = 1 << 64
    swapper.start()
    while swapper.swaps_still:
        asked: list[Asked] = []
        for _ in range(40):
            number += 1
            name = rng.choice(
                ("target", "deep/target", f"deep/new/{number}", f"{number % 50}", "deep/secret.txt")
            )
            asked.append(block(f"room/{name}", number, b"from the client"))
            asked.append(
                (Fetch(f"room/{rng.choice(('secret.txt', 'deep/secret.txt', 'target', 'lure'))}"), b"")
            )
            asked.append((Remove(RemoveKind.FILE, filename="room/victim"), b""))
            asked.append((Remove(RemoveKind.FILE, filename=f"room/{name}"), b""))
        asked.append((List(ListKind.FILES, name="room", recursive=True), b""))
        for answer in pipeline.ask(asked):
            answered["taken" if isinstance(answer, Committed) else "refused"] += 1
            require(CANARY_NAME not in repr(answer), "the canary's names were told")
        require(SECRET not in pipeline.payload, "the canary's bytes were sent")
        pipeline.payload.clear()
    return answered


def run(place: Place, swaps: int, every: int, seed: int, share: int = 1) -> Figures:
    """Names (one in ``share`` of them), code points and links against one server."""
    canary = Canary(place)
    names = hostile_names()[::share]
    with Server(place) as server, Pipeline(server.port) as pipeline:
        counts = say_names(pipeline, names)
        said = say_code_points(pipeline, every)
        canary.require_untouched()
        swapper = Swapper(place.served, canary.folder, swaps)
        answered = swap_under_way(pipeline, swapper, random.Random(seed))
        require(server.stop() == DONE, "the server did not end in order")
    canary.require_untouched()
    place.require_quiet_log()
    require(answered["taken"] > 0, "nothing was uploaded while links were swapped")
    return {
        "campaign": "hostile names and links",
        "names": len(names),
        "names_taken": counts["taken"],
        "code_points": said,
        "swaps": swaps,
        "while_swapping": answered,
    }


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--swaps", type=int, default=100_000)
    options.add_argument("--every", type=int, default=1, help="only each so-manieth code point")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.swaps, given.every, given.seed))


if __name__ == "__main__":
    sys.exit(main())
