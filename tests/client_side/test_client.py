"""The client against a real server: files up and down, whatever happens to the line, the server or the file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import (
    DAY_S,
    MIB,
    Gate,
    Line,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    bytes_of,
    content_of,
    frames_of,
    names_in,
    payload_length_of,
    run,
    serving,
    uploads_in,
)
from trio.testing import wait_all_tasks_blocked

from blockproto.client import Client, connect_with
from blockproto.client_side.dial import CONNECT_S, tcp_dial
from blockproto.common.blocks import BLOCK_LENGTH, BRIEF_LENGTH_MAX, blocknum_of
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import (
    BadFacts,
    BlockprotoError,
    Code,
    ConnectionLost,
    FileExists,
    LocalProtocolError,
    NameRefused,
    NotEmpty,
    Scope,
    SourceChanged,
    StoreFailed,
    StoreFull,
    Superseded,
    UnknownFile,
    UnknownUpload,
)
from blockproto.protocol.session import Limits
from blockproto.results import UploadJob
from blockproto.serving.server import RETRY_AFTER_MS
from blockproto.store import UploadStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.send_source import Progress
from blockproto.wire import Ack, Committed, EntryKind, Error, Fetch, FileItem, ListKind, Opened, Ping, Result

quick = pytest.mark.trio(run=run)

SIZES = [0, 1, BRIEF_LENGTH_MAX, BRIEF_LENGTH_MAX + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17]


def _file(folder: Path, size: int = 3 * MIB + 17, name: str = "file.bin", seed: int = 1) -> Path:
    path = folder / name
    path.write_bytes(bytes_of(size, seed))
    return path


# ---- there and back -------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("size", SIZES)
async def test_a_file_goes_up_and_comes_back_whole(tmp_path: Path, size: int) -> None:
    path = _file(tmp_path, size)
    content = path.read_bytes()
    async with serving() as served, served.client() as client:
        up = await client.upload(path)
        assert content_of(served.store, "file.bin") == content
        down = await client.download("file.bin", tmp_path / "copy")
        assert served.downloaded(tmp_path / "copy") == content
        for receipt in (up, down):
            assert (receipt.filesize, receipt.blocknum) == (size, blocknum_of(size))
            assert receipt.root == served.store.files("", False, "", 1)[0][0].root.hex()  # type: ignore[union-attr]
            assert receipt.payload_bytes_sent == size
            assert (receipt.blocks_sent, receipt.blocks_skipped) == (blocknum_of(size), 0)
            assert not receipt.resumed
            if size <= MIB:
                assert receipt.b3sum == blake3(content).hexdigest()
        assert up.stored_as == "file.bin"
        assert down.stored_as == str(tmp_path / "copy")
    assert served.payload_sent == size


@quick
@pytest.mark.parametrize("size", [BRIEF_LENGTH_MAX + 1, MIB, 3 * MIB + 17])
async def test_the_same_upload_again_sends_nothing(tmp_path: Path, size: int) -> None:
    path = _file(tmp_path, size)
    async with serving() as served:
        for again in (False, True):
            async with served.client() as client:
                receipt = await client.upload(path)
                assert receipt.resumed is again
                assert receipt.payload_bytes_sent == (0 if again else size)
        assert names_in(served.store) == ["file.bin"]


@quick
async def test_name_folder_filetype_and_times_go_along(tmp_path: Path) -> None:
    path = _file(tmp_path, 100)
    os.utime(path, ns=(5, 1_234_567_890_123_456_789))
    path.chmod(0o640)
    async with serving() as served, served.client() as client:
        await client.upload(path, name="x.jpg", folder="a/b/")
        entry = await client.stat("a/b/x.jpg")
        assert (entry.filename, entry.filetype, entry.filesize) == ("a/b/x.jpg", "image/jpeg", 100)
        assert (entry.mtime_ns, entry.mode) == (1_234_567_890_123_456_789, 0o640)
        receipt = await client.upload(path, name="y", filetype="text/x-mine")
        assert receipt.filetype == "text/x-mine"


@quick
async def test_a_taken_name_is_kept_refused_or_replaced(tmp_path: Path) -> None:
    first, second = _file(tmp_path, 100_000, "a", 1), _file(tmp_path, 100_000, "b", 2)
    async with serving() as served, served.client() as client:
        await client.upload(first, name="name")
        with pytest.raises(FileExists):
            await client.upload(second, name="name", if_exists="refuse")
        assert (await client.upload(second, name="name", if_exists="keep")).stored_as == "name (1)"
        third = _file(tmp_path, 100_000, "c", 3)
        assert (await client.upload(third, name="name", if_exists="replace")).stored_as == "name"
        assert content_of(served.store, "name") == third.read_bytes()


@quick
async def test_what_a_caller_gets_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path, 10)
    async with serving() as served, served.client() as client:
        with pytest.raises(ValueError, match="if_exists"):
            await client.upload(path, if_exists="perhaps")
        with pytest.raises(ValueError, match="name"):
            await client.upload(io.BytesIO(b"x"))
        for source in (object(), 5, b"name.txt", None):
            with pytest.raises(TypeError, match="neither a path"):
                await client.upload(source)
        with pytest.raises(FileNotFoundError):
            await client.upload(tmp_path / "absent")
        with pytest.raises(NameRefused):
            await client.upload(path, name="../up")
        with pytest.raises(ValueError, match="sourceid"):
            await client.cancel_upload("00")
        assert served.lines == []


@quick
async def test_a_client_that_was_closed_says_so(tmp_path: Path) -> None:
    path = _file(tmp_path, 10)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
            entry = await client.stat(path.name)
        with pytest.raises(LocalProtocolError, match="this client is closed"):
            await client.stat(path.name)
        with pytest.raises(LocalProtocolError, match="this client is closed"):
            await client.upload(path)
        with pytest.raises(LocalProtocolError, match="this client is closed"):
            [one async for one in client.upload_all([UploadJob(path, "x")])]
        with pytest.raises(LocalProtocolError, match="this client is closed"):
            [one async for one in client.download_all([(entry, tmp_path / "y")])]


@quick
async def test_a_line_that_carries_a_byte_at_a_time(tmp_path: Path) -> None:
    path = _file(tmp_path, BRIEF_LENGTH_MAX + 100)
    async with serving() as served:
        served.line_options = [{"slices": [1, 7, 1, 1000, 2]}]
        async with served.client() as client:
            await client.upload(path)
            await client.download("file.bin", tmp_path / "copy")
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_a_server_that_allows_the_least_gets_and_gives_everything_without_a_pause(
    tmp_path: Path,
) -> None:
    """The least allowances, pieces and heads, three files at once: credit must keep coming."""
    least = Limits(
        head_length_max=4096,
        piece_length_max=65_536,
        streams_max=256,
        connection_allowance=MIB,
        stream_allowance=262_144,
        undurable_max=0,
    )
    paths = [_file(tmp_path, 3 * MIB + number, f"f{number}", number) for number in range(3)]

    async def there_and_back(client: Client, path: Path) -> None:
        await client.upload(path)
        await client.download(path.name, tmp_path / f"copy of {path.name}")

    async with serving(limits=least) as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(there_and_back, client, path)
        assert trio.current_time() < 10
        for path in paths:
            assert served.downloaded(tmp_path / f"copy of {path.name}") == path.read_bytes()


# ---- streams --------------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("size", [0, 5, MIB - 1, MIB, MIB + 1, 2 * MIB])
async def test_a_stream_of_unknown_length(size: int) -> None:
    content = bytes_of(size)
    async with serving() as served, served.client() as client:
        receipt = await client.upload(io.BytesIO(content), name="stream.bin")
        assert (receipt.filesize, receipt.blocknum) == (size, blocknum_of(size))
        assert content_of(served.store, "stream.bin") == content


@quick
async def test_a_trio_stream_of_unknown_length() -> None:
    content = bytes_of(2 * MIB + 5)
    here, there = trio.testing.memory_stream_pair()
    async with serving() as served, served.client() as client, trio.open_nursery() as nursery:

        async def feed() -> None:
            for at in range(0, len(content), 70_000):
                await here.send_all(content[at : at + 70_000])
            await here.aclose()

        nursery.start_soon(feed)
        await client.upload(there, name="stream.bin")
        assert content_of(served.store, "stream.bin") == content


@quick
async def test_a_stream_goes_on_after_a_lost_connection() -> None:
    """What was read and not acknowledged is kept, so that it can be sent again."""
    content = bytes_of(5 * MIB + 5)
    async with serving() as served:
        served.line_options = [{"cut_sent": 2_500_000}, {"cut_sent": 1_000_000}]
        async with served.client(connections=3) as client:
            receipt = await client.upload(io.BytesIO(content), name="stream.bin")
            assert receipt.filesize == len(content)
        assert len(served.lines) == 3
        assert content_of(served.store, "stream.bin") == content


# ---- lost connections -----------------------------------------------------------------------------------------


def _unacknowledged(line: Line, filesize: int) -> int:
    """Bytes of content that passed a line before it was cut and were not acknowledged on it."""
    acked: set[int] = set()
    for frame in frames_of(line.received):
        if isinstance(frame.message, Ack | Opened):
            acked.update(no for first, count in frame.message.held for no in range(first, first + count))
    held = sum(min(BLOCK_LENGTH, filesize - no * BLOCK_LENGTH) for no in acked)
    return payload_length_of(line.sent) - held


@quick
@pytest.mark.parametrize(
    "cut", [0, 5, 100, 200, 250, 70_000, MIB, MIB + 100, 2_500_000, 3 * MIB + 17, 3 * MIB + 600]
)
async def test_an_upload_goes_on_after_a_cut_and_sends_no_acknowledged_byte_again(
    tmp_path: Path, cut: int
) -> None:
    """Also inside a block and inside a frame: what came before the cut is not sent again at all."""
    path = _file(tmp_path)
    size = path.stat().st_size
    async with serving() as served:
        served.line_options = [{"cut_sent": cut}]
        async with served.client() as client:
            await client.upload(path)
        assert content_of(served.store, "file.bin") == path.read_bytes()
        again = served.payload_sent - size
        assert again <= max(0, _unacknowledged(served.lines[0], size))
        assert again == 0  # the line is gone, but what it carried is there


@quick
async def test_the_answer_to_commit_may_be_lost(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
            whole = len(served.lines[0].received)
        await _remove(served, "file.bin")
        served.line_options = [{"cut_received": whole - 1}]
        async with served.client() as client:
            receipt = await client.upload(path)
        assert receipt.stored_as == "file.bin"
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert names_in(served.store) == ["file.bin"]


async def _remove(served: Served, name: str) -> None:
    async with served.client() as client:
        await client.remove(name)


@quick
async def test_another_run_of_the_client_resumes(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        served.line_options = [{"cut_sent": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.upload(path)
        async with served.client() as client:
            receipt = await client.upload(path)
        assert receipt.resumed
        assert receipt.blocks_skipped == 2
        assert receipt.payload_bytes_sent < MIB + 17
        assert served.payload_sent == path.stat().st_size


@quick
async def test_a_line_that_is_cut_again_and_again_still_carries_the_file(tmp_path: Path) -> None:
    """Twenty cuts within two megabytes, several of them in one block: each try gets further, so none is the last."""
    path = _file(tmp_path, 2 * MIB)
    async with serving() as served:
        served.line_options = [{"cut_sent": 100_000} for _ in range(20)]
        async with served.client(tries=3) as client:
            await client.upload(path)
        assert len(served.lines) == 21
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert served.payload_sent == 2 * MIB


@quick
async def test_a_black_hole_is_noticed_and_the_upload_goes_on(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served, served.client() as client, trio.open_nursery() as nursery:
        gate = Gate(served.server)
        nursery.start_soon(client.upload, path)
        await gate.waits.wait()
        served.lines[0].fall_silent()
        gate.open()
    assert content_of(served.store, "file.bin") == path.read_bytes()
    assert 30 <= trio.current_time() < 40


@quick
async def test_a_damaged_payload_is_sent_again(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        served.line_options = [{"damage_sent": 1_500_000}]
        async with served.client() as client:
            receipt = await client.upload(path)
        assert (receipt.blocks_sent, receipt.blocks_skipped) == (4, 0)
        assert receipt.payload_bytes_sent > path.stat().st_size
        assert len(served.lines) == 1
        assert content_of(served.store, "file.bin") == path.read_bytes()


@quick
async def test_a_damaged_head_ends_the_connection_and_the_upload_goes_on(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        served.line_options = [{"damage_sent": 120}]  # in OPEN
        async with served.client() as client:
            await client.upload(path)
        assert len(served.lines) == 2
        assert content_of(served.store, "file.bin") == path.read_bytes()


@quick
async def test_a_server_that_was_never_reached_is_not_waited_for(tmp_path: Path) -> None:
    tried: list[float] = []

    async def dial() -> Endpoint:
        tried.append(trio.current_time())
        raise ConnectionLost("no way")

    path, small = _file(tmp_path), _file(tmp_path, 10, "small")
    async with connect_with(dial, "nowhere", _no_sidecar) as client:
        for request in (
            client.upload(path),
            client.upload(small),
            client.stat("x"),
            client.download("x", tmp_path / "x"),
            client.remove("x"),
        ):
            with pytest.raises(ConnectionLost, match="no way"):
                await request
    assert tried == [0.0] * 5


def _no_sidecar(dest: Path, first: int) -> UploadStore:
    raise AssertionError


@quick
async def test_small_files_are_tried_again_too(tmp_path: Path) -> None:
    path = _file(tmp_path, 1000)
    async with serving() as served:
        served.line_options = [{"cut_sent": 600}, {"cut_received": 3}]
        async with served.client() as client:
            await client.upload(path)
        assert names_in(served.store) == ["file.bin"]
        assert content_of(served.store, "file.bin") == path.read_bytes()


# ---- several connections --------------------------------------------------------------------------------------


@quick
async def test_a_big_file_goes_over_several_connections(tmp_path: Path) -> None:
    path = _file(tmp_path, 8 * MIB)
    async with serving() as served, served.client(connections=3) as client:
        receipt = await client.upload(path)
        assert receipt.connections == 3
        assert receipt.payload_bytes_sent == 8 * MIB
        assert [payload_length_of(line.sent) > 0 for line in served.lines] == [True] * 3
        assert content_of(served.store, "file.bin") == path.read_bytes()


@quick
async def test_a_file_of_two_blocks_needs_no_more_than_two_connections(tmp_path: Path) -> None:
    async with serving() as served, served.client(connections=5) as client:
        assert (await client.upload(_file(tmp_path, MIB + 1))).connections == 2
        assert len(served.lines) == 2


@quick
@pytest.mark.parametrize("lost", [0, 1])
async def test_one_of_several_connections_may_be_lost(tmp_path: Path, lost: int) -> None:
    path = _file(tmp_path, 8 * MIB)
    async with serving() as served:
        served.line_options = [{}, {}]
        served.line_options[lost] = {"cut_sent": 1_500_000}
        async with served.client(connections=2) as client:
            receipt = await client.upload(path)
        assert receipt.filesize == 8 * MIB
        assert content_of(served.store, "file.bin") == path.read_bytes()


@quick
async def test_several_connections_repair_a_changed_file_together(tmp_path: Path) -> None:
    """DIGESTS_DIFFER is for the connection that said COMMIT; the others wait."""
    path = await _begun_with_other_bytes(tmp_path)
    async with serving() as served:
        await _leave_unfinished(served, path)
        _rewrite_unnoticed(path)
        async with served.client(connections=3) as client:
            await client.upload(path)
        assert content_of(served.store, "file.bin") == path.read_bytes()


# ---- takeover, cancellation, changes --------------------------------------------------------------------------


async def _begun_with_other_bytes(folder: Path) -> Path:
    await trio.lowlevel.checkpoint()
    return _file(folder, 4 * MIB)


async def _leave_unfinished(served: Served, path: Path, blocks: int = 3) -> None:
    """Upload the first blocks of a file and lose the connection."""
    served.line_options = [{"cut_sent": blocks * (MIB + 5000) + 2000}]
    async with served.client(tries=1) as client:
        with pytest.raises(ConnectionLost):
            await client.upload(path)
    await wait_all_tasks_blocked()
    (entry,) = uploads_in(served.store)
    assert entry.held_count == blocks


def _rewrite_unnoticed(path: Path) -> None:
    """Change a byte of the second block and set the time back: same size, time and inode, and so the same sourceid."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"?")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@quick
