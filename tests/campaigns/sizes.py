"""Sizes at the edges there and back, streams without a known end, and several clients at once.

0, 1, 1 MiB − 1, 1 MiB, 1 MiB + 1 and where the protocol changes its mind; stdin of the same sizes; two clients with
different files and with the same one; the same file twice; another file of the same name under each ``--if-exists``.
"""

from __future__ import annotations

import sys
import time

from .tools import (
    DONE,
    FAILED,
    MIB,
    Figures,
    Place,
    Server,
    b3sum,
    campaign,
    make_file,
    parser,
    require,
    require_same,
)

SIZES = (0, 1, 65_535, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 12_345)
STREAMED = (0, 1, MIB, MIB + 1, 3 * MIB)


def there_and_back(place: Place, server: Server) -> None:
    """Every size up in one command and down in another; the digests in the receipts are those of the files."""
    sources = [make_file(place.folder / f"{size} bytes.bin", size, size) for size in SIZES]
    receipts = place.run("put", *sources, server.address, "--json").require(DONE).objects
    by_name = {receipt["filename"]: receipt for receipt in receipts}
    back = place.folder / "back"
    back.mkdir()
    place.run("get", *(server.address + source.name for source in sources), back).require(DONE)
    for source in sources:
        require_same(place.served / source.name, source)
        require_same(back / source.name, source)
        receipt, digest = by_name[source.name], b3sum(source)
        require(receipt["filesize"] == source.stat().st_size, f"the receipt's size: {receipt}")
        require(receipt["b3sum"] in (None, digest), f"the receipt's b3sum: {receipt}")
        require(receipt["blocknum"] > 1 or receipt["b3sum"] == digest, f"no b3sum of one block: {receipt}")
    big = sources[-1]
    known = place.run("stat", server.address + big.name, "--b3sum", "--json").require(DONE).objects[-1]
    require(known["b3sum"] == b3sum(big), f"stat --b3sum: {known}")


def streams(place: Place, server: Server) -> None:
    """stdin of every size: the end shows itself, also where it falls between two blocks."""
    sources = [make_file(place.folder / f"streamed {size}", size, ("stream", size)) for size in STREAMED]
    running = []
    for source in sources:
        with source.open("rb") as content:
            running.append(place.start("put", "-", server.address, "--as", source.name, stdin=content))
    for source, command in zip(sources, running, strict=True):
        command.end().require(DONE)
        require_same(place.served / source.name, source)


def clients_at_once(place: Place, server: Server) -> None:
    """Two clients with different files; then two with the same file: one of them may be told to leave it to the other."""
    sources = [
        make_file(place.folder / f"at once {number}", 20 * MIB + number, number) for number in range(2)
    ]
    running = [place.start("put", source, server.address) for source in sources]
    for source, command in zip(sources, running, strict=True):
        command.end().require(DONE)
        require_same(place.served / source.name, source)
    same = make_file(place.folder / "the same at once", 20 * MIB, "same")
    ended = [command.end() for command in [place.start("put", same, server.address) for _ in range(2)]]
    require(DONE in {ran.status for ran in ended}, f"neither is done: {ended}")
    for ran in ended:
        require(ran.status == DONE or "took this upload over" in ran.err, f"neither done nor told: {ran}")
    require_same(place.served / same.name, same)
    _require_names(place, "the same at once", [same.name])


def twice(place: Place, server: Server) -> None:
    """The same file again is there already: no second one, nothing sent."""
    for size in (4000, 3 * MIB):
        source = make_file(place.folder / f"twice {size}", size, size)
        first, second = (
            place.run("put", source, server.address, "--json").require(DONE).objects[-1] for _ in range(2)
        )
        require(first["payload_bytes_sent"] == size, f"the first time: {first}")
        require(second["payload_bytes_sent"] == 0, f"the second time: {second}")
        require(second["stored_as"] == first["stored_as"] == source.name, f"stored: {second}")
        _require_names(place, "twice", [f"twice {size}"], suffix=str(size))


def another_of_that_name(place: Place, server: Server) -> None:
    """A file whose name is taken by other content: kept beside it, refused, or put in its place."""
    for size in (5000, 2 * MIB + 5000):
        name = f"taken {size}.txt"
        first = make_file(place.folder / f"first {size}", size, "first")
        other = make_file(place.folder / f"other {size}", size + 1, "other")
        place.run("put", first, server.address, "--as", name).require(DONE)
        refused = place.run("put", other, server.address, "--as", name, "--if-exists", "refuse").require(
            FAILED
        )
        require("taken" in refused.err or "exists" in refused.err, f"refused with: {refused.err}")
        require_same(place.served / name, first)
        kept = place.run("put", other, server.address, "--as", name, "--if-exists", "keep", "--json")
        stored_as = kept.require(DONE).objects[-1]["stored_as"]
        require(stored_as == f"taken {size} (1).txt", f"kept as {stored_as}")
        require_same(place.served / stored_as, other)
        require_same(place.served / name, first)
        third = make_file(place.folder / f"third {size}", size + 2, "third")
        replaced = place.run("put", third, server.address, "--as", name, "--if-exists", "replace", "--json")
        require(replaced.require(DONE).objects[-1]["stored_as"] == name, "it was not put in its place")
        require_same(place.served / name, third)
        _require_names(place, "taken", [name, stored_as], suffix=f"{size}")


def _require_names(place: Place, prefix: str, names: list[str], suffix: str = "") -> None:
    found = sorted(
        path.name for path in place.served.iterdir() if path.name.startswith(prefix) and suffix in path.name
    )
    require(found == sorted(names), f"stored: {found} instead of {names}")


def large(place: Place, server: Server, filesize: int) -> Figures:
    """One large file up and down; how long each whole command took."""
    source = make_file(place.folder / "large 大 file.bin", filesize, "large")
    back = place.folder / "large back.bin"
    begun = time.monotonic()
    place.run("put", source, server.address).require(DONE)
    sent = time.monotonic()
    place.run("get", server.address + source.name, back).require(DONE)
    fetched = time.monotonic()
    for path in (place.served / source.name, back):
        require_same(path, source)
    return {
        "large_mib": filesize / MIB,
        "put_command_s": round(sent - begun, 2),
        "get_command_s": round(fetched - sent, 2),
    }


CASES = (there_and_back, streams, clients_at_once, twice, another_of_that_name)


def run(place: Place, large_mib: int) -> Figures:
    """Every case on one server."""
    with Server(place) as server:
        for case in CASES:
            case(place, server)
        figures = large(place, server, large_mib * MIB)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    return {"campaign": "sizes", "cases": len(CASES) + 1, **figures}


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024, help="size of the large file")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.mib))


if __name__ == "__main__":
    sys.exit(main())
