"""The dialect ``struct82`` at the server: layouts, numberings, any order, breaks, repeats, senders that never read."""

from __future__ import annotations

import socket

import pytest
import trio
from peers import Gate, bytes_of, content_of, names_in, run, uploads_in
from struct82_peers import LAYOUTS, MIB, Answering, Layout, Sender, Sent, answering, permutations_of

from blockproto.dialects.struct82_line import UNREAD_LENGTH_MAX, Replies
from blockproto.store import BlockDone
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.slow_disk import Disk

quick = pytest.mark.trio(run=run)


def memory(answers: Answering) -> MemoryStore:
    assert isinstance(answers.store, MemoryStore)
    return answers.store


async def send_all(sender: Sender, blocks: list[bytes]) -> None:
    """Send blocks and end, like a program that never asked."""
    for block in blocks:
        await sender.send(block)
    await closed(sender)


async def wait_until_stored(answers: Answering, deadline: float) -> None:
    """Wait until there is a finished file."""
    with trio.fail_after(deadline):
        while True:
            if names_in(memory(answers)):
                return
            await trio.sleep(0.01)


async def closed(sender: Sender) -> None:
    """End like a program that never read: what it sent was sent before."""
    await sender.stream.send_eof()
    assert await sender.rest() == b""
    await sender.stream.aclose()


@quick
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
async def test_a_file_arrives_from_a_sender_that_knows_the_header_only(layout: Layout, first: int) -> None:
    file = Sent(bytes_of(3 * MIB + 17), layout=layout, first=first)
    async with answering() as answers:
        sender = await answers.dial()
        for number in file.numbers:
            await sender.send(file.block(number))
        await closed(sender)
        await answers.settle()
        assert content_of(memory(answers), "film.bin") == file.content
        assert not uploads_in(memory(answers))


@quick
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
async def test_who_asks_is_answered_block_by_block(layout: Layout, first: int) -> None:
    file = Sent(bytes_of(2 * MIB + 5), layout=layout, first=first)
    async with answering() as answers:
        sender = await answers.dial()
        asked = await sender.ask(file)
        assert (asked.reply[:4], asked.bits) == ((0, -1, 0, 0), set())
        for held, number in enumerate(file.numbers, 1):
            reply = await sender.put(file, number)
            complete = held == file.blocknum
            assert reply == (0, number, held, complete, file.digest(number))
        asked = await sender.ask(file)
        assert asked.reply == (0, -1, 3, 1, file.root)
        assert (asked.bits, asked.stored_as) == (set(file.numbers), "film.bin")
        await sender.stream.send_eof()
        assert await sender.rest() == b""
        assert content_of(memory(answers), "film.bin") == file.content


@quick
@pytest.mark.parametrize("one_more", [False, True])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("filesize", [1, MIB - 1, MIB, MIB + 1, 3 * MIB, 3 * MIB + 5])
async def test_blocks_come_in_any_order_over_five_connections_at_once(
    filesize: int, first: int, one_more: bool
) -> None:
    for seed, order in enumerate(
        permutations_of(Sent(bytes(filesize), first=first, one_more=one_more).numbers, range(3))
    ):
        file = Sent(bytes_of(filesize, seed), first=first, one_more=one_more)
        async with answering() as answers, trio.open_nursery() as nursery:
            for connection in range(5):
                blocks = [file.block(number) for number in order[connection::5]]
                nursery.start_soon(send_all, await answers.dial(), blocks)
            await wait_until_stored(answers, deadline=1000)
            assert content_of(memory(answers), "film.bin") == file.content


# ---- the numbering --------------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-S82-017")
async def test_blocks_that_came_before_the_numbering_was_known_are_moved_and_never_asked_for_again() -> None:
    file = Sent(bytes_of(5 * MIB + 1))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        for number in (3, 1, 2):
            assert (await sender.put(file, number)).code == 0
        assert (await sender.ask(file)).bits == {1, 2, 3}
        reply = await sender.put(file, 0)
        assert (reply.code, reply.held) == (0, 4)
        assert (await sender.ask(file)).bits == {0, 1, 2, 3}
        assert [entry.held_count for entry in uploads_in(memory(answers))] == [4]
        await sender.put(file, 4)
        assert (await sender.put(file, 5)).complete == 1
        assert content_of(memory(answers), "film.bin") == file.content
        assert not uploads_in(memory(answers))
        await closed(sender)