async def test_held_blocks_of_another_content_are_repaired_never_spliced(tmp_path: Path) -> None:
    path = await _begun_with_other_bytes(tmp_path)
    async with serving() as served:
        await _leave_unfinished(served, path)
        _rewrite_unnoticed(path)
        async with served.client() as client:
            receipt = await client.upload(path)
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert receipt.payload_bytes_sent <= 2 * MIB  # the last block and the repaired one


@quick
@pytest.mark.parametrize("change", ["touch", "grow", "shrink"])
async def test_a_file_that_changes_while_it_is_sent_is_refused(tmp_path: Path, change: str) -> None:
    path = _file(tmp_path)
    limits = Limits(undurable_max=MIB)  # so that it waits for the first block to be durable
    async with (
        serving(limits=limits) as served,
        served.client() as client,
        trio.open_nursery() as nursery,
    ):
        gate = Gate(served.server)

        async def upload() -> None:
            with pytest.raises(SourceChanged):
                await client.upload(path)

        nursery.start_soon(upload)
        await gate.waits.wait()
        if change == "touch":
            os.utime(path, ns=(1, 1))
        else:
            os.truncate(path, 5 * MIB if change == "grow" else MIB)
        gate.open()
    assert names_in(served.store) == []
    assert uploads_in(served.store) == []  # nobody could ever go on with it


