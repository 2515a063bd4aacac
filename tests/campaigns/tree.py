"""A real source tree there and back: ``diff -r`` is clean, modes and times are equal, the second ``put`` sends no payload.

The tree is one of this machine's (``--tree``), with empty folders and odd names added: ``12:30.log``, names that differ in
case, blanks, 中文, a newline's neighbours, read-only files. Symbolic links and pipes are named and left out.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from .counting_proxy import Proxy
from .tools import (
    DONE,
    FAILED,
    MIB,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    parser,
    require,
)

ODD_NAMES = (
    "12:30.log",
    "Readme",
    "README",
    "readme",
    "a name with blanks ",
    " begins with a blank",
    "中文 文件.txt",
    "Ελληνικά/файл.txt",
    "\u00e9 composed",
    "e\u0301 composed",
    "back\\slash",
    "quote\"'`$(x)",
    "-rf",
    "#hash?query&x=%41",
    ".hidden",
    "..two dots",
    "trailing dot.",
    "CON",
    "emoji 🎈.bin",
    "x" * 255,
)
MODES = (0o644, 0o600, 0o755, 0o444, 0o400, 0o640)
EMPTY_FOLDERS = ("empty", "nested/empty/folders", ".empty and hidden")


def make_tree(tree: Path, real: Path | None) -> int:
    """Make the tree; returns how many files it has.

    Args:
        tree: where; does not exist.
        real: a folder whose files are copied into it, or None.
    """
    tree.mkdir()
    if real is not None:
        subprocess.run(["cp", "-a", str(real), str(tree / "real")], check=True)
        for link in [path for path in (tree / "real").rglob("*") if path.is_symlink()]:
            link.unlink()
    for number, name in enumerate(ODD_NAMES):
        path = tree / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_file(path, 1000 * number, name)
        path.chmod(MODES[number % len(MODES)])
        os.utime(path, ns=(0, 1_234_567_890_123_456_789 + number))
    os.utime(tree / "odd" / "Readme", ns=(0, -(10**9) * 86_400 * 365 + 1))
    make_file(tree / "big enough for blocks.bin", 3 * MIB + 5, "big")
    for name in EMPTY_FOLDERS:
        (tree / name).mkdir(parents=True)
    (tree / "empty").chmod(0o700)
    os.utime(tree / "nested", ns=(0, 987_654_321_000_000_000))
    return sum(path.is_file() for path in tree.rglob("*"))


def require_same_trees(one: Path, other: Path) -> None:
    """The same entries, bytes, modes and times."""
    told = subprocess.run(["diff", "-r", str(one), str(other)], capture_output=True, text=True, check=False)
    require(told.returncode == 0, f"diff -r: {told.stdout[:2000]}{told.stderr[:500]}")
    ours, theirs = _facts(one), _facts(other)
    different = [(name, ours.get(name), theirs.get(name)) for name in ours if ours[name] != theirs.get(name)]
    require(not different, f"{len(different)} entries differ in mode or time: {different[:5]}")
    require(ours.keys() == theirs.keys(), f"more entries: {sorted(theirs.keys() - ours.keys())[:5]}")


def _facts(tree: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in [tree, *tree.rglob("*")]:
        facts = path.lstat()
        found[str(path.relative_to(tree))] = stat.S_IMODE(facts.st_mode), facts.st_mtime_ns
    return found


def run(place: Place, real: Path | None) -> Figures:
    """There and back, a second time, and what is left out."""
    tree = place.folder / "tree"
    files = make_tree(tree, real)
    with Server(place) as server, Proxy(lambda: server.port) as proxy:
        first = place.run("put", tree, proxy.address, "--json").require(DONE)
        require(len(first.objects) == files, f"{len(first.objects)} of {files} files were reported")
        sent = proxy.tally.payload_bytes
        require_same_trees(tree, place.served / "tree")
        proxy.tally.forget()
        again = place.run("put", tree, proxy.address, "--json").require(DONE)
        require(proxy.tally.payload_bytes == 0, f"{proxy.tally.payload_bytes} bytes the second time")
        require(all(one["resumed"] for one in again.objects), "a file was not there already")
        require_same_trees(tree, place.served / "tree")
        back = place.folder / "back"
        place.run("get", proxy.address + "tree", back).require(DONE)
        require_same_trees(tree, back)
        left_out(place, server)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    return {
        "campaign": "tree",
        "files": files,
        "payload_mib": round(sent / MIB, 1),
        "second_payload_bytes": 0,
    }


def left_out(place: Place, server: Server) -> None:
    """Links and pipes are named and left out; a name that is no UTF-8 fails alone, the rest goes."""
    odd = place.folder / "left out"
    odd.mkdir()
    make_file(odd / "goes.txt", 100, "goes")
    (odd / "a link").symlink_to("goes.txt")
    (odd / "a broken link").symlink_to("nowhere")
    os.mkfifo(odd / "a pipe")
    told = place.run("put", odd, server.address).require(DONE)
    for name, kind in (("a link", "symbolic link"), ("a broken link", "symbolic link"), ("a pipe", "pipe")):
        require(f"{name}: a {kind}" in told.err, f"{name} is not named: {told.err}")
    (odd / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"coffee")
    told = place.run("put", odd, server.address).require(FAILED)
    require("not valid UTF-8" in told.err, f"the name is not refused: {told.err}")
    stored = sorted(path.name for path in (place.served / "left out").iterdir())
    require(stored == ["goes.txt"], f"stored: {stored}")
    shutil.rmtree(odd)


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--tree", type=Path, default=Path("/usr/lib/python3"), help="the real tree")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.tree))


if __name__ == "__main__":
    sys.exit(main())
