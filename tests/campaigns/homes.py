"""The same folder sent from several homes: one copy of each file, and after the first home digests travel, not payload.

Each home is an installation of its own: nothing is remembered, no secret is shared. Each sends the tree in another way in
which the same files come again: as it is, copied with new times and inodes, under another spelling of the host, with
``--if-exists refuse``, and with ``update``. The proxy on the server's side counts what crosses the wire.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from .counting_proxy import Proxy
from .tools import (
    COMMAND,
    DONE,
    Figures,
    Place,
    Ran,
    Running,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
)

PAYLOAD_SHARE_MAX = 0.02
"""Of the bytes of the tree, what may cross the wire as payload from every home but the first."""
BIG_EACH = 500
"""One file of so many has several blocks."""
WAYS = ("as it is", "copied", "another host", "refuse", "update")


def make_tree(tree: Path, files: int, seed: int) -> int:
    """Make a tree of so many files, most of them small, in folders of a hundred; returns its bytes."""
    draw = random.Random(seed)
    total = 0
    for at in range(files):
        folder = tree / f"{at // 100:03} folder"
        folder.mkdir(parents=True, exist_ok=True)
        big = at % BIG_EACH == BIG_EACH - 1
        size = draw.randint(2 << 20, 3 << 20) if big else int(2 ** draw.uniform(0, 17))
        make_file(folder / f"{at:05}.bin", size, (seed, at))
        total += size
    return total


def run(place: Place, files: int, homes: int, seed: int) -> Figures:
    """Send a tree of ``files`` from ``homes``; raises Broken if a file is there twice, or too much travels again."""
    tree = place.folder / "tree"
    total = make_tree(tree, files, seed)
    rows = []
    with Server(place) as server, Proxy(lambda: server.port) as proxy:
        for at in range(homes):
            way = WAYS[at % len(WAYS)]
            sent = _send(place, proxy, tree, at, way)
            proxy.wait_idle()
            payload = proxy.tally.payload_bytes
            wire = sum(line.bytes_forth for line in proxy.lines)
            back = sum(line.bytes_back for line in proxy.lines)
            proxy.tally.forget()
            proxy.lines.clear()
            outcomes = Counter(one["outcome"] for one in sent.objects)
            told = sum(one["payload_bytes_sent"] for one in sent.objects)
            rows.append(
                {"way": way, "payload": payload, "told": told, "forth": wire, "back": back, **outcomes}
            )
            require(told == payload, f"{told} bytes of payload are told, {payload} crossed the wire")
            require(sum(outcomes.values()) == files, f"{way}: {outcomes} of {files} files")
            if at:
                require(payload <= PAYLOAD_SHARE_MAX * total, f"{way}: {payload} bytes of payload of {total}")
        require(server.stop() == DONE, "the server did not end in order")
    sources = sorted(path.relative_to(place.folder) for path in tree.rglob("*") if path.is_file())
    stored = sorted(
        path.relative_to(place.served)
        for path in place.served.rglob("*")
        if path.is_file() and ".blockproto" not in path.parts
    )
    require(stored == sources, f"{len(stored)} files are there, not one of each of {len(sources)}")
    for path in sources:
        require_same(place.served / path, place.folder / path)
    place.require_clean()
    return {"campaign": "homes", "files": files, "bytes": total, "homes": rows}


def _send(place: Place, proxy: Proxy, tree: Path, at: int, way: str) -> Ran:
    """Run ``put`` from a home of its own; what it sends is called as it is here."""
    home = place.folder / f"home {at}"
    home.mkdir()
    source, address, options = tree, proxy.address, ["--json"]
    if way == "copied":
        source = shutil.copytree(tree, home / tree.name, copy_function=shutil.copyfile)
    elif way == "another host":
        address = address.replace("127.0.0.1", "localhost")
    elif way in ("refuse", "update"):
        options += ["--if-exists", way]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("BLOCKPROTO_", "XDG_"))}
    arguments = [*COMMAND, "put", *options, str(source), address]
    return Running(arguments, {**env, "HOME": str(home)}).end().require(DONE)


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--files", type=int, default=5000)
    options.add_argument("--homes", type=int, default=5)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.files, given.homes, given.seed))


if __name__ == "__main__":
    sys.exit(main())
