"""The benchmarks' own logic: order, ratios, the void rule, verdicts, command lines. Nothing is timed here."""

from __future__ import annotations

import random
import sys
from collections import Counter as Counts
from collections.abc import Callable
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # `python -m pytest` has it there, a bare `pytest` has not
# ruff: noqa: E402

from benchmarks.__main__ import main, parse_size
from benchmarks.contest import rows_of
from benchmarks.figures import Row, Section, Target, Verdict, at_least, at_most, show, show_size
from benchmarks.handshakes import dial
from benchmarks.ours import Ours, timing_of
from benchmarks.pairs import (
    FLOOR,
    Contestant,
    Creates,
    Match,
    Pair,
    Timing,
    elapsed_ratio,
    floor_times,
    is_void,
    run_pairs,
    schedule,
    spread,
    summarise,
    wall_ratio,
)
from benchmarks.peers import PEERS, OpenSsh, OpenSshAes, Peer, missing_packages
from benchmarks.processes import CommandFailed, Ran, Server
from benchmarks.proxy import Counter
from benchmarks.report import void_words
from benchmarks.sources import (
    check_same,
    copy_folders,
    link_tree,
    random_file,
    random_tree,
    sparse_file,
    weigh,
)
from benchmarks.targets import (
    DOWNLOAD,
    FOLDER,
    FOLDER_AGAIN,
    FOLDER_EXISTING,
    FOLDER_NEW,
    GIB,
    LIBRARY_DOWN,
    LIBRARY_UP,
    TLS_UPLOAD,
    UPLOAD,
)
from blockproto.identity.certificates import own_certificate, pin_of_file

# ---- order and pairing


