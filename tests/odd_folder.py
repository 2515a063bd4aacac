"""A folder full of odd things, for whatever lists, reads, sends or removes folders.

    odd = fill(folder)                    everything at once; the same each time
    with Churn(folder): …                 and files that vanish, change and become something else meanwhile
    remove(folder)                        takes away what ``shutil.rmtree`` cannot

``fill`` makes what the system lets it make: devices and set-user-id files want root, and file systems refuse some times and
names. What could not be made is in ``odd.left_out``.
"""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

S = 1_000_000_000
TIMES_NS = {
    "1901": -2_147_483_648 * S,
    "1960": -315_619_200 * S,
    "epoch": 0,
    "2038": 2_147_483_648 * S,
    "2106": 4_294_967_296 * S,
    "2262-last": (1 << 63) - 1,
    "2262-after": 1 << 63,
    "2300": 10_413_792_000 * S,
    "2446": 15_000_000_000 * S,
    "1677-before": -(1 << 63) - S,
    "far-future": 1 << 80,
    "far-past": -(1 << 80),
}
NAMES = [
    b"\xff\xfe", b"latin-\xe9.txt", b"half-\xe4\xb8", b"surrogate-\xed\xa0\x80",
    b"line\nbreak", b"tab\there", b"\x1b[31mred", b"bell\x07", b"delete\x7f", b"\xc2\x9bcsi",
    "direction\u202egpj.exe".encode(), "line\u2028separator".encode(), "\ufeffbom".encode(), "zero\u200bwidth".encode(),
    b" ", b" leading", b"trailing ", b"dot.", b"...", b"-rf", b"--help", b"~", b"$HOME", b"`id`", b"a;b", b"a%2fb", b"%00",
    b"a\\b", b"con", b"nul.txt", b"a:b", b"x" * 255, "中".encode() * 85, b"e\xcc\x81", "\u00e9".encode(), b"CASE", b"case",
    b".BLOCKPROTO", b".Blockproto ", ".blockproto\u200b".encode(), b".blockproto.", b".blockproto-part",
    b"a.blockproto-part",
    b".blockproto-0123456789abcdef.part", b"a.blockproto-ledger", b"a.blockproto-lock", b".hidden", b"a (1).txt",
    b"a (2).txt",
]  # fmt: skip
"""Names that a file system takes and that a program may not expect."""

DEPTH = 600
"""Folders below each other: more than names have components, and more than half of what Python's stack takes."""

