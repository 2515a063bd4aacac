"""What files contain, read or remembered: never wrong, whatever becomes of the memory."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
import trio
from blake3 import blake3

from blockproto.client_side import digest_cache as memory_module
from blockproto.client_side import file_digests as digests_module
from blockproto.client_side import fingerprint
from blockproto.client_side.digest_cache import DigestCache
from blockproto.client_side.file_digests import FileDigests, read_root
from blockproto.client_side.fingerprint import Fingerprint
from blockproto.common.blocks import BLOCK_LENGTH, root_of
from blockproto.errors import Refused, SourceChanged

SECRET = bytes(range(32))
OLD_NS = 1_600_000_000 * 10**9


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files that were just made for old ones: only one test is about that."""
    monkeypatch.setattr(fingerprint, "SETTLED_S", -3600.0)


def _file(tmp_path: Path, content: bytes = b"content", name: str = "file") -> tuple[Path, os.stat_result]:
    path = tmp_path / name
    path.write_bytes(content)
    return path, path.stat()


def _memory(tmp_path: Path, secret: bytes = SECRET) -> DigestCache:
    return DigestCache(tmp_path / "state" / "digests.sqlite3", secret)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("size", [0, 1, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 3 * BLOCK_LENGTH])
def test_the_root_of_a_file(tmp_path: Path, size: int) -> None:
    content = bytes(at % 251 for at in range(997)) * (size // 997 + 1)
    path, facts = _file(tmp_path, content[:size])
    blocks = [content[at : min(at + BLOCK_LENGTH, size)] for at in range(0, size, BLOCK_LENGTH)]
    root, after = read_root(path)
    assert root == root_of([blake3(block).digest() for block in blocks], len(blocks))
    assert Fingerprint.of(after) == Fingerprint.of(facts)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Refused):
            read_root(path)
    with pytest.raises(FileNotFoundError):
        read_root(tmp_path / "nothing")


@pytest.mark.parametrize("how", ["grows", "shrinks", "same size and time", "only its rights"])
def test_a_file_that_is_written_to_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path, facts = _file(tmp_path, bytes(2 * BLOCK_LENGTH))
    read, changed = digests_module._digests_of, []

    def meddle(file: FileIO, filesize: int) -> Iterator[bytes]:
        yield from read(file, filesize)
        if not changed:
            changed.append(True)
            if how == "grows":
                os.truncate(path, facts.st_size + 1)
            elif how == "shrinks":
                os.truncate(path, 5)
            elif how == "only its rights":
                path.chmod(0o600)
            else:
                with path.open("r+b") as file:
                    file.write(b"other")
                os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))

    monkeypatch.setattr(digests_module, "_digests_of", meddle)
    if how in ("grows", "shrinks"):
        with pytest.raises(SourceChanged):
            read_root(path)
        return
    root, after = read_root(path)
    assert Fingerprint.of(after) == Fingerprint.of(path.stat())
    assert root == read_root(path)[0]


