"""The whole, as real processes over real sockets: a short slice of every campaign in ``campaigns``.

What is timed there is not judged here. Mounts need root: those tests are skipped without it, and say so.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from campaigns import (
    changing,
    checkpoint,
    disk_full,
    homes,
    memory,
    refusals,
    resent,
    resume,
    sizes,
    takeover,
    tree,
)
from campaigns.counting_proxy import Line, Meter, Proxy, Ranges
from campaigns.kill9 import Kill9
from campaigns.raw import RawFile
from campaigns.tools import DONE, MIB, CannotMount, Place, Server, heed_ctrl_c, make_file

import blockproto
from blockproto.wire import PREFACE, Commit, Hello, Open, encode_frame


@pytest.fixture(autouse=True, scope="module")
def _ctrl_c() -> None:
    heed_ctrl_c()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


def _or_skip(case: Callable[[], object]) -> None:
    try:
        case()
    except CannotMount as error:
        pytest.skip(str(error))


# ---- SIGKILL --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.clause("BP1-RES-015")
@pytest.mark.parametrize(("connections", "seed"), [(1, 3), (4, 5)])
def test_uploads_survive_the_servers_death(place: Place, connections: int, seed: int) -> None:
    """The server is back before the client gives up: one command goes on by itself."""
    figures = Kill9(place, random.Random(seed), "server", connections, gives_up=0).run(1, 64 * MIB)
    assert figures["kills"] >= 1  # the next moment that was drawn can lie behind what is left
    assert figures["commands"] == 1


def test_a_client_that_gave_up_says_how_to_resume(place: Place) -> None:
    figures = Kill9(place, random.Random(15), "server", 1, gives_up=1).run(1, 32 * MIB)
    assert figures["commands"] == figures["kills"] + 1 >= 2


@pytest.mark.parametrize(("connections", "seed"), [(1, 1), (4, 6)])
def test_uploads_survive_the_clients_death(place: Place, connections: int, seed: int) -> None:
    figures = Kill9(place, random.Random(seed), "client", connections).run(1, 64 * MIB)
    assert figures["kills"] >= 2


@pytest.mark.parametrize("what", ["get-server", "get-client"])
def test_downloads_survive_either_death(place: Place, what: str) -> None:
    figures = Kill9(place, random.Random(1), what, 1, gives_up=0).run(1, 64 * MIB)
    assert figures["kills"] >= 1


@pytest.mark.long
def test_with_a_full_window_no_more_than_the_window_travels_again(place: Place) -> None:
    resent.run(place, "server", connections=1)


def test_the_same_files_from_three_homes_are_there_once(place: Place) -> None:
    """Must-show: one copy of each, and no payload after the first home (``make homes``: 5,000 files, five homes)."""
    figures = homes.run(place, files=200, homes=3, seed=1)
    assert [row["payload"] for row in figures["homes"][1:]] == [0, 0]


# ---- takeover -------------------------------------------------------------------------------------------------


def test_attempts_by_hand(place: Place) -> None:
    with Server(place) as server:
        takeover.raw_cases(place, server, random.Random(1))


@pytest.mark.clause("BP1-RES-010")
@pytest.mark.parametrize("released_in_the_middle", [True, False])
def test_takeover_waits_neither_for_the_black_hole_nor_for_the_disk(
    place: Place, released_in_the_middle: bool
) -> None:
    stuck = place.folder / "the disk is stuck"
    source = make_file(place.folder / "taken over.bin", 40 * MIB, released_in_the_middle)
    with (
        Server(place, program=takeover.stuck_disk(stuck)) as server,
        Proxy(lambda: server.port) as proxy,
    ):
        case = takeover.Takeover(place, server, proxy)
        case.run(source, 9 * MIB + 5, released_in_the_middle, stuck)
        assert server.stop() == DONE
    place.require_clean()


def test_takeover_of_a_commit_under_way(place: Place) -> None:
    takeover.past_a_commit_under_way(place)


# ---- what cannot work -----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.root
def test_a_full_disk(place: Place) -> None:
    _or_skip(lambda: disk_full.run(place))


@pytest.mark.parametrize("case", refusals.MACHINE, ids=lambda case: case.__name__)
def test_what_the_machine_does_not_let_us_do(place: Place, case: Callable[[Place], None]) -> None:
    _or_skip(lambda: case(place))


def test_who_speaks_something_else(place: Place) -> None:
    with Server(place) as server:
        for case in refusals.SPEAKING:
            case(place, server)
        assert server.stop() == DONE
    place.require_clean()


@pytest.mark.long
@pytest.mark.clause("BP1-FET-011")
def test_a_file_that_changes_is_never_spliced(place: Place) -> None:
    changing.run(place, (changing.overwrite_the_beginning, changing.overwrite_and_set_the_time_back))


# ---- what works -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_tree_there_and_back(place: Place) -> None:
    figures = tree.run(place, Path(blockproto.__file__).parent)
    assert figures["files"] > 80


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Server]]:
    """One server for the tests of sizes; its store is clean after the last."""
    place = Place(tmp_path_factory.mktemp("sizes") / "place")
    with Server(place) as server:
        yield place, server
        assert server.stop() == DONE
    place.require_clean()


@pytest.mark.parametrize("case", sizes.CASES, ids=lambda case: case.__name__)
def test_files_of_every_size(shared: tuple[Place, Server], case: Callable[[Place, Server], None]) -> None:
    case(*shared)


@pytest.mark.long
@pytest.mark.clause("BP1-END-010")
def test_leaving_in_order_keeps_the_unfinished_block(place: Place) -> None:
    checkpoint.run(place)


@pytest.mark.clause("BP1-LIM-003")
def test_memory_does_not_grow_with_the_file(place: Place) -> None:
    memory.run(place, 160 * MIB)


def test_resume_reads_no_file(place: Place) -> None:
    resume.run(place, blocks=5_000, partials=10, gib=10, times=2)


# ---- the tools themselves -------------------------------------------------------------------------------------


def test_ranges_add_up() -> None:
    rng = random.Random(1)
    ranges, other, mine, theirs = Ranges(), Ranges(), set[int](), set[int]()
    for _ in range(300):
        for both, plain in ((ranges, mine), (other, theirs)):
            start = rng.randrange(500)
            end = start + rng.randrange(9)
            both.add(start, end)
            plain.update(range(start, end))
        assert (len(ranges), ranges.common(other)) == (len(mine), len(mine & theirs))


@pytest.mark.parametrize("seed", range(5))
def test_the_meter_counts_the_same_however_bytes_are_sliced(seed: int) -> None:
    rng = random.Random(seed)
    file = RawFile(rng.randbytes(2 * MIB + 77))
    said = PREFACE + encode_frame(0, Hello()) + encode_frame(1, file.open(1))
    for blockno in range(file.blocknum):
        half = len(file.bytes_of(blockno)) // 2
        said += encode_frame(1, file.block(blockno, ends=False), half) + file.bytes_of(blockno)[:half]
        rest = file.bytes_of(blockno)[half:]
        said += encode_frame(1, file.piece(blockno, half), len(rest)) + rest
    said += encode_frame(1, file.commit())
    with Proxy(lambda: 0) as proxy, socket.socket() as one, socket.socket() as other:
        line = Line(proxy, one, other)
        meter, at = Meter(line, forth=True), 0
        while at < len(said):
            if rng.random() < 0.1:
                proxy.hold(payload_bytes=rng.randrange(1, MIB))
            piece = said[at : at + rng.choice((1, 16, 1000, 200_000))]
            taken = meter.take(memoryview(piece))
            at += taken
            if taken < len(piece):
                proxy.release()
        assert proxy.tally.payload_bytes == len(file.content)
        assert len(proxy.tally.files[file.sourceid].sent) == len(file.content)
        assert [type(one.message) for one in line.said] == [Hello, Open, Commit]
