"""A file that changes while it is sent is refused, never spliced; one that changed between two runs arrives as it is now.

The proxy holds the upload in the middle, the file is changed, the upload goes on. It ends with exit code 1 and says why;
there is no file on the server, and nothing of it is kept that nobody could ever finish. The same command again sends the
file as it is then. Where only the inode tells of a change (its modification time was set back, or it was a mere chmod),
the file is read again and arrives as it is.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from .counting_proxy import Proxy
from .tools import (
    DONE,
    FAILED,
    MIB,
    Figures,
    Place,
    Ran,
    Server,
    campaign,
    make_file,
    parser,
    partials,
    require,
    require_same,
    unfinished,
    wait_until,
)

FILESIZE = 48 * MIB + 99
"""Enough that its end is read after the change: what lies between client and proxy then is a few MiB."""
HELD_AT = 20 * MIB + 77

Change = Callable[[Path], None]


def overwrite_the_beginning(path: Path) -> None:
    """Other bytes where the upload has been already."""
    with path.open("r+b") as file:
        file.write(random.Random(7).randbytes(3 * MIB))


def append(path: Path) -> None:
    """More bytes at the end."""
    with path.open("ab") as file:
        file.write(b"and more")


def truncate(path: Path) -> None:
    """Fewer bytes at the end."""
    os.truncate(path, FILESIZE - 10 * MIB)


def overwrite_and_set_the_time_back(path: Path) -> None:
    """Other bytes, and the modification time of before: only the inode's own time tells."""
    facts = path.stat()
    overwrite_the_beginning(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def forbid(path: Path) -> None:
    """The same bytes with other rights."""
    path.chmod(0o400)


CHANGES: tuple[Change, ...] = (overwrite_the_beginning, append, truncate)
ONLY_THE_INODE_TELLS: tuple[Change, ...] = (overwrite_and_set_the_time_back, forbid)


def changes_while_sent(place: Place, server: Server, proxy: Proxy, change: Change) -> None:
    """Change it in the middle: refused; then sent as it is."""
    source = make_file(place.folder / f"{change.__name__}.bin", FILESIZE, change.__name__)
    told = _changed_in_the_middle(place, proxy, source, change).require(FAILED)
    require("chang" in told.err or "shorter" in told.err, f"what the client says: {told.err}")
    require(not (place.served / source.name).exists(), "there is a file of two versions")
    require(not partials(place.served), f"partials that nobody can finish: {partials(place.served)}")
    require(not unfinished(server), f"unfinished: {unfinished(server)}")
    place.run("put", source, proxy.address).require(DONE)
    require_same(place.served / source.name, source)


def only_the_inode_tells(place: Place, server: Server, proxy: Proxy, change: Change) -> None:
    """Change it in the middle without a trace in size and time: it arrives as it is, or not at all."""
    source = make_file(place.folder / f"{change.__name__}.bin", FILESIZE, change.__name__)
    told = _changed_in_the_middle(place, proxy, source, change).require(DONE)
    require_same(place.served / source.name, source)
    sent = told.objects[-1]["payload_bytes_sent"]
    require(sent == proxy.tally.payload_bytes, f"{proxy.tally.payload_bytes} bytes passed: {sent}")


def _changed_in_the_middle(place: Place, proxy: Proxy, source: Path, change: Change) -> Ran:
    gate = proxy.hold(payload_bytes=HELD_AT)
    client = place.start("put", source, proxy.address, "--json")
    gate.wait()
    change(source)
    proxy.release()
    ran = client.end()
    proxy.wait_idle()
    return ran


def replaced_while_sent(place: Place, proxy: Proxy) -> None:
    """Another file takes its name by a rename: the one that was opened is sent, whole."""
    source = make_file(place.folder / "replaced.bin", FILESIZE, "replaced")
    before = place.folder / "as it was"
    before.hardlink_to(source)
    gate = proxy.hold(payload_bytes=HELD_AT)
    client = place.start("put", source, proxy.address, "--json")
    gate.wait()
    make_file(place.folder / "new", FILESIZE, "new").rename(source)
    proxy.release()
    client.end().require(DONE)
    require_same(place.served / source.name, before)
    receipt = place.run("put", source, proxy.address, "--json").require(DONE).objects[-1]
    require_same(place.served / receipt["stored_as"], source)


def changed_between_runs(place: Place, proxy: Proxy) -> None:
    """Blocks that the server holds are not those of the file any more, by all it says of itself: they are repaired."""
    source = make_file(place.folder / "between.bin", FILESIZE, "between")
    gate = proxy.hold(payload_bytes=HELD_AT)
    client = place.start("put", source, proxy.address)
    gate.wait()
    wait_until(lambda: proxy.tally.acked_bytes() >= 3 * MIB, "some blocks that are held")
    client.kill()
    proxy.release()
    proxy.wait_idle()
    overwrite_and_set_the_time_back(source)
    receipt = place.run("put", source, proxy.address, "--json").require(DONE).objects[-1]
    require(receipt["resumed"], f"it was not resumed: {receipt}")
    require_same(place.served / source.name, source)


def run(place: Place, changes: tuple[Change, ...] = CHANGES + ONLY_THE_INODE_TELLS) -> Figures:
    """Every case on one server."""
    with Server(place) as server, Proxy(lambda: server.port) as proxy:
        for change in changes:
            proxy.tally.forget()
            case = only_the_inode_tells if change in ONLY_THE_INODE_TELLS else changes_while_sent
            case(place, server, proxy, change)
        for other in (replaced_while_sent, changed_between_runs):
            proxy.tally.forget()
            other(place, proxy)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    return {"campaign": "changing", "changes": [change.__name__ for change in changes]}


def main() -> int:
    """The campaign's command line."""
    return campaign(parser(__doc__).parse_args(), run)


if __name__ == "__main__":
    sys.exit(main())
