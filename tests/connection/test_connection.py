"""One connection: greeting, silence, refusals, control frames, credit, fair sending, and the end."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter, deque

import pytest
import trio
from ends import Ends, Recorder, connected
from peers import MIB, RawPeer, Sample, bytes_of, run
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.connection import connection as connection_module
from blockproto.connection.connection import (
    CONTROL_LENGTH_MAX,
    DISCARD_S,
    GREETING_S,
    HEAD_S,
    NOT_BLOCKPROTO_TEXT,
    REST_S,
    SILENCE_S,
    Connection,
    Opening,
    StreamHandler,
    error_of,
)
from blockproto.connection.endpoint import StreamEndpoint
from blockproto.errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    GoingAway,
    LocalProtocolError,
    RemoteProtocolError,
    Scope,
    StoreFailed,
    Superseded,
    Unsupported,
)
from blockproto.protocol.events import Event
from blockproto.protocol.framing import IDLE_BUFFER_LENGTH
from blockproto.protocol.session import Limits, Session, Side
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Ack,
    Block,
    Cancel,
    Credit,
    Error,
    GoAway,
    Have,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    Ping,
    Priority,
    Result,
    encode_frame,
)

quick = pytest.mark.trio(run=run)

PING_S = 15.0


# ---- greeting -------------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x\r\n", b"\xffBKQ"]
)
async def test_what_is_not_blockproto_is_told_so_in_text_and_ended(first: bytes) -> None:
    async with connected(greet=False) as ends:
        await ends.peer.send_bytes(first)
        heard = b""
        while len(heard) < len(NOT_BLOCKPROTO_TEXT):
            heard += await ends.peer.stream.receive_some(1000)
        assert heard == NOT_BLOCKPROTO_TEXT
        await ends.peer.stream.aclose()
        assert (await ends.ended()).code is Code.NOT_BLOCKPROTO


@quick
async def test_a_client_says_nothing_more_to_what_is_not_blockproto() -> None:
    async with connected(Side.CLIENT, greet=False) as ends:
        await ends.peer.hear_greeting()
        began = trio.current_time()
        await ends.peer.send_bytes(b"220 ftp ready\r\n")
        assert await ends.peer.stream.receive_some() == b""
        assert trio.current_time() == began, "who said nothing has nothing to wait for"
        assert (await ends.ended()).code is Code.NOT_BLOCKPROTO


@pytest.mark.clause("BP1-HEL-014")
@quick
async def test_whoever_says_nothing_is_ended_after_ten_seconds() -> None:
    async with connected(greet=False) as ends:
        assert isinstance(await ends.ended(), ConnectionLost)
        assert trio.current_time() == GREETING_S


@pytest.mark.clause("BP1-HEL-014")
@quick
@pytest.mark.parametrize("beginning", [1, len(PREFACE), len(PREFACE) + 20])
async def test_a_trickle_does_not_extend_the_greeting(beginning: int) -> None:
    """Neither byte by byte, nor with a preface that is whole late and a HELLO that begins after it."""
    greeting = PREFACE + encode_frame(0, Hello())
    async with connected(greet=False) as ends:
        await trio.sleep_until(GREETING_S - 1)
        await ends.peer.send_bytes(greeting[:beginning])
        await trio.sleep_until(GREETING_S - 0.5)
        await ends.peer.send_bytes(greeting[beginning : beginning + 1])
        assert isinstance(await ends.ended(), ConnectionLost)
        assert trio.current_time() == GREETING_S


@pytest.mark.clause("BP1-HEL-014")
@quick
async def test_a_client_waits_ten_seconds_for_the_servers_greeting() -> None:
    async with connected(Side.CLIENT, greet=False) as ends:
        assert isinstance(await ends.ended(), ConnectionLost)
        assert trio.current_time() == GREETING_S


@quick
async def test_a_server_greets_as_soon_as_it_has_the_preface_and_not_before() -> None:
    async with connected(greet=False) as ends:
        await ends.peer.send_bytes(PREFACE[:-1])
        await wait_all_tasks_blocked()
        assert not ends.line.sent
        await ends.peer.send_bytes(PREFACE[-1:])
        await ends.peer.hear_greeting()
        await ends.peer.send_bytes(encode_frame(0, Hello()) + encode_frame(0, Ping(bytes(8), 0)))
        await ends.peer.expect(Ping)


@quick
async def test_a_server_that_leaves_says_nothing_to_who_has_not_said_the_preface() -> None:
    async with connected(greet=False) as ends:
        await wait_all_tasks_blocked()
        ends.connection.say_goodbye(Code.GOING_AWAY, grace_ms=1, retry_after_ms=1)
        ends.connection.end_with(StoreFailed("the disk"))
        assert await ends.peer.stream.receive_some() == b""
        assert isinstance(await ends.ended(), StoreFailed)


@quick
async def test_a_refusal_of_hello_comes_after_the_servers_own() -> None:
    async with connected(greet=False) as ends:
        await ends.peer.send_bytes(PREFACE + encode_frame(0, Ping(bytes(8), 0)))
        await ends.peer.hear_greeting()
        await ends.peer.expect_error(Code.UNEXPECTED, Scope.CONNECTION, 0)


# ---- refusals -------------------------------------------------------------------------------------------------


async def _refused(raw: bytes, code: Code) -> None:
    """Send ``raw``; the connection ends with this error as its last frame, and every stream hears it."""
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"x" * 10).open())
        await wait_all_tasks_blocked()
        await ends.peer.send_bytes(raw)
        await ends.peer.expect_error(code, Scope.CONNECTION, 0)
        await ends.peer.stream.aclose()
        reason = await ends.ended()
        assert reason.code is code
        assert ends.handlers[0].ends == [reason]
        assert trio.current_time() == 0


def _frame() -> bytearray:
    return bytearray(encode_frame(3, List(ListKind.FILES)))


@quick
async def test_a_bad_check() -> None:
    raw = _frame()
    raw[-1] ^= 1
    await _refused(bytes(raw), Code.BAD_CHECK)


@quick
async def test_a_length_over_its_limit() -> None:
    raw = bytearray(encode_frame(1, Sample(b"x").block(0)[0], 1))
    raw[0:3] = b"\xff\xff\xff"
    await _refused(bytes(raw), Code.TOO_LARGE)


@quick
async def test_a_head_longer_than_its_frame() -> None:
    raw = _frame()
    raw[6:8] = b"\xff\x00"
    await _refused(bytes(raw), Code.MALFORMED)


@quick
async def test_a_message_out_of_place() -> None:
    await _refused(encode_frame(1, Have(())) + encode_frame(1, Sample(b"x").open()), Code.UNEXPECTED)


@quick
async def test_more_payload_than_was_allowed() -> None:
    sample = Sample(bytes_of(20 * MIB))
    frames = b"".join(encode_frame(1, head, len(part)) + part for head, part in map(sample.block, range(17)))
    handler = Recorder()
    async with connected(handler=lambda: handler) as ends:
        handler.takes_s = math.inf  # nothing is consumed, so nothing is granted anew
        await ends.peer.say(1, sample.open())
        await wait_all_tasks_blocked()
        handler.takes_s = 0.0
    async with connected(limits=Limits(stream_allowance=MIB, connection_allowance=4 * MIB)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(3, List(ListKind.FILES))
        await ends.peer.send_bytes(frames)
        await ends.peer.expect_error(Code.CREDIT_EXCEEDED, Scope.CONNECTION, 0)


@quick
async def test_the_refuser_reads_on_until_the_end_and_five_seconds_at_most() -> None:
    async with connected() as ends:
        await ends.peer.send_bytes(bytes(HEADER_LENGTH))
        await ends.peer.expect_error(Code.BAD_CHECK, Scope.CONNECTION, 0)
        for second in range(10):
            if ends.connection.finished.is_set():
                break
            await ends.peer.send_bytes(bytes(1000))
            await trio.sleep_until(float(second))
        await ends.ended()
        assert trio.current_time() == pytest.approx(DISCARD_S, abs=1.0)


@pytest.mark.clause("BP1-END-011")
@quick
@pytest.mark.parametrize("again", range(8))  # which of two ready tasks goes first is drawn by lot
async def test_a_peer_that_has_closed_its_side_still_hears_why(again: int) -> None:
    async with connected() as ends:
        await ends.peer.send_bytes(bytes(HEADER_LENGTH))
        assert isinstance(ends.peer.stream, trio.StapledStream)
        await ends.peer.stream.send_eof()
        await ends.peer.expect_error(Code.BAD_CHECK, Scope.CONNECTION, 0)


@quick
async def test_nothing_is_said_after_the_last_word() -> None:
    """What ends while the refuser still reads on, a commit for example, is not said any more, and breaks nothing."""
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"x" * 10).open())
        await wait_all_tasks_blocked()
        await ends.peer.send_bytes(bytes(HEADER_LENGTH))
        await ends.peer.expect_error(Code.BAD_CHECK, Scope.CONNECTION, 0)
        ends.connection.post(1, Opened(bytes(16), bytes(16), 1, 0, 1, None))
        ends.connection.post_ack(1, 10, [(0, 1)])
        ends.connection.refuse(1, BadFacts("late"))
        await ends.peer.stream.aclose()
        await ends.ended()


@quick
async def test_an_error_of_the_peer_ends_the_connection() -> None:
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"x" * 10).open())
        error = Error(Code.BAD_CHECK, Scope.CONNECTION, True, "damaged", retry_after_ms=7)
        await ends.peer.say(0, error)
        reason = await ends.ended()
        assert isinstance(reason, ConnectionLost)
        assert (reason.code, reason.retryable, reason.retry_after_ms) == (Code.BAD_CHECK, True, 7)
        assert ends.handlers[0].ends == [reason]
        assert await ends.peer.rest() == []


@quick
async def test_an_error_with_an_unknown_code_is_judged_by_what_it_says() -> None:
    async with connected() as ends:
        await ends.peer.say(0, Error(999, Scope.CONNECTION, False, "from the future"))
        reason = await ends.ended()
        assert isinstance(reason, ConnectionLost)
        assert not reason.retryable


def test_an_error_message_becomes_the_exception_of_its_code() -> None:
    error = error_of(Error(Code.SUPERSEDED, Scope.STREAM, False, "newer", blockno=3, current=9))
    assert isinstance(error, Superseded)
    assert (error.current, error.blockno, str(error)) == (9, 3, "newer")


# ---- life and silence -----------------------------------------------------------------------------------------


@quick
async def test_ping_is_answered_with_its_opaque() -> None:
    async with connected() as ends:
        await ends.peer.say(0, Ping(b"12345678", 15))
        assert await ends.peer.expect(Ping) == Ping(b"12345678", 0, answer=True)


@quick
async def test_an_answer_is_not_answered() -> None:
    async with connected() as ends:
        await ends.peer.say(0, Ping(b"12345678", 5, answer=True))
        await ends.peer.say(0, Ping(b"87654321", 0))
        assert await ends.peer.expect(Ping) == Ping(b"87654321", 0, answer=True)


@quick
async def test_an_idle_client_pings_and_lives_on_answers() -> None:
    async with connected(Side.CLIENT) as ends:
        for number in range(1, 5):
            ping = await ends.peer.expect(Ping)
            assert ping.next_s == PING_S
            assert trio.current_time() == number * PING_S
            await ends.peer.say(0, Ping(ping.opaque, 0, answer=True))
        assert ends.connection.lost is None


@pytest.mark.clause("BP1-END-001")
@quick
async def test_any_byte_is_life_so_a_busy_line_is_not_pinged() -> None:
    async with connected(Side.CLIENT) as ends:
        for second in range(0, 100, 10):
            await trio.sleep_until(float(second))
            await ends.peer.say(0, Credit(MIB, 0))
        await wait_all_tasks_blocked()
        assert len(ends.line.sent) == len(PREFACE + encode_frame(0, Limits().hello()))


@pytest.mark.clause("BP1-END-004")
@quick
async def test_a_silent_server_is_dead_after_two_pings_time() -> None:
    async with connected(Side.CLIENT) as ends:
        handler = Recorder()
        ends.connection.open(handler)
        reason = await ends.ended()
        assert isinstance(reason, ConnectionLost)
        assert trio.current_time() == 2 * PING_S
        assert handler.ends == [reason]


@pytest.mark.clause("BP1-END-004")
@quick
async def test_a_client_that_promised_a_ping_is_dead_after_twice_that() -> None:
    async with connected() as ends:
        await ends.peer.say(0, Ping(bytes(8), 20))
        assert isinstance(await ends.ended(), ConnectionLost)
        assert trio.current_time() == 40


@pytest.mark.clause("BP1-END-006")
@quick
async def test_a_client_that_promised_nothing_may_be_silent_for_ten_minutes() -> None:
    async with connected() as ends:
        await ends.ended()
        assert trio.current_time() == SILENCE_S


@quick
async def test_a_promise_can_be_taken_back() -> None:
    async with connected() as ends:
        await ends.peer.say(0, Ping(bytes(8), 20))
        await ends.peer.say(0, Ping(bytes(8), 0))
        await ends.ended()
        assert trio.current_time() == SILENCE_S


@pytest.mark.clause("BP1-END-007")
@quick
async def test_half_a_head_is_refused_after_ten_seconds() -> None:
    raw = _frame()
    async with connected() as ends:
        await trio.sleep_until(100.0)
        await ends.peer.send_bytes(bytes(raw[:-1]))
        await ends.peer.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        assert trio.current_time() == 100 + HEAD_S


@pytest.mark.clause("BP1-END-007")
@quick
async def test_a_head_that_trickles_in_is_refused_too() -> None:
    async with connected() as ends:
        for second, byte in enumerate(_frame()):
            await trio.sleep_until(float(second))
            if ends.connection.session._last_word:
                break
            await ends.peer.send_bytes(bytes([byte]))
        await ends.peer.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        assert trio.current_time() <= HEAD_S + 1


@quick
async def test_frames_that_always_end_in_the_middle_of_the_next_head_are_no_stall() -> None:
    """A steady stream of small frames, cut anywhere, is progress, however long it goes on."""
    raw = encode_frame(0, Ping(bytes(8), 0))
    async with connected() as ends:
        await ends.peer.send_bytes(raw[:5])
        for second in range(1, 40):
            await trio.sleep_until(float(second))
            await ends.peer.send_bytes(raw[5:] + raw[:5])
            await ends.peer.expect(Ping)
        assert ends.connection.lost is None


@quick
async def test_the_time_that_a_slow_disk_takes_is_not_the_peers_silence() -> None:
    sample = Sample(bytes_of(100))
    handler = Recorder(takes_s=1000.0)
    async with connected(handler=lambda: handler) as ends:
        await ends.peer.say(0, Ping(bytes(8), 20))
        await ends.peer.say(1, *sample.block(0, commit=True))
        await wait_all_tasks_blocked()
        await trio.sleep_until(999.0)
        await ends.peer.say(0, Ping(b"still up", 20))
        while (await ends.peer.expect(Ping)).opaque != b"still up":
            pass
        assert ends.connection.lost is None
        assert handler.payload_bytes == sample.content


# ---- streams --------------------------------------------------------------------------------------------------


@quick
async def test_a_sink_that_refuses_ends_its_stream_only() -> None:
    def refuse(message: Message) -> None:
        raise BadFacts("no")

    async with connected(handler=lambda: Recorder(on_message=refuse)) as ends:
        await ends.peer.say(1, Sample(b"x").open())
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert [type(error) for error in ends.handlers[0].ends] == [BadFacts]
        await ends.peer.say(0, Ping(bytes(8), 0))
        await ends.peer.expect(Ping)


@quick
async def test_a_failed_store_ends_the_connection() -> None:
    def fail(message: Message) -> None:
        raise StoreFailed("the disk")

    async with connected(handler=lambda: Recorder(on_message=fail)) as ends:
        await ends.peer.say(1, Sample(b"x").open())
        await ends.peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)


@quick
async def test_a_client_refuses_streams_of_the_server() -> None:
    async with connected(Side.CLIENT) as ends:
        await ends.peer.say(2, List(ListKind.FILES))
        await ends.peer.expect_error(Code.UNSUPPORTED, Scope.STREAM, 2)


@quick
async def test_an_acceptor_may_refuse() -> None:
    async with connected() as ends:

        def accept(connection: Connection, stream: int, message: Message) -> StreamHandler:
            raise Unsupported("not here")

        ends.connection._accept = accept
        await ends.peer.say(1, List(ListKind.FILES))
        await ends.peer.expect_error(Code.UNSUPPORTED, Scope.STREAM, 1)


@quick
async def test_facts_that_do_not_fit_are_refused_before_anybody_hears_of_them() -> None:
    async with connected() as ends:
        raw = bytearray(encode_frame(1, Sample(b"x").open()))
        await ends.peer.send_bytes(_with_head_byte(raw, 16 + 8 + 8 + 3, 9))  # blocknum 9
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert ends.handlers == []


def _with_head_byte(frame: bytearray, offset: int, value: int) -> bytes:
    """``frame`` with one byte of its head replaced and the check made right again."""
    from zlib import crc32

    frame[HEADER_LENGTH + offset] = value
    head_length = int.from_bytes(frame[6:8], "big")
    head = frame[HEADER_LENGTH : HEADER_LENGTH + head_length]
    frame[12:16] = crc32(head, crc32(frame[:12])).to_bytes(4, "big")
    return bytes(frame)


@pytest.mark.clause("BP1-END-012")
@quick
async def test_every_sink_hears_exactly_one_end() -> None:
    async with connected() as ends:
        for stream in (1, 3, 5):
            await ends.peer.say(stream, Sample(b"x" * 10).open())
        await wait_all_tasks_blocked()
        ends.connection.refuse(3, BadFacts("no"))
        await ends.peer.stream.aclose()
        reason = await ends.ended()
        ends.connection.close()
        assert [handler.ends for handler in ends.handlers] == [[reason], [], [reason]]


@quick
async def test_what_comes_for_a_stream_whose_end_could_not_be_said_is_dropped() -> None:
    """A peer that takes nothing more still sends: its pieces begin no second stream of the same id."""
    sample = Sample(bytes_of(300_000))
    async with connected() as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        ends.line.broken = True  # for what is sent from here
        ends.connection.post(0, Ping(opaque=bytes(8), next_s=0))
        await wait_all_tasks_blocked()
        ends.connection.refuse(1, Cancelled("taken over"))
        ends.line.broken = False
        await ends.peer.say(1, *sample.piece(0, 1000, 2000, end=False))
        await ends.peer.say(1, *sample.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        assert len(ends.handlers) == 1
        assert len(ends.handlers[0].messages) == 2


@quick
@pytest.mark.parametrize("again", range(12))  # which of two ready tasks goes first is drawn by lot
async def test_what_is_said_while_a_cancelled_connection_ends_goes_nowhere(again: int) -> None:
    """Who is cancelled with it may still try to say goodbye, at any step of its end."""
    here, _there = memory_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.CLIENT))
    async with connection._writer.control_turn(), trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await wait_all_tasks_blocked()  # the greeting waits for the turn
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            while not connection.finished.is_set():
                connection.post(0, Ping(opaque=bytes(8), next_s=0))
                await trio.lowlevel.checkpoint()
    assert isinstance(connection.lost, ConnectionLost)


@quick
async def test_a_connection_that_ended_opens_nothing() -> None:
    async with connected(Side.CLIENT) as ends:
        await ends.peer.stream.aclose()
        reason = await ends.ended()
        with pytest.raises(ConnectionLost):
            ends.connection.open(Recorder())
        with pytest.raises(ConnectionLost):
            await ends.connection.send_openings(
                [Opening(Recorder(), Sample(b"x").block(0, commit=True)[0], b"x")], Priority.NORMAL
            )
        ends.connection.post(0, Ping(bytes(8), 0))
        assert ends.connection.lost is reason


@quick
@pytest.mark.parametrize("said", [b"", bytes(64)], ids=["closed", "broken"])
async def test_why_a_connection_ended_keeps_no_frames(said: bytes) -> None:
    """Those of its reader would keep it and its buffers, after each broken conversation, until garbage is collected."""
    async with connected(Side.SERVER) as ends:
        if said:
            await ends.peer.send_bytes(said)
        await ends.peer.stream.aclose()
        reason = await ends.ended()
        assert isinstance(reason, RemoteProtocolError if said else ConnectionLost)
        assert reason is ends.connection.lost
        assert reason.__traceback__ is None


@quick
async def test_a_client_leaves_a_stopping_server_when_it_has_nothing_more_there() -> None:
    async with connected(Side.CLIENT) as ends:
        handler = Recorder()
        stream = ends.connection.open(handler)
        ends.connection.post(stream, List(ListKind.FILES))
        await ends.peer.expect(List)
        await ends.peer.say(0, GoAway(Code.GOING_AWAY, 2000, 500))
        await wait_all_tasks_blocked()
        assert ends.connection.lost is None
        await ends.peer.say(stream, Result(ListKind.FILES))
        reason = await ends.ended()
        assert isinstance(reason, GoingAway)
        assert reason.retry_after_ms == 500
        assert isinstance(handler.messages[0], Result)
        assert handler.ends == []


@quick
async def test_the_last_word_of_our_own() -> None:
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"x" * 10).open())
        await wait_all_tasks_blocked()
        ends.connection.end_with(StoreFailed("the disk"))
        await ends.peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
        assert await ends.peer.rest() == []
        assert isinstance(await ends.ended(), StoreFailed)
        assert [type(error) for error in ends.handlers[0].ends] == [StoreFailed]


@quick
async def test_after_the_last_word_what_comes_is_dropped_until_the_peer_closes() -> None:
    """Closing at once would cut off what the peer has not read yet, the last word with it."""
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"x" * 10).open())
        await wait_all_tasks_blocked()
        ends.connection.end_with(StoreFailed("the disk"))
        await ends.peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
        for second in range(1, 4):
            await trio.sleep_until(float(second))
            await ends.peer.send_bytes(b"anything at all" * 1000)
            await ends.peer.say(1, *Sample(b"x" * 10).block(0))
        assert not ends.connection.finished.is_set()
        assert [type(message) for message in ends.handlers[0].messages] == [Open]
        await ends.peer.stream.aclose()
        assert isinstance(await ends.ended(), StoreFailed)
        assert trio.current_time() == 3


@quick
async def test_after_the_last_word_a_peer_that_never_closes_is_closed() -> None:
    async with connected() as ends:
        ends.connection.end_with(StoreFailed("the disk"))
        await ends.peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
        assert await ends.peer.rest() == []
        assert isinstance(await ends.ended(), StoreFailed)
        assert trio.current_time() == DISCARD_S


@quick
async def test_say_goodbye_is_goaway() -> None:
    async with connected() as ends:
        ends.connection.say_goodbye(Code.GOING_AWAY, grace_ms=2000, retry_after_ms=500)
        message = await ends.peer.expect(GoAway)
        assert (message.code, message.grace_ms, message.retry_after_ms) == (Code.GOING_AWAY, 2000, 500)


@quick
async def test_cancelling_run_closes_and_tells() -> None:
    here, there = memory_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.CLIENT))
    handler = Recorder()
    connection.open(handler)
    with trio.move_on_after(1):
        await connection.run()
    assert [type(error) for error in handler.ends] == [ConnectionLost]
    while await there.receive_some():
        pass


# ---- control frames -------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-STR-013")
@quick
async def test_acknowledgements_that_wait_become_one() -> None:
    async with connected() as ends:
        await ends.peer.say(1, Sample(bytes_of(10 * MIB)).open())
        await wait_all_tasks_blocked()
        for blockno in (0, 5, 1):
            ends.connection.post_ack(1, 2 * MIB, [(blockno, 1)])
        assert await ends.peer.expect(Ack) == Ack(2 * MIB, ((0, 2), (5, 1)))


@quick
async def test_every_block_is_acknowledged_however_many_runs_there_are() -> None:
    async with connected() as ends:
        await ends.peer.say(1, Sample(b"", known=False).open())
        await wait_all_tasks_blocked()
        for blockno in range(0, 1000, 2):
            ends.connection.post_ack(1, MIB, [(blockno, 1)])
        await ends.peer.wait_acked(*range(0, 1000, 2))


@quick
async def test_an_ack_for_a_closed_stream_is_dropped() -> None:
    async with connected() as ends:
        await ends.peer.say(1, Sample(bytes_of(10)).open())
        await wait_all_tasks_blocked()
        ends.connection.post_ack(1, 0, [(0, 1)])
        ends.connection.refuse(1, BadFacts("no"))
        ends.connection.post_ack(1, 0, [(0, 1)])
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)


@pytest.mark.clause("BP1-STR-013")
@quick
async def test_what_waits_to_be_written_is_bounded() -> None:
    """A peer that asks and asks and never reads is not read any more, and costs no more memory."""
    here, there = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.SERVER))
    raw = PREFACE + encode_frame(0, Hello()) + encode_frame(0, Ping(bytes(8), 0)) * 200_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        nursery.start_soon(there.send_all, raw)
        await wait_all_tasks_blocked()
        assert 0 < connection._writer._control_length <= 2 * CONTROL_LENGTH_MAX
        nursery.cancel_scope.cancel()


@pytest.mark.clause("BP1-STR-014")
@quick
async def test_reading_goes_on_while_a_write_is_stuck() -> None:
    """Two sides that both waited for their writes would wait for ever."""
    here, there = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.SERVER))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await there.send_all(PREFACE + encode_frame(0, Hello()))
        for number in range(10):  # none of the answers is read
            await there.send_all(encode_frame(0, Ping(bytes([number] * 8), 0)))
        peer = RawPeer(there)
        await peer.hear_greeting()
        while (await peer.expect(Ping)).opaque != bytes([9] * 8):
            pass
        nursery.cancel_scope.cancel()


# ---- credit and sending ---------------------------------------------------------------------------------------


async def _begin(ends: Ends, sample: Sample, stream_open: bool = True) -> int:
    """A stream of ours that was opened with OPEN."""
    stream = ends.connection.open(Recorder())
    ends.connection.post(stream, sample.open())
    await ends.peer.hear()
    return stream


@quick
async def test_a_sender_stops_at_the_streams_allowance_until_credit_comes() -> None:
    sample = Sample(bytes_of(2 * MIB))
    async with connected(Side.CLIENT, hello=Hello(stream_allowance=MIB + 1000)) as ends:
        stream = await _begin(ends, sample)
        await ends.connection.send(stream, *sample.block(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.connection.send, stream, *sample.block(1))
            assert (await ends.peer.hear()).payload == sample.bytes_of(0)
            await wait_all_tasks_blocked()
            sent = len(ends.line.sent)
            await ends.peer.say(stream, Credit(2 * MIB - 1, MIB))  # one byte too few
            await wait_all_tasks_blocked()
            assert len(ends.line.sent) == sent
            await ends.peer.say(stream, Credit(2 * MIB, MIB))
            assert (await ends.peer.hear()).payload == sample.bytes_of(1)


@quick
async def test_a_sender_stops_at_the_connections_allowance_too() -> None:
    sample = Sample(bytes_of(2 * MIB))
    async with connected(Side.CLIENT, hello=Hello(connection_allowance=MIB)) as ends:
        stream = await _begin(ends, sample)
        await ends.connection.send(stream, *sample.block(0))
        with trio.move_on_after(5) as scope:
            await ends.connection.send(stream, *sample.block(1))
        assert scope.cancelled_caught
        assert ends.connection.lost is None  # it was still waiting: nothing of the frame was sent
        await ends.peer.say(0, Credit(2 * MIB, MIB))
        await ends.connection.send(stream, *sample.block(1))


@quick
async def test_waiting_for_credit_ends_when_the_peer_ends_the_stream() -> None:
    sample = Sample(bytes_of(2 * MIB))
    async with connected(Side.CLIENT, hello=Hello(stream_allowance=MIB)) as ends:
        stream = await _begin(ends, sample)
        await ends.connection.send(stream, *sample.block(0))

        async def sends() -> None:
            with pytest.raises(Cancelled):
                await ends.connection.send(stream, *sample.block(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends)
            await wait_all_tasks_blocked()
            await ends.peer.say(stream, Error(Code.SUPERSEDED, Scope.STREAM, False))
        assert ends.connection.lost is None


@quick
async def test_waiting_for_credit_ends_with_the_connection() -> None:
    sample = Sample(bytes_of(2 * MIB))
    async with connected(Side.CLIENT, hello=Hello(stream_allowance=MIB)) as ends:
        stream = await _begin(ends, sample)
        await ends.connection.send(stream, *sample.block(0))

        async def sends() -> None:
            with pytest.raises(ConnectionLost):
                await ends.connection.send(stream, *sample.block(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends)
            await wait_all_tasks_blocked()
            await ends.peer.stream.aclose()


@quick
async def test_who_waits_for_the_turn_hears_of_a_refusal() -> None:
    """While the refuser has the turn and reads on, another stream wants to send: it must not wait for ever."""
    sample = Sample(bytes_of(2 * MIB))
    async with connected(Side.CLIENT) as ends:
        stream = await _begin(ends, sample)

        async def sends() -> None:
            with pytest.raises(BlockprotoError):
                await ends.connection.send(stream, *sample.block(0))

        await ends.peer.send_bytes(bytes(HEADER_LENGTH))
        await ends.peer.expect_error(Code.BAD_CHECK, Scope.CONNECTION)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends)
        assert trio.current_time() <= DISCARD_S


@pytest.mark.clause("BP1-END-013")
@quick
async def test_a_send_that_is_cancelled_half_way_ends_the_connection() -> None:
    sample = Sample(bytes_of(MIB))
    here, there = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.CLIENT))
    peer = RawPeer(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await peer.hear_greeting()
        await peer.send_bytes(PREFACE + encode_frame(0, Hello()))
        await connection.greeted.wait()
        stream = connection.open(Recorder())
        connection.post(stream, sample.open())
        await peer.hear()
        with trio.move_on_after(1):
            await connection.send(stream, *sample.block(0))
        await connection.finished.wait()
        assert isinstance(connection.lost, ConnectionLost)


@quick
async def test_pieces_are_never_longer_than_a_small_allowance_lets_pass() -> None:
    """A peer may take long pieces and yet grant little at once: a piece that never fits would never be sent."""
    hello = Hello(piece_length_max=MIB, stream_allowance=262_144, connection_allowance=4 * MIB)
    async with connected(Side.CLIENT, hello=hello) as ends:
        ends.connection.pace.rate_bytes_s = 1e9
        assert ends.connection.piece_length() <= 262_144 // 2


@pytest.mark.clause("BP1-CRD-006")
@quick
async def test_credit_is_returned_while_a_block_is_unfinished() -> None:
    sample = Sample(bytes_of(MIB))
    async with connected(limits=Limits(stream_allowance=262_144, connection_allowance=MIB)) as ends:
        await ends.peer.say(1, *sample.block(0, 0, 200_000, end=False))
        await ends.peer.wait_credited(200_000)
        await ends.peer.wait_credited(200_000, stream=1)
        assert max(credit.allowance for stream, credit in ends.peer.credits if stream == 1) >= 400_000


@quick
async def test_little_credit_is_returned_a_moment_later() -> None:
    """A sender whose streams share the line waits to hear that its last bytes came, however few they are."""
    sample = Sample(bytes_of(MIB))
    async with connected() as ends:
        await ends.peer.say(1, *sample.block(0, 0, 5_000, end=False))
        await ends.peer.wait_credited(5_000)
        await ends.peer.say(1, *sample.piece(0, 5_000, 10_000, end=False))
        await ends.peer.wait_credited(10_000)
        assert trio.current_time() < 0.2


@quick
async def test_credit_returns_when_the_connections_allowance_is_the_smaller_one() -> None:
    sample = Sample(bytes_of(4 * MIB))
    limits = Limits(connection_allowance=MIB, stream_allowance=16 * MIB)
    async with connected(limits=limits) as ends:
        await ends.peer.say(1, sample.open())
        for blockno in range(4):
            await ends.peer.say(1, *sample.block(blockno))
            await ends.peer.wait_credited((blockno + 1) * MIB)


@pytest.mark.clause("BP1-CRD-006")
@quick
async def test_payload_of_a_closed_stream_is_credited_to_the_connection() -> None:
    def refuse(message: Message) -> None:
        if isinstance(message, Block):
            raise BadFacts("no")

    sample = Sample(bytes_of(MIB))
    async with connected(handler=lambda: Recorder(on_message=refuse)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM)
        await ends.peer.wait_credited(MIB)


@quick
async def test_openings_go_out_together_and_their_ids_rise() -> None:
    async with connected(Side.CLIENT) as ends:
        sample = Sample(b"tiny")
        head, part = sample.block(0, commit=True)
        openings = [Opening(Recorder(), head, part) for _ in range(100)]
        streams = await ends.connection.send_openings(openings, Priority.NORMAL)
        assert streams == list(range(1, 200, 2))
        assert [(await ends.peer.hear()).stream for _ in range(100)] == streams


@quick
async def test_openings_wait_for_free_streams() -> None:
    async with connected(Side.CLIENT, hello=Hello(streams_max=256)) as ends:
        head, part = Sample(b"tiny").block(0, commit=True)
        openings = [Opening(Recorder(), head, part) for _ in range(300)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.connection.send_openings, openings, Priority.NORMAL)
            for _ in range(256):
                await ends.peer.hear()
            await wait_all_tasks_blocked()
            assert ends.connection.session.open_streams == 256
            for stream in range(1, 2 * 44 + 1, 2):
                await ends.peer.say(stream, Error(Code.BUSY, Scope.STREAM, True))
            for _ in range(44):
                await ends.peer.hear()


# ---- fair sending ---------------------------------------------------------------------------------------------


class SlowReader:
    """Reads frames at a steady rate and grants credit for what it has read, as a slow line does."""

    def __init__(self, peer: RawPeer, rate_bytes_s: float) -> None:
        self.bytes_of: dict[int, int] = {}
        self.order: list[int] = []
        self._peer = peer
        self._rate = rate_bytes_s

    async def read(self, total: int) -> None:
        """Read until so many bytes of payload came."""
        received = 0
        while received < total:
            heard = await self._peer.hear()
            length = len(heard.payload)
            if not length:
                continue
            received += length
            self.order.append(heard.stream)
            self.bytes_of[heard.stream] = self.bytes_of.get(heard.stream, 0) + length
            await trio.sleep_until(trio.current_time() + length / self._rate)
            await self._peer.say(0, Credit(1 << 40, received))


async def _send_without_end(ends: Ends, sample: Sample, stream: int, priority: Priority) -> None:
    with ends.connection.sending(stream):
        for blockno in range(sample.blocknum):
            at = 0
            while at < MIB:
                length = min(ends.connection.piece_length(), MIB - at)
                end = at + length == MIB
                make = sample.piece if at else sample.block
                head, part = make(blockno, at, at + length, end=end)
                await ends.connection.send(stream, head, part, priority)
                at += length


@pytest.mark.clause("BP1-STR-012")
@quick
async def test_streams_share_a_slow_line_by_weight_and_bytes() -> None:
    sample = Sample(bytes_of(64 * MIB // 16) * 16)
    hello = Hello(stream_allowance=1 << 40, connection_allowance=1 << 40)
    async with connected(Side.CLIENT, hello=hello) as ends, trio.open_nursery() as nursery:
        streams = [await _begin(ends, sample) for _ in Priority]
        for stream, priority in zip(streams, Priority, strict=True):
            nursery.start_soon(_send_without_end, ends, sample, stream, priority)
        reader = SlowReader(ends.peer, 1_000_000)
        await reader.read(4 * MIB)
        shares = [reader.bytes_of[stream] for stream in streams]
        assert shares[0] / shares[1] == pytest.approx(4, rel=0.25)
        assert shares[1] / shares[2] == pytest.approx(4, rel=0.35)
        nursery.cancel_scope.cancel()


@quick
async def test_a_small_interactive_file_overtakes_a_bulk_one() -> None:
    """On a line of 1 MB/s with a bulk upload running, 10 kB of interactive content come within half a second."""
    sample = Sample(bytes_of(16 * MIB))
    hello = Hello(stream_allowance=1 << 40, connection_allowance=1 << 40)
    async with connected(Side.CLIENT, hello=hello) as ends, trio.open_nursery() as nursery:
        bulk, interactive = await _begin(ends, sample), await _begin(ends, sample)
        reader = SlowReader(ends.peer, 1_000_000)
        nursery.start_soon(reader.read, 64 * MIB)
        with ends.connection.sending(interactive):
            nursery.start_soon(_send_without_end, ends, sample, bulk, Priority.BULK)
            await trio.sleep_until(5.0)
            head, part = sample.block(0, 0, 10_000, end=False)
            await ends.connection.send(interactive, head, part, Priority.INTERACTIVE)
            await trio.sleep_until(5.5)
        assert interactive in reader.order
        nursery.cancel_scope.cancel()


@pytest.mark.clause("BP1-STR-012")
@quick
async def test_an_event_that_has_happened_is_not_kept() -> None:
    """It takes a quarter of a KiB, of thousands of idle connections."""
    here, there = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.CLIENT))
    peer = RawPeer(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        waited_for = weakref.ref(connection.greeted)
        await peer.hear_greeting()
        await peer.send_bytes(PREFACE + encode_frame(0, Hello()))
        await connection.greeted.wait()
        late = weakref.ref(connection.greeted)
        nursery.cancel_scope.cancel()
    gc.collect()
    assert (waited_for(), late()) == (None, None)
    await connection.greeted.wait()
    await connection.finished.wait()


async def test_a_new_connection_has_no_deque() -> None:
    """An empty one takes 760 bytes, of thousands of idle connections."""
    here, _ = trio.testing.lockstep_stream_pair()
    gc.collect()
    before = sum(isinstance(one, deque) for one in gc.get_objects())
    connection = Connection(StreamEndpoint(here), Session(Side.SERVER))
    assert sum(isinstance(one, deque) for one in gc.get_objects()) == before
    assert connection.lost is None


async def test_control_frames_go_before_payload_that_waits() -> None:
    sample = Sample(bytes_of(2 * MIB))
    here, there = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamEndpoint(here), Session(Side.CLIENT))
    peer = RawPeer(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await peer.hear_greeting()
        await peer.send_bytes(PREFACE + encode_frame(0, Hello()))
        await connection.greeted.wait()
        streams = []
        for _ in range(2):
            streams.append(connection.open(Recorder()))
            connection.post(streams[-1], sample.open())
            await peer.hear()
        for stream in streams:
            nursery.start_soon(connection.send, stream, *sample.block(0))
        await wait_all_tasks_blocked()
        connection.post(streams[0], Cancel(Code.CANCELLED))
        assert (await peer.hear()).payload
        assert isinstance((await peer.hear()).message, Cancel)
        nursery.cancel_scope.cancel()


@quick
async def test_the_kernels_queue_is_long_only_while_one_stream_has_a_fast_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected(Side.CLIENT) as ends:
        limited: list[bool] = []
        monkeypatch.setattr(ends.connection.endpoint, "limit_unsent", limited.append)
        with ends.connection.sending(1):
            assert limited == [True]  # how fast the line is nobody knows yet
            ends.connection.pace.unknown = False
            await ends.peer.say(0, Credit(32 * MIB, 0))
            await wait_all_tasks_blocked()
            with ends.connection.sending(3):
                assert limited == [True, False, True]
            assert limited[3:] == [False]
        assert limited[4:] == [False]


@quick
async def test_what_our_own_caller_gets_wrong_is_told_to_it() -> None:
    async with connected(Side.CLIENT) as ends:
        with pytest.raises(LocalProtocolError):
            ends.connection.post(1, Have(()))
        assert ends.connection.lost is None


def test_limits_agree_with_the_spec() -> None:
    assert (GREETING_S, HEAD_S, DISCARD_S, SILENCE_S) == (10, 10, 5, 600)
    assert connection_module.CONTROL_LENGTH_MAX <= MIB


@quick
async def test_a_connection_that_rests_has_no_buffer_worth_mentioning() -> None:
    """Ten thousand of them would cost 80 MB; the next frame finds it all the same."""
    async with connected() as ends:
        await ends.peer.send_bytes(10 * encode_frame(0, Ping(opaque=bytes(8), next_s=600)))
        for _ in range(10):
            await ends.peer.expect(Ping)
        assert len(ends.connection.session.receive_buffer()) > IDLE_BUFFER_LENGTH
        await trio.sleep_until(trio.current_time() + REST_S + 0.1)
        assert len(ends.connection.session.receive_buffer()) == IDLE_BUFFER_LENGTH
        await ends.peer.say(0, Ping(opaque=b"8 bytes.", next_s=600))
        assert (await ends.peer.expect(Ping)).opaque == b"8 bytes."


@pytest.mark.clause("BP1-STR-017")
@quick
async def test_a_receiver_that_is_late_with_credit_holds_nobody_for_ever() -> None:
    """Two streams share the line and the peer, whose window is large, says nothing of what it has received."""
    samples = [Sample(bytes_of(MIB, seed), f"sample {seed}", sourceid=bytes([seed]) * 16) for seed in (1, 2)]
    async with connected(Side.CLIENT) as ends:
        streams = [await _begin(ends, sample) for sample in samples]
        heard = 0
        async with trio.open_nursery() as nursery:
            for stream, sample in zip(streams, samples, strict=True):
                nursery.start_soon(_send_in_pieces, ends.connection, stream, sample)
            while heard < 2 * MIB:
                heard += len((await ends.peer.hear()).payload)
        assert trio.current_time() > 1


async def _send_in_pieces(connection: Connection, stream: int, sample: Sample) -> None:
    """Send the only block of ``sample`` in pieces of 64 KiB, as one of those that share the line."""
    length = 64 * 1024
    with connection.sending(stream):
        for first in range(0, MIB, length):
            last = first + length
            begin = sample.block if first == 0 else sample.piece
            await connection.send(stream, *begin(0, first, last, end=last == MIB))


# ---- beside other connections ---------------------------------------------------------------------------------


@quick
async def test_a_buffer_full_of_small_frames_lets_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However much one connection sends at once: after sixteen of its frames comes everybody else.

    Trio draws the order in each round, so it may be last in one and first in the next.
    """
    turns, seen = 0, []
    handle = Connection._handle

    async def noted(self: Connection, event: Event) -> None:
        seen.append(turns)
        await handle(self, event)

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    monkeypatch.setattr(Connection, "_handle", noted)
    async with connected() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(somebody_else)
        raw = b"".join(bytes(encode_frame(0, Ping(number.to_bytes(8, "big"), 0))) for number in range(1000))
        await ends.peer.send_bytes(raw)
        for _ in range(1000):
            await ends.peer.expect(Ping)
        nursery.cancel_scope.cancel()
    assert max(Counter(seen).values()) <= 2 * connection_module._EVENTS_PER_CHECKPOINT