BOTTOMLESS = 40
"""Folders of 200 bytes each: longer than any path that a system call takes."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Odd:
    """What was made.

    Attributes:
        folder: where.
        good: names of files that are not odd in themselves, and their content: these must be served and travel.
        left_out: what could not be made here, and why.
    """

    folder: Path
    good: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def make(self, what: str, work: Callable[[], object]) -> None:
        """Make one thing, if the system lets us."""
        try:
            work()
        except (OSError, OverflowError) as error:
            self.left_out.append(f"{what}: {error}")


def fill(folder: Path, *, sparse: int = 1 << 40, depth: int = DEPTH) -> Odd:
    """Fill ``folder``, which exists, with odd things.

    Args:
        folder: where; on the file system whose oddities are wanted.
        sparse: size in bytes of a file that is nothing but a hole; 0: none (whoever sends it reads all of it).
        depth: how many folders are below each other.
    """
    odd = Odd(folder)
    for number in range(3):
        for name in (f"good-{number}.txt", f"sub/good-{number}.bin"):
            (folder / name).parent.mkdir(exist_ok=True)
            odd.good[name] = random.Random(name).randbytes(1000 * number)
            (folder / name).write_bytes(odd.good[name])
    _make_times(odd)
    _make_names(odd)
    _make_kinds(odd)
    _make_modes(odd)
    odd.make("deep", lambda: chain(folder, [b"deep", *[b"d"] * (depth - 1)], b"bottom"))
    odd.make("512 components", lambda: chain(folder, [b"a"] * 511, b"a"))
    odd.make(
        "over PATH_MAX",
        lambda: chain(folder, [bytes([97 + i % 26]) * 200 for i in range(BOTTOMLESS)], b"end"),
    )
    if sparse:
        odd.make("sparse", lambda: _sparse(folder / "sparse", sparse))
    return odd


def chain(folder: Path, names: list[bytes], last: bytes) -> None:
    """Folders below each other, however deep, and a file in the last one."""
    fd = os.open(folder, _FOLDER)
    try:
        for name in names:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
            below = os.open(name, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = below
        with open(os.open(last, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd), "wb") as file:
            file.write(b"at the bottom")
    finally:
        os.close(fd)


def _make_times(odd: Odd) -> None:
    (odd.folder / "times" / "folder").mkdir(parents=True)
    for name, mtime_ns in TIMES_NS.items():
        path = odd.folder / "times" / name
        path.write_bytes(name.encode())
        odd.good[f"times/{name}"] = name.encode()
        odd.make(f"time {name}", lambda path=path, mtime_ns=mtime_ns: os.utime(path, ns=(mtime_ns, mtime_ns)))  # type: ignore[misc]
    odd.make("time of a folder", lambda: os.utime(odd.folder / "times" / "folder", ns=(0, 1 << 64)))


def _make_names(odd: Odd) -> None:
    above = os.fsencode(odd.folder) + b"/names"
    os.mkdir(above)
    for name in NAMES:
        odd.make(f"name {name!r}", lambda name=name: _write(above + b"/" + name))  # type: ignore[misc]
        odd.make(f"folder {name!r}", lambda name=name: _write(above + b"/in " + name[:250] + b"/" + name))  # type: ignore[misc]


def _write(path: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(path[-20:])


def _make_kinds(odd: Odd) -> None:
    kinds = odd.folder / "kinds"
    kinds.mkdir()
    odd.make("pipe", lambda: os.mkfifo(kinds / "pipe"))
    odd.make("socket", lambda: _socket(kinds / "socket"))
    odd.make("null", lambda: os.mknod(kinds / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    odd.make("disk", lambda: os.mknod(kinds / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0)))
    for name, target in {
        "dangling": "nowhere",
        "loop-a": "loop-b",
        "loop-b": "loop-a",
        "self": "self",
        "dot": ".",
        "above": "../..",
        "root": "/",
        "shadow": "/etc/shadow",
        "good": "../good-1.txt",
        "long": "x/" * 2000,
    }.items():
        odd.make(f"link {name}", lambda name=name, target=target: (kinds / name).symlink_to(target))  # type: ignore[misc]
    odd.make("hard link", lambda: os.link(odd.folder / "good-1.txt", kinds / "hard"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        fd = os.open(path.parent, _FOLDER)
        try:
            sock.bind(f"/proc/self/fd/{fd}/{path.name}")  # the path itself may be too long for a socket
        finally:
            os.close(fd)


def _make_modes(odd: Odd) -> None:
    modes = odd.folder / "modes"
    modes.mkdir()
    for mode in (0o000, 0o111, 0o222, 0o444, 0o4755, 0o2755, 0o1777, 0o7777):
        path = modes / f"{mode:04o}"
        path.write_bytes(b"mode")
        odd.make(path.name, lambda path=path, mode=mode: path.chmod(mode))  # type: ignore[misc]
        inside = modes / f"folder-{mode:04o}"
        inside.mkdir()
        (inside / "file").write_bytes(b"inside")
        odd.make(inside.name, lambda inside=inside, mode=mode: inside.chmod(mode))  # type: ignore[misc]


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def remove(folder: Path) -> None:
    """Remove ``folder`` and all in it, whatever it is."""
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], capture_output=True, timeout=120, check=False)
    subprocess.run(["rm", "-rf", "--", str(folder)], check=True, timeout=120)


class Churn:
    """Makes, changes, replaces and removes things in a folder, in a thread, until the ``with`` block ends.

    Args:
        folder: where; a folder ``churn`` is made in it.
        seed: what happens in which order.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.steps = 0
        self._folder = folder / "churn"
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Churn:
        self._folder.mkdir(exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.0005):
            self.steps += 1
            with suppress(OSError):
                self._step(self._folder / str(self._random.randrange(20)))

    def _step(self, path: Path) -> None:
        what = self._random.randrange(8)
        if what == 0:
            path.write_bytes(self._random.randbytes(self._random.choice([0, 10, 70_000, 1_100_000])))
        elif what == 1:
            path.unlink()
        elif what == 2:
            path.mkdir()
            (path / "inside").write_bytes(b"x")
        elif what == 3:
            path.symlink_to(self._random.choice(["..", "nowhere", path.name]))
        elif what == 4:
            path.chmod(self._random.choice([0o000, 0o644, 0o755]))
        elif what == 5:
            path.rename(self._folder / str(self._random.randrange(20)))
        elif what == 6:
            os.utime(path, ns=(0, self._random.choice(list(TIMES_NS.values()))))
        else:
            (path / "inside").unlink(missing_ok=True)
            path.rmdir()