def test_every_round_has_one_pair_with_each_peer_in_its_own_order() -> None:
    peers = ["a", "b", "c", "d"]
    turns = schedule(peers, 8, random.Random(1))
    rounds = [[turn.peer for turn in turns[first : first + 4]] for first in range(0, 32, 4)]
    assert all(sorted(one) == peers for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert [turn.number for turn in turns] == sorted(turn.number for turn in turns)


@pytest.mark.parametrize("pairs", [1, 2, 9, 10])
def test_ours_goes_first_in_half_of_the_pairs(pairs: int) -> None:
    turns = schedule(["a", "b"], pairs, random.Random(2))
    for peer in ("a", "b"):
        first = Counts(turn.ours_first for turn in turns if turn.peer == peer)
        assert abs(first[True] - first[False]) == pairs % 2


def _contestant(name: str, log: list[str], run: Callable[[], Timing]) -> Contestant:
    def running() -> Timing:
        log.append(f"{name} runs")
        return run()

    return Contestant(name, running, lambda: log.append(f"{name} cleans"))


def test_pairs_are_run_settled_and_cleaned_one_after_another() -> None:
    log: list[str] = []
    ours = _contestant("ours", log, lambda: Timing(2.0, 1.0))
    theirs = _contestant("theirs", log, lambda: Timing(3.0, 2.5))
    match = run_pairs(ours, [theirs], 2, random.Random(3), lambda: log.append("settle"))
    assert [pair.peer for pair in match.pairs] == ["theirs", "theirs"]
    assert {pair.ours_first for pair in match.pairs} == {True, False}
    steps = [log[first : first + 3] for first in range(0, len(log), 3)]
    assert all(
        [step[0], step[2]] == ["settle", step[1].replace("runs", "cleans")] and "runs" in step[1]
        for step in steps
    )
    assert Counts(step[1] for step in steps) == {"ours runs": 3, "theirs runs": 3}  # one of them unmeasured


def test_what_a_run_needs_is_made_before_it_is_settled() -> None:
    log: list[str] = []
    ours = Contestant(
        "ours", lambda: Timing(1.0), lambda: log.append("clean"), prepare=lambda: log.append("prepare")
    )
    run_pairs(ours, [], 1, random.Random(3), lambda: log.append("settle"))
    assert log == ["prepare", "settle", "clean"]


def test_plain_creates_are_measured_before_the_first_pair_and_after_each() -> None:
    measured = iter([10.0, 20.0, 30.0, 40.0])
    ours, theirs = (Contestant(name, lambda: Timing(1.0), lambda: None) for name in ("ours", "theirs"))
    match = run_pairs(ours, [theirs], 3, random.Random(3), lambda: None, creates_us=lambda: next(measured))
    assert [pair.creates for pair in match.pairs] == [(10.0, 20.0), (20.0, 30.0), (30.0, 40.0)]
    assert match.creates_us() == [10.0, 20.0, 30.0, 40.0]


def test_a_peer_that_fails_is_left_out_and_named() -> None:
    left = 2

    def run() -> Timing:
        nonlocal left
        left -= 1
        if left < 0:
            raise CommandFailed("it broke")
        return Timing(1.0)

    ours, broken, well = (
        Contestant("ours", lambda: Timing(1.0), lambda: None),
        Contestant("broken", run, lambda: None),
        Contestant("well", lambda: Timing(1.0), lambda: None),
    )
    match = run_pairs(ours, [broken, well], 3, random.Random(4), lambda: None)
    assert (len(match.of("broken")), len(match.of("well"))) == (1, 3)
    assert match.failures == {"broken": "it broke"}


def test_a_peer_that_brings_other_bytes_is_left_out() -> None:
    def check() -> None:
        raise ValueError("arrived with other bytes")

    ours = Contestant("ours", lambda: Timing(1.0), lambda: None)
    liar = Contestant("liar", lambda: Timing(0.1), lambda: None, check)
    match = run_pairs(ours, [liar], 2, random.Random(5), lambda: None)
    assert (match.pairs, match.failures) == ([], {"liar": "arrived with other bytes"})


def test_our_own_failure_ends_the_run() -> None:
    def fail() -> Timing:
        raise CommandFailed("we broke")

    with pytest.raises(CommandFailed, match="we broke"):
        run_pairs(Contestant("ours", fail, lambda: None), [], 1, random.Random(6), lambda: None)


# ---- statistics


def test_quartiles_of_known_values() -> None:
    assert summarise([3.0, 1.0, 2.0, 5.0, 4.0])[:3] == (3.0, 2.0, 4.0)
    assert summarise([7.0]) == (7.0, 7.0, 7.0, 1)


def test_a_ratio_above_one_means_we_are_faster() -> None:
    pair = Pair(0, "peer", ours=Timing(2.0, 1.0), theirs=Timing(3.0, 0.5), ours_first=True)
    assert wall_ratio(pair) == 1.5
    assert elapsed_ratio(pair) == 0.5


def test_floors_that_spread_more_than_twofold_make_a_run_void() -> None:
    assert not is_void([1.0, 2.0, 1.5])
    assert is_void([1.0, 2.01])
    assert not is_void([])
    assert spread([2.0, 5.0]) == 2.5


def _match(floors: list[float]) -> Match:
    pairs = [Pair(n, FLOOR, Timing(1.2, 1.0), Timing(9.0, floor), True) for n, floor in enumerate(floors)]
    pairs += [Pair(n, "rsync", Timing(1.2, 1.0), Timing(0.9), False) for n in range(len(floors))]
    return Match(pairs, peers=[FLOOR, "rsync"])


def test_the_floor_is_compared_by_elapsed_s_and_others_by_the_whole_command() -> None:
    match = _match([0.9, 0.9, 0.9])
    floor, rsync = rows_of(match, {FLOOR: at_least(0.9)}, {}, (1.0, "GB/s"))
    assert floor.summary is not None
    assert rsync.summary is not None
    assert (floor.summary.median, floor.verdict) == (0.9, Verdict.REACHED)
    assert rsync.summary.median == pytest.approx(0.75)
    assert rsync.verdict is Verdict.REPORTED
    assert floor_times(match) == [0.9, 0.9, 0.9]


def test_every_row_of_a_void_run_is_void() -> None:
    rows = rows_of(_match([0.9, 1.9]), {FLOOR: at_least(0.9)}, {}, (1.0, "GB/s"))
    assert {row.verdict for row in rows} == {Verdict.VOID}
    assert Section("run", rows).void


def _beside_creates(*creates: tuple[float, float]) -> Match:
    """Pairs with rsync, the first 1 × as fast as we are, the second 2 × and so on, between such creates."""
    pairs = [
        Pair(n, "rsync", Timing(float(n + 1)), Timing(1.0), True, Creates(*each))
        for n, each in enumerate(creates)
    ]
    return Match(pairs, peers=["rsync"])


def test_a_pair_beside_which_plain_creates_became_slow_is_left_out_of_the_median() -> None:
    match = _beside_creates((20.0, 40.0), (40.0, 40.1), (40.1, 25.0), (25.0, 20.0))
    assert [pair.number for pair in match.good("rsync")] == [0, 3]
    (row,) = rows_of(match, {"rsync": at_least(0.6)}, {}, (1.0, "files/s"))
    assert row.summary is not None
    assert row.summary[::3] == ((1 + 1 / 4) / 2, 2)
    assert row.verdict is Verdict.REACHED


def test_a_peer_with_fewer_than_half_of_its_pairs_is_void() -> None:
    match = _beside_creates((20.0, 20.0), (20.0, 41.0), (41.0, 41.0))
    rows = rows_of(match, {"rsync": at_least(0.1)}, {}, (1.0, "files/s"))
    assert [row.verdict for row in rows] == [Verdict.VOID]
    assert "plain creates" in void_words(Section("put DIR", rows))
    assert "whole command beside rsync" in void_words(Section("put DIR", rows))


def test_pairs_are_good_where_no_creates_are_measured() -> None:
    match = _match([0.9, 0.9])
    assert (len(match.good("rsync")), match.creates_us()) == (2, [])


def test_peers_that_failed_or_are_missing_have_a_row() -> None:
    match = Match(failures={"nginx PUT": "it broke"})
    failed, absent = rows_of(match, {}, {"scp": "apt install openssh-client"}, (1.0, "GB/s"))
    assert (failed.verdict, failed.note) == (Verdict.FAILED, "it broke")
    assert (absent.verdict, absent.note) == (Verdict.ABSENT, "apt install openssh-client")


# ---- verdicts


@pytest.mark.parametrize(
    ("median", "target", "verdict"),
    [
        (0.9, at_least(0.9), Verdict.REACHED),
        (0.8999, at_least(0.9), Verdict.SHORT),
        (20.0, at_most(20), Verdict.REACHED),
        (20.001, at_most(20), Verdict.SHORT),
        (5.0, None, Verdict.REPORTED),
    ],
)
def test_verdicts_are_exact(median: float, target: Target | None, verdict: Verdict) -> None:
    assert Row("figure", "×", summarise([median]), target).verdict is verdict


def test_what_is_shown_is_rounded_against_us() -> None:
    assert Row("ratio", "×", summarise([0.89999]), at_least(0.9)).shown == "0.899 ×"
    assert Row("time", "ms", summarise([20.001]), at_most(20)).shown == "20.1 ms"


@pytest.mark.parametrize(
    ("value", "upwards", "shown"),
    [
        (0.29, False, "0.290"),
        (1.2999, False, "1.29"),
        (1.2901, True, "1.30"),
        (12345.6, False, "12345"),
        (0, True, "0"),
        (0.00123, True, "0.00123"),
        (64.01, True, "64.1"),
    ],
)
def test_digits(value: float, upwards: bool, shown: str) -> None:
    assert show(value, upwards=upwards) == shown


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1GiB", "16 MiB", "4096")] == [1 << 30, 16 << 20, 4096]
    assert [show_size(size) for size in (1 << 30, 16 << 20, 4096, 5)] == ["1 GiB", "16 MiB", "4 KiB", "5 B"]
    for text in ("", "GiB", "0", "-1MiB", "4GB"):
        with pytest.raises(ValueError, match=r".*"):
            parse_size(text)


def test_targets_name_methods_that_there_are() -> None:
    names = {FLOOR, "rsync", "rsync --fsync", "nginx PUT", "nginx GET", "vsftpd", "scp"}
    targets = [UPLOAD[GIB], UPLOAD[4 * GIB], DOWNLOAD[GIB], DOWNLOAD[4 * GIB], TLS_UPLOAD[GIB], LIBRARY_UP]
    targets += [FOLDER, FOLDER_AGAIN, FOLDER_NEW, FOLDER_EXISTING, LIBRARY_DOWN]
    assert {name for one in targets for name in one} <= names


# ---- command lines


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_serve_their_own_folder_on_loopback(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers._output_of", lambda command: "--fsync")
    monkeypatch.setattr("benchmarks.peers.SSHD_ROOT_FOLDER", tmp_path / "run")
    served = tmp_path / "served"
    command = peer.server_command(tmp_path, served, 4711)
    config = Path(command[-1].removeprefix("--config=")).read_text()
    assert "127.0.0.1" in config
    assert "4711" in config
    methods = peer.methods(tmp_path, served, 4711)
    lines = [
        line
        for method in methods
        for line in (
            method.put and method.put(Path("/a/file.bin")),
            method.get and method.get("file.bin", Path("/b/dest")),
            method.put_folder and method.put_folder(Path("/a/tree")),
            method.get_folder and method.get_folder("tree", Path("/b/dest")),
        )
        if line
    ]
    assert lines
    assert all("/a/file.bin" in line or "/b/dest" in line or "/a/tree" in line for line in lines)


def test_rsync_is_measured_with_and_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rsync = PEERS[0]
    monkeypatch.setattr("benchmarks.peers._output_of", lambda command: "…  --fsync  fsync every written file")
    plain, synced = rsync.methods(tmp_path, tmp_path, 1)
    assert plain.put is not None
    assert synced.put is not None
    assert set(synced.put(Path("f"))) - set(plain.put(Path("f"))) == {"--fsync"}
    monkeypatch.setattr("benchmarks.peers._output_of", lambda command: "an older one")
    assert [method.name for method in rsync.methods(tmp_path, tmp_path, 1)] == ["rsync"]


def test_a_missing_peer_is_named_with_its_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.find_program", lambda name: None)
    assert [missing_packages(peer) for peer in PEERS] == [
        ["rsync"],
        ["curl", "nginx-light"],
        ["curl", "vsftpd"],
        ["openssh-client", "openssh-server"],
    ]


def test_our_commands_are_the_real_ones() -> None:
    ours = object.__new__(Ours)
    ours.command = "blockproto"
    ours.server = type("Listening", (), {"port": 7})()
    assert ours.put(Path("f"), "--json")[1:] == ["put", "--json", "f", "bp://127.0.0.1:7/"]
    assert ours.put(Path("f"), port=8)[-1] == "bp://127.0.0.1:8/"
    assert ours.get("n", Path("d"))[1:] == ["get", "bp://127.0.0.1:7/n", "d"]


def test_over_tls_our_commands_are_pinned_to_the_servers_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], log: Path, env: dict[str, str]) -> object:
        started.append(command)
        return type("Listening", (), {"port": 7})()

    monkeypatch.setattr("benchmarks.ours.Server", start)
    ours = Ours(tmp_path, tls=True)
    pin = pin_of_file(ours.certificate).hex()
    assert started[0][-4:] == ["--cert", str(ours.certificate), "--key", str(ours.key)]
    assert ours.put(Path("f"))[1:] == ["put", "--pin", pin, "f", "bps://127.0.0.1:7/"]
    assert ours.get("n", Path("d"))[1:] == ["get", "--pin", pin, "bps://127.0.0.1:7/n", "d"]


