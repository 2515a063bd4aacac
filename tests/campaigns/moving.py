"""An address that changes: the client's own is taken away in the middle of a transfer, and it gets another one.

    network namespace of the client: blockproto put or get, 10.77.0.2 → 10.77.0.3
        ↕ a pair of virtual Ethernet devices
    network namespace of the campaign: counting proxy on 10.77.0.1 → blockproto serve on the loopback

Nobody resets anything: packets of the old address are lost, as when a phone leaves a wireless network. The client has to
notice by its own PING (BP1-END-016), dial from the new address, take over, and send nothing again that was acknowledged.
Needs root, and a kernel that allows network namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blockproto.connection.keepalive import ACTIVE_S
from blockproto.connection.liveness import ANSWER_S

from .clocks import hurried
from .counting_proxy import Proxy, Referee
from .tools import (
    COMMAND,
    DONE,
    MIB,
    Figures,
    Place,
    Running,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
    wait_until,
)

HERE, BEFORE, AFTER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
FILESIZE = 96 * MIB + 321
MOVES_AT = 24 * MIB + 5
INSIDE = "--inside"


class CannotMove(Exception):
    """There are no network namespaces to be had; the text says what is missing."""


def require_namespaces() -> None:
    """Raises CannotMove unless this campaign can run here."""
    if os.geteuid() != 0:
        raise CannotMove("needs root for network namespaces")
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            raise CannotMove(f"needs the program {program} (Debian: util-linux, iproute2)")
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "name", "other"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        raise CannotMove(f"network namespaces are not allowed here: {tried.stderr.strip()}")


def inside(*options: str) -> list[str]:
    """The command that runs this campaign in a network namespace of its own."""
    assert __spec__ is not None
    return ["unshare", "--net", sys.executable, "-m", __spec__.name, *options, INSIDE]


class Elsewhere:
    """The client's network namespace, joined to this one; inside of a namespace of the campaign's own."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.enter = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(holder.pid))
        _ip("addr", "add", f"{HERE}/24", "dev", "near")
        _ip("link", "set", "near", "up")
        self.ip("addr", "add", f"{BEFORE}/24", "dev", "far")
        self.ip("link", "set", "far", "up")

    def ip(self, *arguments: str) -> None:
        """The command ``ip`` there."""
        subprocess.run([*self.enter, "ip", *arguments], check=True)

    def move(self) -> None:
        """Take the address away, and give another one."""
        self.ip("addr", "del", f"{BEFORE}/24", "dev", "far")
        self.ip("addr", "add", f"{AFTER}/24", "dev", "far")


@contextmanager
def _elsewhere() -> Iterator[Elsewhere]:
    ready, tell = os.pipe()
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", f"echo >&{tell}; exec sleep infinity"], pass_fds=[tell]
    )
    os.close(tell)
    try:
        os.read(ready, 1)
        yield Elsewhere(holder)
    finally:
        os.close(ready)
        subprocess.run(["ip", "link", "del", "near"], check=False)
        holder.kill()
        holder.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _once(place: Place, elsewhere: Elsewhere, way: str, times: int) -> Figures:
    """One transfer whose client moves; ``way`` is ``up`` or ``down``, its clock runs so many times as fast."""
    here, there = place.folder / "film.bin", place.served / "film.bin"
    make_file(here if way == "up" else there, FILESIZE, way)
    referee = Referee()
    with Server(place) as server, Proxy(lambda: server.port, referee, HERE) as proxy:
        address = f"bp://{HERE}:{proxy.port}/"
        what = ("put", str(here), address) if way == "up" else ("get", f"{address}film.bin", str(here))
        gate = proxy.hold(payload_bytes=MOVES_AT)
        env = {**place.env, **(hurried(times) if times > 1 else {})}
        client = Running([*elsewhere.enter, *COMMAND, *what, "--insecure"], env)
        wait_until(lambda: gate.reached.is_set() or client.ended, "the first bytes")
        if client.ended:
            client.end().require(DONE)
        wait_until(referee.acked_bytes, "the first acknowledgement")
        elsewhere.move()
        proxy.release()
        moved_at = time.monotonic()
        wait_until(lambda: len(proxy.lines) > 1 or client.ended, "a connection from the new address")
        noticed_s = time.monotonic() - moved_at
        client.end().require(DONE)
        took_s = time.monotonic() - moved_at
        proxy.cut_lines()
        proxy.wait_idle()
        require(server.stop(signal.SIGTERM) == DONE, "the server did not end in order")
    require_same(there, here)
    require(not referee.again, f"{way}: acknowledged bytes passed again: {referee.again}")
    place.require_clean()
    return {
        "noticed_s": round(noticed_s, 2),
        "done_s": round(took_s, 2),
        "connects": len(proxy.lines),
        "repeated_mib": round(referee.repeated / MIB, 3),
        "again": sum(referee.again.values()),
    }


def run(place: Place, ways: Sequence[str], times: int) -> Figures:
    """Up and down, one after the other; to be called in a network namespace of its own. Raises NoFaketime."""
    figures: Figures = {"campaign": "moving", "on_time_s": ACTIVE_S + ANSWER_S}
    for way in ways:
        with _elsewhere() as elsewhere:
            figures[way] = _once(Place(place.folder / way), elsewhere, way, times)
    return figures


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument(
        INSIDE, action="store_true", help="this process is in a namespace of its own already"
    )
    options.add_argument("--ways", nargs="+", choices=("up", "down"), default=("up", "down"))
    options.add_argument("--times", type=int, default=1, help="the client's clock runs so many times as fast")
    given = options.parse_args()
    if given.inside:
        return campaign(given, lambda place: run(place, given.ways, given.times))
    try:
        require_namespaces()
    except CannotMove as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(inside(*sys.argv[1:]), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