@quick
async def test_a_file_whose_mode_changes_while_it_is_sent_is_read_again_and_finished(tmp_path: Path) -> None:
    """Its inode says that something changed; reading it again shows that it was not the content."""
    path = _file(tmp_path)
    async with (
        serving(limits=Limits(undurable_max=MIB)) as served,
        served.client() as client,
        trio.open_nursery() as nursery,
    ):
        gate = Gate(served.server)
        nursery.start_soon(client.upload, path)
        await gate.waits.wait()
        path.chmod(0o600)
        gate.open()
    assert content_of(served.store, "file.bin") == path.read_bytes()
    assert served.payload_sent == path.stat().st_size


@quick
async def test_a_small_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.sources.FileSource.unchanged", lambda source: False)
    async with serving() as served, served.client() as client:
        with pytest.raises(SourceChanged):
            await client.upload(_file(tmp_path, 100))
        assert names_in(served.store) == []


@quick
@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_a_stream_that_fails_leaves_nothing_on_the_server(how: str) -> None:
    """It can never be read again, so nobody could go on with it."""

    class Failing(io.BytesIO):
        def readinto1(self, view: Any) -> int:
            if self.tell() >= 2 * MIB:
                raise OSError(5, "Input/output error")
            return super().readinto1(view)

    async with serving() as served, served.client() as client:
        here, there = trio.testing.memory_stream_pair()
        if how == "error":
            with pytest.raises(OSError, match="Input/output"):
                await client.upload(Failing(bytes_of(3 * MIB)), name="stream.bin")
        else:
            await here.send_all(bytes_of(2 * MIB))
            with trio.move_on_after(5):
                await client.upload(there, name="stream.bin")
        await wait_all_tasks_blocked()
        assert names_in(served.store) == []
        assert uploads_in(served.store) == []
        assert not served.server.engine.uploads._live