def test_another_process_remembers(tmp_path: Path) -> None:
    path, facts = _file(tmp_path)
    root, _ = read_root(path)
    first = _memory(tmp_path)
    assert first.recall([Fingerprint.of(facts)]) == {}
    first.remember({Fingerprint.of(facts): root})
    first.close()
    script = (
        "import os, sys; from pathlib import Path; from blockproto.client_side.digest_cache import DigestCache; "
        "from blockproto.client_side.fingerprint import Fingerprint; "
        "found = DigestCache(Path(sys.argv[1]), bytes(range(32))).recall([Fingerprint.of(os.stat(sys.argv[2]))]); "
        "print(*(root.hex() for root in found.values()))"
    )
    where = tmp_path / "state" / "digests.sqlite3"
    told = subprocess.run(
        [sys.executable, "-c", script, where, path], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.strip() == root.hex()
    assert where.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("field", ["dev", "ino", "size", "mtime_ns", "ctime_ns"])
def test_whatever_differs_is_another_content(tmp_path: Path, field: str) -> None:
    _, facts = _file(tmp_path)
    one = Fingerprint.of(facts)
    memory = _memory(tmp_path)
    memory.remember({one: bytes(32)})
    values = {name: getattr(one, name) for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns")}
    other = Fingerprint(**(values | {field: values[field] + 1}))
    assert memory.recall([other]) == {}
    assert memory.recall([one]) == {one: bytes(32)}
    memory.close()


@pytest.mark.parametrize("time_ns", [-(2**63), -1, 0, 2**63 - 1, 2**64])
def test_odd_times_have_a_fingerprint(tmp_path: Path, time_ns: int) -> None:
    one = Fingerprint(1, 2**64 - 1, 3, time_ns, time_ns)
    memory = _memory(tmp_path)
    memory.remember({one: bytes(32)})
    assert memory.recall([one]) == {one: bytes(32)}
    memory.close()


def test_a_row_of_another_installation_or_a_forged_one_does_not_count(tmp_path: Path) -> None:
    _, facts = _file(tmp_path)
    one = Fingerprint.of(facts)
    other = _memory(tmp_path, bytes(32))
    other.remember({one: b"o" * 32})
    other.close()
    memory = _memory(tmp_path)
    assert memory.recall([one]) == {}
    memory.remember({one: b"r" * 32})
    with sqlite3.connect(tmp_path / "state" / "digests.sqlite3") as database:
        (files,) = next(row for row in database.execute("SELECT files FROM digests") if b"r" * 32 in row[0])
        database.execute("UPDATE digests SET files = ?", (files.replace(b"r" * 32, b"f" * 32),))
    database.close()
    assert memory.recall([one]) == {}
    memory.remember({one: b"r" * 32})
    assert memory.recall([one]) == {one: b"r" * 32}, "what does not count is written anew"
    with sqlite3.connect(tmp_path / "state" / "digests.sqlite3") as database:
        database.execute("UPDATE digests SET files = 'text', mac = 5")
    database.close()
    assert memory.recall([one]) == {}
    memory.close()


@pytest.mark.parametrize("damage", ["no database", "empty", "cut", "middle", "other format"])
def test_a_damaged_memory_is_begun_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    many = {Fingerprint(1, ino, 3, 4, 5): bytes([ino % 256]) * 32 for ino in range(2000)}
    first = _memory(tmp_path)
    first.remember(many)
    first.close()
    where = tmp_path / "state" / "digests.sqlite3"
    content = bytearray(where.read_bytes())
    if damage == "no database":
        content = bytearray(b"nothing of the kind" * 500)
    elif damage == "empty":
        content = bytearray()
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "middle":
        content[4096 : len(content) - 4096] = os.urandom(len(content) - 8192)
    else:
        content[60:64] = (77).to_bytes(4, "big")
    where.write_bytes(content)
    memory = _memory(tmp_path)
    for one, root in memory.recall(list(many)).items():
        assert many[one] == root, "damaged, but believed"
    memory.remember(many)
    memory.close()
    again = _memory(tmp_path)
    assert again.recall(list(many)) == many
    again.close()
    assert bool(_warnings(caplog)) is (damage in ("no database", "cut", "middle"))


def test_a_memory_that_cannot_be_used_is_done_without_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_bytes(b"a file where the folder should be")
    memory = _memory(tmp_path)
    one = Fingerprint(1, 2, 3, 4, 5)
    memory.remember({one: bytes(32)})
    assert memory.recall([one]) == {}
    memory.close()
    assert len(_warnings(caplog)) == 1


def test_a_row_that_was_moved_does_not_count(tmp_path: Path) -> None:
    memory = _memory(tmp_path)
    here, there = Fingerprint(1, 64, 3, 4, 5), Fingerprint(1, 128, 3, 4, 5)
    memory.remember({here: b"h" * 32, there: b"t" * 32})
    with sqlite3.connect(tmp_path / "state" / "digests.sqlite3") as database:
        (first, *_), (second, *_) = database.execute("SELECT place FROM digests").fetchall()
        for old, new in ((first, b"x"), (second, first), (b"x", second)):
            database.execute("UPDATE digests SET place = ? WHERE place = ?", (new, old))
    database.close()
    assert memory.recall([here, there]) == {}
    memory.close()


def test_files_beside_each_other_share_a_row_and_keep_it_one_by_one(tmp_path: Path) -> None:
    many = {Fingerprint(1, ino, ino, -ino, 5): bytes([ino]) * 32 for ino in range(60, 200)}
    memory = _memory(tmp_path)
    for one, root in many.items():
        memory.remember({one: root})
    changed = Fingerprint(1, 100, 1, 1, 1)
    memory.remember({changed: b"c" * 32})
    assert memory.recall([*many, changed]) == {
        one: root for one, root in {**many, changed: b"c" * 32}.items() if one.ino != 100 or one is changed
    }
    with sqlite3.connect(tmp_path / "state" / "digests.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM digests").fetchone() == (4,)
    database.close()
    memory.close()


def test_what_was_used_longest_ago_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = [20_000]
    monkeypatch.setattr(memory_module, "_today", lambda: day[0])
    monkeypatch.setattr(memory_module, "SIZE_MAX", 200_000)
    memory = _memory(tmp_path)
    used = Fingerprint(1, 0, 3, 4, 5)
    memory.remember({used: bytes(32)})
    for at in range(1, 21):
        day[0] += 1
        memory.remember({Fingerprint(1, at * 1000 + ino, 3, 4, 5): bytes(32) for ino in range(500)})
        assert memory.recall([used]) == {used: bytes(32)}, "what is used stays"
        assert (tmp_path / "state" / "digests.sqlite3").stat().st_size < 400_000
    assert memory.recall([Fingerprint(1, 1001, 3, 4, 5)]) == {}
    memory.close()


def test_several_processes_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from blockproto.client_side.digest_cache import DigestCache; "
        "from blockproto.client_side.fingerprint import Fingerprint; "
        "memory = DigestCache(Path(sys.argv[1]), bytes(range(32)))\n"
        "for at in range(40):\n"
        "    one = Fingerprint(int(sys.argv[2]), at, 3, 4, 5); memory.remember({one: bytes(32)})\n"
        "    assert memory.recall([one]) == {one: bytes(32)}\n"
        "memory.close()"
    )
    where = tmp_path / "state" / "digests.sqlite3"
    ran = trio.run(_all_at_once, [[sys.executable, "-c", script, str(where), str(dev)] for dev in range(5)])
    assert ran == [(0, b"")] * 5
    memory = _memory(tmp_path)
    assert len(memory.recall([Fingerprint(dev, at, 3, 4, 5) for dev in range(5) for at in range(40)])) == 200
    memory.close()


async def _all_at_once(commands: list[list[str]]) -> list[tuple[int, bytes]]:
    ran: list[tuple[int, bytes]] = []

    async def one(command: list[str]) -> None:
        done = await trio.run_process(command, capture_stderr=True, check=False)
        ran.append((done.returncode, done.stderr))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for command in commands:
                nursery.start_soon(one, command)
    return ran


async def test_a_root_is_read_once_and_again_when_asked_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = digests_module.reading

    def count(path: Path) -> Iterator[object]:
        reads.append(os.fspath(path))
        return read(path)

    monkeypatch.setattr(digests_module, "reading", count)
    path, facts = _file(tmp_path)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    facts = path.stat()
    digests = FileDigests(lambda: _memory(tmp_path))
    root = await digests.root(path, facts)
    assert await digests.root(path, facts) == root
    await digests.close()
    await digests.close()
    digests = FileDigests(lambda: _memory(tmp_path))
    assert await digests.root(path, facts) == root
    assert len(reads) == 1
    assert await digests.root(path, facts, checksum=True) == root
    assert len(reads) == 2
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    assert await digests.root(path, path.stat()) != root
    assert len(reads) == 3
    await digests.keep()
    path.write_bytes(b"longer than it was")
    with pytest.raises(SourceChanged):
        await digests.root(path, facts, checksum=True)
    await digests.close()


async def test_many_files_at_once_with_what_cannot_be_read_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "BATCH_FILES", 3)
    monkeypatch.setattr(digests_module, "SMALL_BYTES", 50)
    monkeypatch.setattr(digests_module, "STEP_BYTES", BLOCK_LENGTH)
    sizes = [10, 20, 3 * BLOCK_LENGTH, 51, 50, 0, 7]
    files = [_file(tmp_path, os.urandom(size), f"{at}") for at, size in enumerate(sizes)]
    roots = [read_root(path)[0] for path, _ in files]
    digests = FileDigests()
    assert await digests.roots(files) == roots
    files[1][0].unlink()
    files[2][0].unlink()
    files[4][0].write_bytes(b"changed")
    again = await digests.roots(files)
    assert again == roots, "remembered"
    told = await digests.roots(files, {})
    assert [type(one) for one in told] == [
        bytes, FileNotFoundError, FileNotFoundError, bytes, SourceChanged, bytes, bytes,
    ]  # fmt: skip
    await digests.close()


async def test_what_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, facts = _file(tmp_path)
    monkeypatch.setattr(fingerprint, "SETTLED_S", 2.0)
    digests = FileDigests()
    digests.learn(facts, bytes(32))
    assert await digests.recall([facts]) == {}
    monkeypatch.setattr(digests_module.time, "time", lambda: facts.st_ctime + 2.1)
    digests.learn(facts, bytes(32))
    assert await digests.recall([facts]) == {Fingerprint.of(facts): bytes(32)}
    await digests.close()
