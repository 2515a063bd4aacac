"""Sources: files that must not change, and streams that are read once."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import trio
from peers import MIB, bytes_of, run

from blockproto.client_side.sources import (
    LOOKS_MAX,
    FileSource,
    StreamSource,
    filetype_of,
    folder_facts,
    reader_of,
)
from blockproto.common.names import SafeName
from blockproto.errors import NameRefused, Refused, SourceChanged
from blockproto.store import FOLDER_FILETYPE, Facts, IfExists

quick = pytest.mark.trio(run=run)


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    return path


def _source(path: Path, name: str = "file.bin") -> FileSource:
    return FileSource(path, name, IfExists.KEEP)


def _memory() -> memoryview:
    return memoryview(bytearray(MIB))


# ---- files ----------------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
async def test_every_block_of_a_file(tmp_path: Path, size: int) -> None:
    content = bytes_of(size)
    source = _source(_file(tmp_path, content))
    blocks = [bytes(await source.read_block(no, _memory())) for no in range(-(-size // MIB))]
    assert b"".join(blocks) == content
    assert (source.first, source.end, source.window_bytes) == (0, size, None)
    source.close()


def test_the_facts_of_a_file(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    path.chmod(0o640)
    os.utime(path, ns=(5, 1_234_567_890_123_456_789))
    source = FileSource(path, "folder/name.jpg", IfExists.REPLACE)
    assert source.facts == Facts(
        SafeName.parse("folder/name.jpg"), "image/jpeg", 7, 1_234_567_890_123_456_789, 0o640, IfExists.REPLACE
    )
    source.close()
    named = FileSource(path, "x", IfExists.KEEP, "text/plain")
    assert named.facts.filetype == "text/plain"
    named.close()


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(Refused, match="not a regular file"):
            _source(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _source(tmp_path / "absent")


def test_a_bad_name_leaves_no_file_open(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NameRefused) as caught:
        _source(path, "../up")
    assert len(os.listdir("/proc/self/fd")) == before
    del caught


@quick
async def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, bytes_of(2 * MIB))
    source = _source(path)
    os.truncate(path, MIB + 5)
    await source.read_block(0, _memory())
    with pytest.raises(SourceChanged, match="shorter"):
        await source.read_block(1, _memory())
    source.close()


def test_a_file_that_was_written_to_is_not_unchanged(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    source = _source(path)
    assert source.unchanged()
    os.utime(path, ns=(1, 1))
    assert not source.unchanged()
    source.close()


def test_a_file_that_grew_is_not_unchanged_even_at_the_same_time(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    source = _source(path)
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(source.stat.st_atime_ns, source.stat.st_mtime_ns))
    assert not source.unchanged()
    source.close()


def test_a_replaced_file_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    source = _source(path)
    other = tmp_path / "other"
    other.write_bytes(b"CONTENT")
    other.replace(path)
    view = memoryview(bytearray(7))
    assert source.read_into(0, view) == 7
    assert bytes(view) == b"content"
    assert not source.is_another()
    source.close()


def test_what_only_the_inode_tells_is_read_again_a_few_times(tmp_path: Path) -> None:
    path = _file(tmp_path, b"content")
    source = _source(path)
    looks = 0
    while True:
        while path.stat().st_ctime_ns == source.stat.st_ctime_ns:  # the file system's clock ticks slowly
            path.chmod(0o600)
        assert not source.unchanged()
        assert not source.is_another()
        looks += 1
        if not source.look_again():
            break
        assert source.unchanged()
    assert looks == LOOKS_MAX
    source.close()


def test_without_preadv_seek_and_read_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    content = bytes_of(100_000)
    source = _source(_file(tmp_path, content))
    view = memoryview(bytearray(50_000))
    assert source.read_into(60_000, view) == 40_000
    assert bytes(view[:40_000]) == content[60_000:]
    source.close()


def test_filetypes_are_guessed_from_names() -> None:
    assert filetype_of("a.png") == "image/png"
    assert filetype_of("noending") == "application/octet-stream"


def test_the_facts_of_a_folder(tmp_path: Path) -> None:
    facts = folder_facts("a/b", tmp_path.stat())
    assert (facts.filename.text, facts.filetype, facts.filesize) == ("a/b", FOLDER_FILETYPE, 0)
    assert facts.mode == tmp_path.stat().st_mode & 0o777


# ---- streams --------------------------------------------------------------------------------------------------


def _stream(content: bytes, at_once: int = 1000) -> StreamSource:
    file = io.BytesIO(content)

    async def read_some(view: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        return file.readinto(view[:at_once])

    return StreamSource(read_some, Facts(SafeName.parse("stream"), "text/plain", None))


@quick
@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
async def test_a_stream_ends_with_a_short_or_empty_block(size: int) -> None:
    content = bytes_of(size)
    source = _stream(content, at_once=70_000)
    read = b""
    blockno = 0
    while block := await source.read_block(blockno, _memory()):
        read += block
        blockno += 1
        if len(block) < MIB:
            break
    assert read == content
    assert source.window_bytes is not None


@pytest.mark.clause("BP1-RES-020")
@quick
async def test_a_block_of_a_stream_can_be_read_again_until_it_is_durable() -> None:
    content = bytes_of(MIB + 10)
    source = _stream(content, at_once=MIB)
    for _ in range(2):
        assert await source.read_block(0, _memory()) == content[:MIB]
    view = memoryview(bytearray(MIB))
    assert source.read_into(0, view) == MIB
    assert view == content[:MIB]
    source.durable(0)
    assert source.read_into(0, view) == 0
    with pytest.raises(SourceChanged, match="gone by"):
        await source.read_block(0, _memory())
    assert source.unchanged()
    source.close()


@quick
async def test_a_stream_is_read_in_order() -> None:
    with pytest.raises(SourceChanged):
        await _stream(b"x").read_block(1, _memory())


@quick
async def test_a_binary_file_object_is_a_source() -> None:
    read = reader_of(io.BytesIO(b"content"))
    view = memoryview(bytearray(4))
    assert [await read(view), bytes(view)] == [4, b"cont"]
    assert [await read(view), bytes(view[:3])] == [3, b"ent"]
    assert await read(view) == 0


@quick
async def test_a_trio_stream_is_a_source() -> None:
    here, there = trio.testing.memory_stream_pair()
    await here.send_all(b"content")
    await here.aclose()
    read = reader_of(there)
    view = memoryview(bytearray(4))
    assert [await read(view), bytes(view)] == [4, b"cont"]
    assert await read(view) == 3
    assert await read(view) == 0


@quick
async def test_a_trio_file_is_a_source(tmp_path: Path) -> None:
    async with await trio.open_file(_file(tmp_path, b"content"), "rb") as file:
        read = reader_of(file)
        view = memoryview(bytearray(10))
        assert await read(view) == 7
        assert bytes(view[:7]) == b"content"


@quick
async def test_a_pipe_that_has_nothing_yet_has_not_ended() -> None:
    """A non-blocking descriptor with nothing to read must never be taken for the end of the file."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with io.FileIO(reading) as file, io.FileIO(writing, "wb"), pytest.raises(BlockingIOError):
        await reader_of(file)(memoryview(bytearray(4)))


def test_what_cannot_be_read_is_no_source() -> None:
    with pytest.raises(TypeError, match="neither a path"):
        reader_of(object())
    with pytest.raises(TypeError):
        reader_of(io.StringIO("text"))