@quick
async def test_a_client_that_was_taken_over_gives_up(tmp_path: Path) -> None:
    """Two machines would fence each other for ever if it tried a greater attempt by itself."""
    path = _file(tmp_path)
    async with serving() as served:
        gate = Gate(served.server)
        async with served.client() as client, trio.open_nursery() as nursery:

            async def upload() -> None:
                with pytest.raises(Superseded) as caught:
                    await client.upload(path)
                assert caught.value.current == 1 << 60

            nursery.start_soon(upload)
            await gate.waits.wait()
            sourceid = client.sourceid_of(path, "file.bin", path.stat())
            sample = Sample(path.read_bytes(), "file.bin", sourceid=sourceid)
            peer = await served.peer()
            await peer.say(1, sample.open(1 << 60))
            await peer.expect(Opened)
            gate.open()
        assert len(served.lines) == 1


@quick
async def test_a_cancelled_upload_lets_go_of_its_stream_and_resumes(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served, served.client() as client:
        gate = Gate(served.server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.upload, path)
            await wait_all_tasks_blocked()  # everything was said, nothing is durable
            nursery.cancel_scope.cancel()
        gate.open()
        await wait_all_tasks_blocked()
        connection = await client.connection()
        assert connection.session.open_streams == 0
        assert not served.server.engine.uploads._live
        assert (await client.upload(path)).resumed
        assert len(served.lines) == 1
        assert content_of(served.store, "file.bin") == path.read_bytes()


@quick
async def test_two_uploads_at_once_over_one_connection(tmp_path: Path) -> None:
    """They share the line, and neither waits for the other's end, nor for credit that does not come."""
    paths = [_file(tmp_path, 5 * MIB + 3, f"f{number}", number) for number in range(3)]
    async with serving() as served, served.client() as client:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(client.upload, path)
        assert trio.current_time() < 2
        for path in paths:
            assert content_of(served.store, path.name) == path.read_bytes()


@quick
async def test_two_clients_at_once(tmp_path: Path) -> None:
    paths = [_file(tmp_path, 3 * MIB, f"f{number}", number) for number in range(2)]

    async def one(served: Served, path: Path) -> None:
        async with served.client() as client:
            await client.upload(path)
            await client.download(path.name, tmp_path / f"copy of {path.name}")

    async with serving() as served:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(one, served, path)
        for path in paths:
            assert served.downloaded(tmp_path / f"copy of {path.name}") == path.read_bytes()


# ---- what the server does -------------------------------------------------------------------------------------


@quick
async def test_a_full_disk_stops_an_upload_and_the_same_call_finishes_it_once_there_is_room(
    tmp_path: Path,
) -> None:
    path = _file(tmp_path)
    store = WatchedStore()
    async with serving(store) as served, served.client() as client:
        await client.listing().aclose()
        store._begin(
            _key(client, path), _facts_of(path)
        )  # an OPEN that found room; then others filled the disk
        full = _fill_after(store, 2 * MIB + 1000)
        with pytest.raises(StoreFull):
            await client.upload(path)
        full()
        receipt = await client.upload(path)
        assert receipt.resumed
        assert receipt.blocks_skipped == 2
        assert content_of(store, "file.bin") == path.read_bytes()
        assert names_in(store) == ["file.bin"]


def _key(client: Client, path: Path) -> Any:
    from blockproto.store import UploadKey

    return UploadKey(bytes(16), client.sourceid_of(path, path.name, path.stat()))


def _facts_of(path: Path) -> Any:
    from blockproto.common.names import SafeName
    from blockproto.store import Facts

    return Facts(SafeName.parse(path.name), "application/octet-stream", path.stat().st_size)


def _fill_after(store: MemoryStore, length: int) -> Callable[[], None]:
    """Let ``length`` more bytes be written, then nothing until the returned function is called."""
    left = [length]
    take_room = store.take_room

    def take(more: int) -> None:
        if more > left[0]:
            raise StoreFull
        left[0] -= more

    store.take_room = take  # type: ignore[method-assign, assignment]

    def make_room() -> None:
        store.take_room = take_room  # type: ignore[method-assign]

    return make_room


@quick
async def test_a_failed_store_is_told_and_not_tried_again(tmp_path: Path) -> None:
    store = WatchedStore()
    async with serving(store, fails=StoreFailed) as served:
        store.broken = True
        async with served.client() as client:
            with pytest.raises(ConnectionLost) as caught:
                await client.upload(_file(tmp_path))
            assert caught.value.code is Code.STORE_FAILED
            assert not caught.value.retryable
        assert len(served.lines) == 1


@quick
async def test_an_upload_goes_on_at_the_next_server(tmp_path: Path) -> None:
    """GOAWAY in the middle: the client ends its block, leaves, and comes back where the next server listens."""
    path = _file(tmp_path, 6 * MIB)
    store = WatchedStore()
    next_store: MemoryStore
    finished: list[int] = []
    lines: list[Line] = []
    current: list[Served] = []

    async def dial() -> Endpoint:
        endpoint = await current[-1].dial()
        lines.append(current[-1].lines[-1])
        return endpoint

    async def upload() -> None:
        async with connect_with(dial, "memory", _no_sidecar) as client:
            finished.append((await client.upload(path)).filesize)

    async with trio.open_nursery() as nursery:
        async with serving(store) as served:
            current.append(served)
            store.before_commit = lambda batch: served.server.stop()  # as soon as the first block is durable
            nursery.start_soon(upload)
            await wait_all_tasks_blocked()
        next_store = store.survivor()
        async with serving(next_store) as served:
            current.append(served)
            while not finished:
                await trio.sleep_until(trio.current_time() + 0.5)
                await wait_all_tasks_blocked()
    assert finished == [6 * MIB]
    assert trio.current_time() >= RETRY_AFTER_MS / 1000
    assert content_of(next_store, "file.bin") == path.read_bytes()
    assert sum(payload_length_of(line.sent) for line in lines) == 6 * MIB


# ---- downloads ------------------------------------------------------------------------------------------------

SPANS = [
    (0, 0),
    (0, MIB - 1),
    (0, MIB),
    (MIB - 1, MIB - 1),
    (MIB - 1, MIB),
    (MIB, MIB),
    (MIB, 2 * MIB - 1),
    (MIB, 2 * MIB),
    (5, 3 * MIB + 16),
    (3 * MIB + 16, 3 * MIB + 16),
    (3 * MIB, 10 * MIB),
    (0, 10 * MIB),
]


@quick
@pytest.mark.parametrize("span", SPANS)
async def test_a_range_of_a_file(tmp_path: Path, span: tuple[int, int]) -> None:
    path = _file(tmp_path)
    async with serving() as served, served.client() as client:
        await client.upload(path)
        receipt = await client.download("file.bin", tmp_path / "part", span=span)
        expected = path.read_bytes()[span[0] : span[1] + 1]
        assert served.downloaded(tmp_path / "part", span[0]) == expected
        assert receipt.filesize == len(expected) == receipt.payload_bytes_sent
        if len(expected) == path.stat().st_size:
            assert receipt.root == (await client.stat("file.bin")).root
        if receipt.blocknum == 1:
            assert receipt.b3sum == blake3(expected).hexdigest()


@quick
async def test_ranges_that_cannot_be(tmp_path: Path) -> None:
    path = _file(tmp_path, 100)
    async with serving() as served, served.client() as client:
        await client.upload(path)
        await client.upload(_file(tmp_path, 0, "empty"))
        for name, span in (
            ("file.bin", (100, 100)),
            ("file.bin", (5, 4)),
            ("file.bin", (-1, 4)),
            ("empty", (0, 0)),
        ):
            with pytest.raises(BadFacts):
                await client.download(name, tmp_path / "part", span=span)


@quick
async def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    async with serving() as served, served.client() as client:
        await client.upload(_file(tmp_path, 10), folder="a")
        for name, kind in (("absent", UnknownFile), ("../up", NameRefused)):
            with pytest.raises(kind):
                await client.download(name, tmp_path / "x")
        with pytest.raises(BlockprotoError):
            await client.download("a", tmp_path / "x")


@quick
@pytest.mark.parametrize("cut", [300, 700, 100_000, MIB + 100, 2_500_000])
async def test_a_download_goes_on_after_a_cut(tmp_path: Path, cut: int) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.lines.clear()
        served.line_options = [{"cut_received": cut}]
        async with served.client() as client:
            await client.download("file.bin", tmp_path / "copy")
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()
        received = sum(payload_length_of(line.received) for line in served.lines)
        assert received == path.stat().st_size


@quick
async def test_a_download_that_is_cut_again_and_again_still_finishes(tmp_path: Path) -> None:
    path = _file(tmp_path, 2 * MIB)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.line_options = [{"cut_received": 100_000} for _ in range(20)]
        async with served.client(tries=3) as client:
            await client.download("file.bin", tmp_path / "copy")
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_another_run_of_the_client_resumes_a_download(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.line_options = [{"cut_received": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.download("file.bin", tmp_path / "copy")
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "copy")
        assert receipt.resumed
        assert receipt.blocks_skipped == 2
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_a_download_of_a_file_that_was_replaced_meanwhile_begins_anew(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.line_options = [{"cut_received": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.download("file.bin", tmp_path / "copy")
        other = _file(tmp_path, name="other", seed=9)
        async with served.client() as client:
            await client.upload(other, name="file.bin", if_exists="replace")
            receipt = await client.download("file.bin", tmp_path / "copy")
        assert not receipt.resumed
        assert served.downloaded(tmp_path / "copy") == other.read_bytes()


@quick
async def test_a_file_replaced_between_the_question_and_the_answer_is_never_spliced(tmp_path: Path) -> None:
    """The version that stat told is the one that is fetched, or none."""
    path, other = _file(tmp_path), _file(tmp_path, name="other", seed=9)
    store = WatchedStore()
    async with serving(store) as served, served.client() as client:
        await client.upload(path)
        opens = store.open_file

        def replaced(*args: Any) -> Any:
            store._files["file.bin"].entry = store._files["other"].entry
            return opens(*args)

        await client.upload(other, name="other")
        store.open_file = replaced  # type: ignore[method-assign, assignment]
        with pytest.raises((SourceChanged, UnknownFile)):
            await client.download("file.bin", tmp_path / "copy")


@quick
async def test_a_server_that_answers_with_another_version_is_not_believed(tmp_path: Path) -> None:
    """The first half may lie here from the version that was asked for: the second must not come from another."""
    here, there = trio.testing.memory_stream_pair()
    server = RawPeer(there)
    item = FileItem(EntryKind.FILE, 10, 0, 0o644, bytes(16), b"the version: one", "file.bin", "")

    async def dial() -> Endpoint:
        return StreamEndpoint(here)

    async def answer() -> None:
        await server.greet()
        await server.say((await server.hear()).stream, Result(ListKind.FILES, (item,)))
        heard = await server.hear()
        assert isinstance(heard.message, Fetch)
        assert heard.message.version == item.version
        opening = Sample(bytes(10)).open(filename="file.bin", version=b"the version: two")
        await server.say(heard.stream, opening)
        await server.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, heard.stream)

    async with (
        connect_with(dial, "memory", lambda dest, first: MemoryStore()) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer)
        with pytest.raises(SourceChanged):
            await client.download("file.bin", tmp_path / "copy")


@quick
async def test_a_cancelled_download_keeps_what_it_has_and_ends_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        async with served.client() as client:
            async with trio.open_nursery() as nursery:

                def stop(progress: Progress) -> None:
                    served.lines[-1].fall_silent()

                nursery.start_soon(_download, client, tmp_path / "copy", stop)
                await trio.sleep_until(1.0)
                nursery.cancel_scope.cancel()
            assert trio.current_time() == 1.0
        (entry,) = _uploads(served.sidecars[str(tmp_path / "copy"), 0])
        assert entry.held_count >= 1
        async with served.client() as client:
            assert (await client.download("file.bin", tmp_path / "copy")).resumed
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_a_download_cancelled_inside_a_block_records_how_far_it_got(tmp_path: Path) -> None:
    path = _file(tmp_path, MIB)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.lines.clear()
        served.line_options = [{"slices": [50_000]}]
        async with served.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(_download, client, tmp_path / "copy", None)
            while not served.lines or len(served.lines[0].received) < 300_000:
                await trio.lowlevel.checkpoint()
            served.lines[0].fall_silent()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "copy")
        assert receipt.payload_bytes_sent <= MIB - 200_000
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


async def _download(client: Client, dest: Path, progress: Callable[[Progress], None] | None) -> None:
    await client.download("file.bin", dest, progress=progress)


def _uploads(store: MemoryStore) -> Any:
    return store.uploads(bytes(16), "", 10)[0]


@quick
async def test_a_download_into_a_full_disk_says_so_and_resumes(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served, served.client() as client:
        await client.upload(path)
        sidecar = served.open_part_file(tmp_path / "copy", 0)
        assert isinstance(sidecar, MemoryStore)
        make_room = _fill_after(sidecar, MIB + 1000)
        with pytest.raises(StoreFull):
            await client.download("file.bin", tmp_path / "copy")
        make_room()
        assert (await client.download("file.bin", tmp_path / "copy")).resumed
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_what_progress_raises_comes_out_of_the_download(tmp_path: Path) -> None:
    path = _file(tmp_path)

    def fails(_: Progress) -> None:
        raise KeyError("the caller's own")

    async with serving() as served, served.client() as client:
        await client.upload(path)
        with pytest.raises(KeyError), trio.fail_after(60):
            await client.download("file.bin", tmp_path / "copy", progress=fails)
        assert (await client.download("file.bin", tmp_path / "copy")).resumed
        assert served.downloaded(tmp_path / "copy") == path.read_bytes()


@quick
async def test_a_download_into_a_disk_that_fails_raises_its_error(tmp_path: Path) -> None:
    async with serving() as served, served.client() as client:
        await client.upload(_file(tmp_path))
        sidecar = served.open_part_file(tmp_path / "copy", 0)
        assert isinstance(sidecar, MemoryStore)
        sidecar.broken = True
        with pytest.raises(StoreFailed):
            await client.download("file.bin", tmp_path / "copy")
        assert [entry.filename async for entry in client.listing()] == ["file.bin"]


@quick
async def test_a_fetcher_that_gives_up_says_cancelled(tmp_path: Path) -> None:
    async with serving() as served:
        async with served.client() as client:
            await client.upload(_file(tmp_path, 8 * MIB))
        served.lines.clear()
        served.line_options = [{"slices": [50_000]}]
        durable = trio.Event()
        async with served.client() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_download, client, tmp_path / "copy", lambda progress: durable.set())
                await durable.wait()
                nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            said = [frame.message for frame in frames_of(served.lines[0].sent)]
            (error,) = [message for message in said if isinstance(message, Error)]
            assert (error.code, error.scope) == (Code.CANCELLED, Scope.STREAM)
            assert not any(isinstance(message, Committed) for message in said)


# ---- questions ------------------------------------------------------------------------------------------------


@quick
async def test_listing_goes_through_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.serving.handlers.requests.PAGE_ITEMS_MAX", 3)
    path = _file(tmp_path, 5)
    async with serving() as served, served.client() as client:
        for number in range(8):
            await client.upload(path, name=f"f{number}", folder="a/b")
        names = [f"a/b/f{number}" for number in range(8)]
        assert [entry.filename async for entry in client.listing("/a/b/")] == names
        assert [entry.filename async for entry in client.listing("a", recursive=True)] == ["a/b", *names]
        assert [(entry.filename, entry.folder) async for entry in client.listing()] == [("a", True)]
        async with aclosing(client.listing("absent")) as entries:
            with pytest.raises(UnknownFile):
                await anext(entries)


@quick
async def test_stat_computes_the_b3sum_when_asked(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served, served.client() as client:
        await client.upload(path)
        assert (await client.stat("file.bin")).b3sum is None
        expected = blake3(path.read_bytes()).hexdigest()
        assert (await client.stat("/file.bin", b3sum=True)).b3sum == expected
        assert (await client.stat("file.bin")).b3sum == expected
        assert (await client.download("file.bin", tmp_path / "copy")).b3sum == expected
        with pytest.raises(UnknownFile):
            await client.stat("absent")


@quick
async def test_unfinished_uploads_are_listed_and_cancelled(tmp_path: Path) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        await _leave_unfinished(served, path, 2)
        async with served.client() as client:
            (info,) = [one async for one in client.uploads()]
            assert (info.filename, info.filesize, info.blocknum) == ("file.bin", path.stat().st_size, 4)
            assert (info.position, info.held_count) == (2 * MIB, 2)
            await client.cancel_upload(info.sourceid)
            assert [one async for one in client.uploads()] == []
            with pytest.raises(UnknownUpload):
                await client.cancel_upload(info.sourceid)


@quick
async def test_files_and_folders_are_removed(tmp_path: Path) -> None:
    path = _file(tmp_path, 5)
    async with serving() as served, served.client() as client:
        await client.upload(path, folder="a")
        with pytest.raises(NotEmpty):
            await client.remove("a")
        await client.remove("a/file.bin")
        await client.remove("/a/", recursive=True)
        with pytest.raises(UnknownFile):
            await client.remove("a")


@quick
async def test_receipts_are_asked_for_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.client_side.context.RECEIPTS_MAX", 3)
    monkeypatch.setattr("blockproto.serving.handlers.requests.RECEIPTS_MAX", 2)
    async with serving() as served, served.client() as client:
        ids = []
        for number in range(7):
            receipt = await client.upload(_file(tmp_path, 5, f"f{number}", number))
            ids.append(bytes.fromhex(receipt.sourceid))
        found = await client.receipts([*ids, bytes(16)])
        assert set(found) == set(ids)
        assert await client.receipts([]) == {}


@quick
async def test_an_idle_client_stays_connected_by_pings() -> None:
    async with serving() as served, served.client() as client:
        assert [entry async for entry in client.listing()] == []
        await trio.sleep_until(3600.0)
        assert [entry async for entry in client.listing()] == []
        assert len(served.lines) == 1
        pings = [frame for frame in frames_of(served.lines[0].sent) if isinstance(frame.message, Ping)]
        assert len(pings) == 3600 // 15


@quick
async def test_a_connection_that_was_lost_while_idle_is_made_again() -> None:
    async with serving() as served, served.client() as client:
        assert [entry async for entry in client.listing()] == []
        await served.lines[0].cut()
        await wait_all_tasks_blocked()
        assert [entry async for entry in client.listing()] == []
        assert len(served.lines) == 2


@quick
async def test_progress_rises_and_ends_at_the_size(tmp_path: Path) -> None:
    path = _file(tmp_path)
    size = path.stat().st_size
    async with serving() as served, served.client() as client:
        seen: dict[str, list[int]] = {"up": [], "down": [], "small": []}

        def observer(which: str) -> Callable[[Progress], None]:
            return lambda progress: seen[which].append(progress.position_bytes_done)

        await client.upload(path, progress=observer("up"))
        await client.download("file.bin", tmp_path / "copy", progress=observer("down"))
        await client.upload(_file(tmp_path, 10, "small"), progress=observer("small"))
        assert seen["small"] == [10]
        for positions in (seen["up"], seen["down"]):
            assert positions == sorted(positions)
            assert positions[-1] <= size
            assert positions[-1] >= MIB


@pytest.mark.parametrize(
    ("url", "name"),
    [("bp://host:99", "host:99"), ("bp://host", "host:7878"), ("bp://[::1]:5", "[::1]:5")],
)
def test_addresses(url: str, name: str) -> None:
    assert tcp_dial(url)[1] == name


@pytest.mark.parametrize(
    "url", ["http://host", "host:99", "bp://", "", "bp://h:65536", "bp://h:x", "bp://h/folder/"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="bp://HOST:PORT"):
        tcp_dial(url)


@quick
async def test_a_host_that_does_not_answer_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    dial, _ = tcp_dial("bp://host:1")
    with pytest.raises(ConnectionLost, match="host:1 did not answer within 10 s"):
        await dial()
    assert trio.current_time() == CONNECT_S


async def test_a_host_that_does_not_exist_is_a_lost_connection() -> None:
    dial, _ = tcp_dial("bp://does-not-exist.invalid:1")
    with pytest.raises(ConnectionLost, match="cannot reach"):
        await dial()


# ---- whatever happens -----------------------------------------------------------------------------------------

CUTS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"cut_sent": st.integers(0, 400)}),  # preface, HELLO, OPEN, the first heads
        st.fixed_dictionaries({"cut_sent": st.integers(400, 2 * MIB + 3000)}),
        st.fixed_dictionaries({"cut_received": st.integers(0, 500)}),
        st.fixed_dictionaries(
            {"damage_sent": st.integers(1000, 60_000)}
        ),  # in the content of the first piece
        st.fixed_dictionaries(
            {
                "cut_sent": st.integers(0, 2 * MIB),
                "slices": st.lists(st.integers(1, 5000), min_size=1, max_size=5),
            }
        ),
    ),
    max_size=4,
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(
    cuts=CUTS,
    size=st.sampled_from([0, 1, BRIEF_LENGTH_MAX, 100_000, MIB, MIB + 1, 2 * MIB]),
    connections=st.integers(1, 2),
    restart=st.booleans(),
)
def test_an_upload_always_finishes_identical(
    cuts: list[dict[str, Any]], size: int, connections: int, restart: bool
) -> None:
    """Cuts at every kind of byte, damaged content, a power cut of the server between two runs of the client."""
    if (
        size <= BRIEF_LENGTH_MAX
    ):  # a brief file that comes damaged is refused as a whole: its caller tries again
        cuts = [cut for cut in cuts if "damage_sent" not in cut]
    with TemporaryDirectory() as folder:
        path = _file(Path(folder), size)
        run(_upload_whatever_happens, path, path.read_bytes(), cuts, connections, restart)


async def _upload_whatever_happens(
    path: Path, content: bytes, cuts: list[dict[str, Any]], connections: int, restart: bool
) -> None:
    store = WatchedStore()
    if restart:
        async with serving(store) as served:
            served.line_options = cuts[:1]
            async with served.client(tries=1, connections=connections) as client:
                with suppress(ConnectionLost):
                    await client.upload(path)
        survivor = store.survivor()
        assert all(entry.held_count <= 2 for entry in uploads_in(survivor))
        names_before = names_in(survivor)
    else:
        survivor, names_before = store, []
    async with serving(survivor) as served:
        served.line_options = list(cuts[restart:])
        async with served.client(tries=8, retry_for_s=DAY_S, connections=connections) as client:
            receipt = await client.upload(path)
        assert content_of(survivor, receipt.stored_as) == content
        assert names_in(survivor) == ["file.bin"]
        assert names_before in ([], ["file.bin"])
        assert uploads_in(survivor) == []


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(
    cuts=st.lists(
        st.one_of(
            st.fixed_dictionaries({"cut_received": st.integers(0, 2 * MIB + 3000)}),
            st.fixed_dictionaries({"cut_sent": st.integers(0, 600)}),
            st.fixed_dictionaries(
                {
                    "cut_received": st.integers(0, 300_000),
                    "slices": st.lists(st.integers(1, 9000), min_size=1),
                }
            ),
        ),
        max_size=4,
    ),
    size=st.sampled_from([0, 1, 100_000, MIB, MIB + 1, 2 * MIB]),
    span=st.one_of(st.none(), st.tuples(st.integers(0, MIB), st.integers(MIB, 3 * MIB))),
)
def test_a_download_always_finishes_identical(
    cuts: list[dict[str, Any]], size: int, span: tuple[int, int] | None
) -> None:
    """Cuts anywhere, for whole files and for ranges."""
    if span is not None and span[0] >= size:
        span = None
    with TemporaryDirectory() as folder:
        path = _file(Path(folder), size)
        run(_download_whatever_happens, path, path.read_bytes(), cuts, span)


async def _download_whatever_happens(
    path: Path, content: bytes, cuts: list[dict[str, Any]], span: tuple[int, int] | None
) -> None:
    copy = path.with_name("copy")
    first, last = span or (0, len(content))
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        for half in (cuts[::2], cuts[1::2]):
            served.line_options = list(half)
            async with served.client(tries=8, retry_for_s=DAY_S) as client:
                await client.download("file.bin", copy, span=span)
            assert served.downloaded(copy, first) == content[first : last + 1]