@quick
@pytest.mark.clause("BP1-S82-017")
async def test_a_restart_in_the_middle_of_moving_loses_no_acknowledged_block() -> None:
    """Both numberings hold blocks, as a kill in the middle of moving leaves them."""
    file = Sent(bytes_of(5 * MIB + 1))
    store = MemoryStore()
    for told, counted, number in ((1, file, 3), (1, file, 1), (0, file, 4), (0, file, 1)):
        async with answering(store, first=told) as answers:
            sender = await answers.dial()
            await sender.ask(counted)
            assert (await sender.put(counted, number)).code == 0
            await closed(sender)
        store = store.survivor()
    async with answering(store) as answers:
        sender = await answers.dial()
        assert (await sender.ask(file)).bits == {1, 3, 4}
        assert [entry.held_count for entry in uploads_in(memory(answers))] == [3]
        for number in (0, 2, 5):
            await sender.put(file, number)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
@pytest.mark.clause("BP1-S82-017")
async def test_a_numbering_that_is_not_settled_survives_a_restart() -> None:
    file = Sent(bytes_of(3 * MIB + 1), first=1)
    store = MemoryStore()
    async with answering(store) as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.put(file, 2)
        await closed(sender)
    async with answering(store.survivor()) as answers:
        sender = await answers.dial()
        assert (await sender.ask(file)).bits == {2}
        for number in (1, 3, 4):
            await sender.put(file, number)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
@pytest.mark.clause("BP1-S82-018")
async def test_the_last_block_first_is_told_by_the_header_behind_it() -> None:
    file = Sent(bytes_of(3 * MIB + 1000))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.send(file.block(3) + file.block(2) + file.block(1) + file.block(0))
        assert [await sender.reply(file) for _ in range(4)] == [
            (0, 3, 1, 0, file.digest(3)),
            (0, 2, 2, 0, file.digest(2)),
            (0, 1, 3, 0, file.digest(1)),
            (0, 0, 4, 1, file.digest(0)),
        ]
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
@pytest.mark.clause("BP1-S82-018")
async def test_a_long_block_where_a_short_one_could_be_is_told_by_its_own_bytes() -> None:
    file = Sent(bytes_of(3 * MIB + 1000), first=1)
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        block = file.block(3)
        await sender.send(block[: 82 + 1000])
        await answers.settle()
        await sender.send(block[82 + 1000 :])
        assert (await sender.reply(file)).digest == file.digest(3)
        for number in (4, 1, 2):
            await sender.put(file, number)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
async def test_a_block_of_unknown_length_waits_for_another_connection_to_tell() -> None:
    file = Sent(bytes_of(MIB + 1000))
    async with answering() as answers:
        early, late = await answers.dial(), await answers.dial()
        await early.ask(file)
        await early.send(file.block(1))
        await answers.settle()
        await late.send(file.block(0))
        assert await early.reply(file) in [(0, 1, 1, 0, file.digest(1)), (0, 1, 2, 1, file.digest(1))]
        await closed(late)
        await closed(early)
        assert content_of(memory(answers), "film.bin") == file.content


@quick
@pytest.mark.clause("BP1-S82-018")
async def test_a_block_whose_length_nobody_tells_is_refused_and_never_guessed() -> None:
    file = Sent(bytes_of(MIB + 1000))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.send(file.block(1))
        reply = await sender.reply(file)
        assert reply[:2] == (28, 1)
        assert 60 <= trio.current_time() < 61
        assert await sender.rest() == b""
        other = await answers.dial()
        assert (await other.ask(file)).bits == set()
        await closed(other)