def test_an_older_checkout_is_measured_with_its_own_command_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], log: Path, env: dict[str, str]) -> object:
        started.append(command)
        return type("Listening", (), {"port": 7})()

    monkeypatch.setattr("benchmarks.ours.Server", start)
    ours, old = Ours(tmp_path), Ours(tmp_path, name="old", command="/old/blockproto")
    assert ours.served != old.served
    assert ours.env != old.env
    assert started[1][:3] == ["/old/blockproto", "serve", str(old.served)]
    assert old.put(Path("f"))[0] == old.get("n", Path("d"))[0] == "/old/blockproto"


def test_scp_is_measured_with_the_cipher_it_prefers_and_with_aes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers._output_of", lambda command: "")
    configs = []
    for peer in (OpenSsh(), OpenSshAes()):
        (method,) = peer.methods(tmp_path, tmp_path, 1)
        assert method.name == peer.name
        configs.append((tmp_path / "ssh_config").read_text())
    assert configs[1] == configs[0] + "Ciphers aes128-gcm@openssh.com\n"


def test_handshakes_are_counted_against_a_server_that_does_nothing_else(tmp_path: Path) -> None:
    pair = [str(one) for one in own_certificate(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.handshakes", "serve", *pair]
    server = Server(command, tmp_path / "log", env={"PYTHONPATH": str(ROOT)})
    try:
        assert dial(server.port, 0.05) > 0
    finally:
        server.stop()


def test_a_run_of_ours_that_did_not_send_everything_is_no_fast_run() -> None:
    out = '{"payload_bytes_sent": 10, "elapsed_s": 0.5}\n'
    assert timing_of(Ran(1.0, out), 10) == Timing(1.0, 0.5)
    with pytest.raises(CommandFailed, match="sent 10 bytes of 11"):
        timing_of(Ran(1.0, out), 11)
    with pytest.raises(CommandFailed, match="2 files"):
        timing_of(Ran(1.0, out * 2), 10)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--sizes", "big"],
        ["--pairs", "0"],
        ["--place", "moon"],
        ["--old", str(ROOT / "spec")],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        main.main(arguments, standalone_mode=False)


# ---- counting and sources


def test_a_wait_is_a_silence_of_a_round_trip_that_an_answer_ended() -> None:
    counter = Counter(round_trip_s=1.0)
    counter.sent(0.0)
    counter.sent(5.0)  # silent, but nobody answered: it was busy
    counter.answered()
    counter.sent(5.1)  # an answer beside sending
    assert (counter.waits, counter.turns) == (0, 1)
    counter.answered()
    counter.answered()
    counter.sent(6.2)
    assert (counter.waits, counter.turns) == (1, 2)


def test_sources_and_how_they_are_compared(tmp_path: Path) -> None:
    one, other = random_file(tmp_path / "one", 100_000), random_file(tmp_path / "other", 100_000)
    assert one.stat().st_size == 100_000
    check_same(one, one)
    with pytest.raises(ValueError, match="other bytes"):
        check_same(one, other)
    assert sparse_file(tmp_path / "sparse", 1 << 30).stat().st_blocks == 0
    tree = random_tree(tmp_path / "tree", 3, 10)
    check_same(tree, tree)
    with pytest.raises(ValueError, match="0 of 3"):
        check_same(tree, tmp_path / "none")
    link_tree(tree, tmp_path / "linked")
    check_same(tree, tmp_path / "linked")
    copy_folders(tree, tmp_path / "folders")
    assert [one.name for one in (tmp_path / "folders").rglob("*")] == ["000"]
    assert weigh(tree) == (3, 30)