@quick
@pytest.mark.parametrize("first", [0, 1])
async def test_the_operator_can_say_how_blocks_are_numbered(first: int) -> None:
    file = Sent(bytes_of(MIB + 1000), first=first)
    async with answering(first=first) as answers:
        sender = await answers.dial()
        await sender.ask(file)
        for number in reversed(file.numbers):
            assert (await sender.put(file, number)).code == 0
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@pytest.mark.clause("BP1-S82-016")
@quick
async def test_a_number_of_the_other_numbering_is_refused() -> None:
    file, other = Sent(bytes_of(2 * MIB + 1), first=1), Sent(bytes_of(2 * MIB + 1), first=0)
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.put(file, 3)
        await sender.send(other.block(0))
        assert (await sender.reply(file)).code == 28
        assert await sender.rest() == b""


@pytest.mark.clause("BP1-S82-014")
@quick
@pytest.mark.parametrize("first", [0, 1])
async def test_an_empty_block_at_the_end_is_harmless(first: int) -> None:
    file = Sent(bytes_of(2 * MIB), first=first, one_more=True)
    empty = file.numbers[-1]
    assert file.payload(empty) == b""
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        for number in file.numbers[:-1]:
            await sender.put(file, number)
        reply = await sender.put(file, empty)
        assert (reply.code, reply.held, reply.complete) == (0, 2, 1)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
async def test_a_loop_that_runs_one_too_far_is_harmless() -> None:
    """Numbered from 0, blocknum rounded up, and a block after the last: it has no bytes."""
    file = Sent(bytes_of(2 * MIB + 9))
    async with answering() as answers:
        sender = await answers.dial()
        for number in (0, 1, 2, 3):
            await sender.send(file.block(number))
        await closed(sender)
        assert content_of(memory(answers), "film.bin") == file.content


# ---- whose upload it is ---------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-S82-012")
async def test_two_users_with_the_same_name_and_size_have_two_uploads() -> None:
    one, two = Sent(bytes_of(MIB + 7, 1)), Sent(bytes_of(MIB + 7, 2))
    async with answering() as answers:
        first, second = await answers.dial("127.0.0.2"), await answers.dial("127.0.0.3")
        await first.send(one.block(0))
        await second.send(two.block(0))
        await answers.settle()
        assert len(uploads_in(memory(answers))) == 2
        await first.send(one.block(1))
        await second.send(two.block(1))
        await closed(first)
        await closed(second)
        names = names_in(memory(answers))
        assert sorted(names) == ["film (1).bin", "film.bin"]
        assert {content_of(memory(answers), name) for name in names} == {one.content, two.content}


@quick
@pytest.mark.clause("BP1-S82-012")
async def test_the_filetype_is_part_of_what_an_upload_is_known_by() -> None:
    one, two = Sent(bytes_of(MIB + 7, 1), kind=b"a"), Sent(bytes_of(MIB + 7, 2), kind=b"b")
    async with answering() as answers:
        first, second = await answers.dial(), await answers.dial()
        for number in one.numbers:
            await first.send(one.block(number))
            await second.send(two.block(number))
        await closed(first)
        await closed(second)
        stored = {content_of(memory(answers), name) for name in names_in(memory(answers))}
        assert stored == {one.content, two.content}


@quick
async def test_broken_off_and_finished_from_another_connection() -> None:
    file = Sent(bytes_of(3 * MIB + 7))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.send(file.block(0) + file.block(1)[: MIB // 2])
        await sender.stream.aclose()
        await answers.settle()
        again = await answers.dial()
        assert (await again.ask(file)).bits == {0}
        for number in (1, 2, 3):
            await again.put(file, number)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(again)


@quick
@pytest.mark.parametrize("cut", [1, 81, 82, 83, 82 + 1000])
async def test_nothing_stays_of_a_block_that_is_too_short(cut: int) -> None:
    file = Sent(bytes_of(2 * MIB))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.send(file.block(0)[:cut])
        await sender.stream.aclose()
        await answers.settle()
        assert not uploads_in(memory(answers))
        other = await answers.dial()
        assert (await other.ask(file)).bits == set()
        await closed(other)


@quick
async def test_several_files_one_after_another_on_one_connection() -> None:
    one, two = Sent(bytes_of(MIB + 7, 1)), Sent(bytes_of(5, 2), name=b"note", kind=b"")
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(one)
        await sender.put(one, 0)
        assert (await sender.put(two, 0)).complete == 1
        assert (await sender.put(one, 1)).complete == 1
        await closed(sender)
        assert content_of(memory(answers), "film.bin") == one.content
        assert content_of(memory(answers), "note") == two.content


# ---- sent again -----------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("first", [0, 1])
async def test_a_finished_file_sent_again_is_stored_once(first: int) -> None:
    file = Sent(bytes_of(2 * MIB + 7), first=first)
    async with answering() as answers:
        for _ in range(2):
            sender = await answers.dial()
            await sender.ask(file)
            replies = [await sender.put(file, number) for number in file.numbers]
            assert replies[-1].complete == 1
            await closed(sender)
        assert [reply.complete for reply in replies] == [1, 1, 1]
        assert names_in(memory(answers)) == ["film.bin"]


@quick
@pytest.mark.clause("BP1-S82-033")
async def test_an_unfinished_file_that_changed_becomes_the_new_one_and_never_a_mixture() -> None:
    old, new = Sent(bytes_of(2 * MIB + 100, 1)), Sent(bytes_of(2 * MIB + 100, 2))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(old)
        await sender.put(old, 0)
        await sender.put(old, 1)
        for number in new.numbers:
            reply = await sender.put(new, number)
            assert reply.digest == new.digest(number)
        assert reply.complete == 1
        assert content_of(memory(answers), "film.bin") == new.content
        await closed(sender)


@quick
async def test_the_same_block_over_two_connections_at_once_is_kept_once() -> None:
    file = Sent(bytes_of(MIB + 100))
    async with answering() as answers:
        senders = [await answers.dial() for _ in range(5)]
        for sender in senders:
            await sender.ask(file)
        async with trio.open_nursery() as nursery:
            for sender in senders:
                nursery.start_soon(sender.send, file.block(0) + file.block(1))
        for sender in senders:
            replies = [await sender.reply(file), await sender.reply(file)]
            assert [reply.digest for reply in replies] == [file.digest(0), file.digest(1)]
            await closed(sender)
        assert names_in(memory(answers)) == ["film.bin"]


@quick
@pytest.mark.clause("BP1-S82-025")
async def test_a_question_completes_a_file_whose_blocks_are_all_held() -> None:
    """Each numbering holds a part, and no block is missing once they have come together."""
    file = Sent(bytes_of(2 * MIB + 5))
    store: MemoryStore = MemoryStore()
    for told, numbers in ((0, (0, 2)), (1, (1,))):
        async with answering(store, first=told) as answers:
            sender = await answers.dial()
            await sender.ask(file)
            for number in numbers:
                await sender.put(file, number)
            await closed(sender)
        store = store.survivor()
    async with answering(store) as answers:
        sender = await answers.dial()
        assert (await sender.ask(file)).reply == (0, -1, 3, 1, file.root)
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
@pytest.mark.clause("BP1-DIA-014")
async def test_no_more_than_60_blocks_wait_to_become_durable() -> None:
    file = Sent(bytes(70 * MIB))
    async with answering() as answers:
        gate = Gate(answers.server)
        sender = await answers.dial()
        for number in file.numbers:
            await sender.send(file.block(number))
        await answers.settle()
        (upload,) = (live for live in answers.server.engine.uploads._live.values() if live.pending)
        assert len(upload.pending) == 60
        gate.open()
        await closed(sender)
        await wait_until_stored(answers, deadline=60)


# ---- names ----------------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize(
    ("raw", "stored_as"),
    [
        (b"a" * 46 + b".bin", "a" * 46 + ".bin"),
        ("电影.avi".encode("gbk"), "电影.avi"),
        ("电影.avi".encode(), "电影.avi"),
        ("影" * 16 + "ab", "影" * 16 + "ab"),
        ("影" * 17, "影" * 16),
        (("a" + "电" * 25).encode("gbk")[:50], "a" + "电" * 24),
        ("b" * 47 + "é.mp4", "b" * 47 + "é."),
        (b"C:\\films\\one.avi", "one.avi"),
        (b"../../etc/passwd", "passwd"),
        (b"/etc/cron.d/x", "x"),
        (b"short\0then what the stack held", "short"),
        (b"a b;c", "a b;c"),
    ],
)
async def test_names_as_c_programs_write_them(raw: bytes | str, stored_as: str) -> None:
    file = Sent(b"x", name=raw if isinstance(raw, bytes) else raw.encode())
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        assert (await sender.put(file, 0)).complete == 1
        assert (await sender.ask(file)).stored_as == stored_as
        assert names_in(memory(answers)) == [stored_as]
        await closed(sender)


@quick
@pytest.mark.parametrize(
    "raw", [b"..", b"a/..", b".", b".blockproto", b".BLOCKPROTO ", b"a/", b"a\x01b", b"a\xff\xff", b"a\x1bb"]
)
async def test_names_that_break_a_rule_are_refused_block_by_block(raw: bytes) -> None:
    bad, good = Sent(bytes_of(2 * MIB + 1), name=raw), Sent(b"good")
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(good)
        assert (await sender.ask(bad)).reply == (20, -1, 0, 0, bytes(32))
        assert [(await sender.put(bad, number)).code for number in bad.numbers] == [20, 20, 20]
        assert (await sender.put(good, 0)).complete == 1
        assert names_in(memory(answers)) == ["film.bin"]
        await closed(sender)


@pytest.mark.clause("BP1-S82-011")
@quick
async def test_a_file_that_claims_to_be_a_folder_is_refused() -> None:
    file = Sent(b"x", kind=b"inode/directory")
    async with answering() as answers:
        sender = await answers.dial()
        assert (await sender.ask(file)).reply.code == 28
        await closed(sender)
        assert names_in(memory(answers)) == []


@pytest.mark.clause("BP1-S82-011")
@quick
@pytest.mark.parametrize("kind", [b"", b"image/png", b"x" * 20, b"\xff\xfe"])
async def test_a_filetype_that_is_no_printable_ascii_is_left_out(kind: bytes) -> None:
    file = Sent(b"x", name=b"y" * 50, kind=kind)
    async with answering() as answers:
        sender = await answers.dial()
        await sender.send(file.block(0))
        await closed(sender)
        entry = memory(answers).files("", True, "", 9)[0][0]
        printable = kind in (b"image/png", b"x" * 20)
        assert entry.filetype == (kind.decode() if printable else entry.filetype)
        assert entry.filetype.isascii()


# ---- what cannot be followed, and what fails ------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-004")
@quick
async def test_what_is_no_header_ends_the_connection_and_keeps_what_was_held() -> None:
    file = Sent(bytes_of(2 * MIB + 1))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.put(file, 0)
        await sender.send(b"no header at all" * 10)
        assert (await sender.reply(file))[:2] == (1, -1)
        assert await sender.rest() == b""
        other = await answers.dial()
        assert (await other.ask(file)).bits == {0}
        await closed(other)


@quick
async def test_a_full_disk_is_told_and_the_upload_goes_on_when_there_is_room() -> None:
    file = Sent(bytes_of(3 * MIB))
    async with answering() as answers:
        store = memory(answers)
        sender = await answers.dial()
        await sender.ask(file)
        await sender.put(file, 0)
        store.room = MIB // 2
        assert (await sender.put(file, 1)).code == 29
        store.room = None
        assert (await sender.ask(file)).bits == {0}
        assert (await sender.put(file, 1)).code == 0
        assert (await sender.put(file, 2)).complete == 1
        assert content_of(store, "film.bin") == file.content
        await closed(sender)


@quick
async def test_an_upload_that_is_cancelled_by_others_is_told_and_begins_anew() -> None:
    file = Sent(bytes_of(2 * MIB))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(file)
        await sender.put(file, 0)
        (entry,) = uploads_in(memory(answers))
        await answers.server.engine.uploads.discard(entry.key)
        assert (await sender.ask(file)).bits == set()
        assert (await sender.put(file, 1)).held == 1
        assert (await sender.put(file, 0)).complete == 1
        assert content_of(memory(answers), "film.bin") == file.content
        await closed(sender)


@quick
@pytest.mark.clause("BP1-S82-021")
async def test_replies_come_when_a_block_is_durable_and_not_before() -> None:
    file = Sent(bytes_of(2 * MIB))
    async with answering() as answers:
        gate = Gate(answers.server)
        sender = await answers.dial()
        await sender.ask(file)
        await sender.send(file.block(0))
        await gate.waits.wait()
        with trio.move_on_after(5) as scope:
            await sender.reply(file)
        assert scope.cancelled_caught
        gate.open()
        assert (await sender.reply(file)).held == 1
        await closed(sender)


async def test_a_slow_disk_is_written_in_threads_and_no_block_is_written_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writes that leave the Trio thread overlap with what comes over other connections."""
    monkeypatch.setattr(Disk, "slow", True)
    file = Sent(bytes_of(6 * MIB + 100))
    async with answering() as answers, trio.open_nursery() as nursery:
        for order in permutations_of(file.numbers, range(3)):
            blocks = [file.block(number) for number in order]
            nursery.start_soon(send_all, await answers.dial(), blocks)
        await wait_until_stored(answers, deadline=60)
        assert content_of(memory(answers), "film.bin") == file.content
        written = [(work.upload.key, work.blockno) for work in answers.works if isinstance(work, BlockDone)]
        assert len(written) == len(set(written))


# ---- senders that never read ----------------------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-024")
async def test_who_asked_and_never_reads_is_served_all_the_same() -> None:
    """The sockets fill with answers that nobody takes, and the blocks behind are kept."""
    file, huge = Sent(bytes_of(MIB + 100)), LAYOUTS["packed little"].header(b"huge", b"", 2**31 - 1, 2048, -1)
    async with answering() as answers, answers.listening() as (listener, dial):
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stream = await dial()
        with trio.fail_after(60):
            await stream.send_all(huge * 3000 + file.block(0) + file.block(1))
        await wait_until_stored(answers, deadline=60)
        assert content_of(memory(answers), "film.bin") == file.content
        await stream.aclose()


@pytest.mark.clause("BP1-S82-030", "BP1-S82-024")
async def test_who_closes_right_after_the_last_byte_loses_nothing() -> None:
    """A program that never asks and never reads: what lies in its socket when it closes still arrives."""
    file = Sent(bytes_of(20 * MIB + 100))
    async with answering() as answers, answers.listening() as (_, dial):
        stream = await dial()
        with trio.fail_after(60):
            for number in file.numbers:
                await stream.send_all(file.block(number))
            await stream.aclose()
        await wait_until_stored(answers, deadline=60)
        assert content_of(memory(answers), "film.bin") == file.content


class Deaf:
    """A visit whose peer takes ``replies`` replies and then none."""

    def __init__(self, replies: int) -> None:
        self.taken: list[bytes] = []
        self._replies = replies

    async def send(self, parts: list[bytes]) -> None:
        if len(self.taken) == self._replies:
            await trio.sleep_forever()
        self.taken += parts


@quick
@pytest.mark.clause("BP1-S82-024")
async def test_what_waits_for_a_reader_is_bounded_and_the_silence_is_for_good() -> None:
    deaf = Deaf(2)
    replies = Replies(deaf)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replies.run)
        replies.ask()
        for number in range(UNREAD_LENGTH_MAX // 1000):
            replies.know(replies.expect(), number.to_bytes(1000, "big"))
            await trio.testing.wait_all_tasks_blocked()
            assert replies.asked
        for _ in range(5):
            replies.know(replies.expect(), bytes(1000))
        assert not replies.asked
        replies.ask()
        assert not replies.asked
        began = trio.current_time()
        replies.end()
    assert [int.from_bytes(raw, "big") for raw in deaf.taken] == [0, 1]
    assert trio.current_time() - began == pytest.approx(5.0)


@quick
async def test_replies_keep_the_order_of_the_headers() -> None:
    deaf = Deaf(9)
    replies = Replies(deaf)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replies.run)
        replies.know(replies.expect(), b"nobody has asked")
        replies.ask()
        first, second, third = (replies.expect() for _ in range(3))
        replies.know(third, b"3")
        replies.know(second, b"2")
        await trio.testing.wait_all_tasks_blocked()
        assert deaf.taken == []
        replies.end()
        replies.know(first, b"1")
    assert deaf.taken == [b"1", b"2", b"3"]
