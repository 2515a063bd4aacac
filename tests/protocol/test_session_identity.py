"""AUTH in the session: where it may stand, and the early limits that hold until it was answered."""

from __future__ import annotations

import pytest
from test_session import feed, refusal

from blockproto import wire
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.errors import (
    CreditExceeded,
    FrameTooLarge,
    LocalProtocolError,
    TooManyStreams,
    UnexpectedMessage,
)
from blockproto.protocol.session import Greeted, Limits, Received, Session, Side, State
from blockproto.wire import Auth, Block, List, PrincipalItem, Result, encode_frame

AUTH = Auth("bp1_secret")
ADMITTED = Result(wire.PRINCIPAL_KIND, (PrincipalItem(bytes(16), None, 1, None, None, 3, "alice"),))
REQUIRED = Limits(features=wire.FEATURE_AUTH | wire.FEATURE_AUTH_REQUIRED)
BIG = Block(bytes(16), BLOCK_LENGTH, 1, 0, 0, "a", "")


def pair(limits: Limits = REQUIRED) -> tuple[Session, Session]:
    """A client and a server of these limits that have greeted each other."""
    client, server = Session(Side.CLIENT), Session(Side.SERVER, limits)
    assert feed(server, client.greeting()) == [Greeted(client.limits.hello())]
    assert feed(client, server.greeting()) == [Greeted(limits.hello())]
    return client, server


def admit(client: Session, server: Session) -> None:
    """Let AUTH succeed."""
    stream = client.open_stream()
    assert feed(server, client.send(stream, AUTH)) == [Received(stream, AUTH, 0)]
    assert feed(client, server.send(stream, ADMITTED)) == [Received(stream, ADMITTED, 0)]
    assert client.state(stream) is server.state(stream) is State.CLOSED


@pytest.mark.clause("BP1-AUT-002")
def test_auth_stands_beside_list() -> None:
    client, server = pair(Limits())
    admit(client, server)
    admit(client, server)
    with pytest.raises(LocalProtocolError):
        client.send(0, AUTH)
    assert isinstance(refusal(server, encode_frame(0, AUTH)), UnexpectedMessage)


def test_a_credential_is_in_no_repr() -> None:
    assert "secret" not in repr(AUTH)


@pytest.mark.clause("BP1-AUT-005")
def test_a_client_keeps_to_the_early_limits_until_it_was_admitted() -> None:
    client, server = pair()
    assert client.peer_hello == REQUIRED.hello()
    assert (client.piece_length_max, client.head_length_max) == (
        wire.PIECE_LENGTH_EARLY,
        wire.HEAD_LENGTH_EARLY,
    )
    assert client.sendable(0) == wire.CONNECTION_ALLOWANCE_EARLY
    before = client.open_stream()
    assert client.sendable(before) == wire.STREAM_ALLOWANCE_EARLY
    client.send(before, List(1))
    admit(client, server)
    assert (client.piece_length_max, client.head_length_max) == (
        REQUIRED.piece_length_max,
        REQUIRED.head_length_max,
    )
    assert client.sendable(0) == REQUIRED.connection_allowance
    assert client.sendable(before) == client.sendable(client.open_stream()) == REQUIRED.stream_allowance


@pytest.mark.clause("BP1-AUT-005")
def test_a_client_opens_no_more_streams_than_early_until_it_was_admitted() -> None:
    client, server = pair()
    streams = [client.open_stream() for _ in range(wire.STREAMS_EARLY)]
    assert not client.may_open
    for stream in streams:
        feed(server, client.send(stream, List(1)))
    assert isinstance(
        refusal(server, encode_frame(2 * wire.STREAMS_EARLY + 1, List(1))),
        TooManyStreams,
    )


@pytest.mark.clause("BP1-AUT-005")
@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (encode_frame(1, List(1, name="a" * wire.HEAD_LENGTH_EARLY)), FrameTooLarge),
        (encode_frame(1, BIG, wire.PIECE_LENGTH_EARLY + 1), FrameTooLarge),
    ],
)
def test_a_server_holds_the_early_limits_until_it_admits(frame: bytes, error: type[Exception]) -> None:
    assert isinstance(refusal(pair()[1], frame), error)
    assert feed(pair(Limits())[1], frame)


@pytest.mark.clause("BP1-AUT-005")
def test_a_server_grants_no_more_than_early_until_it_admits() -> None:
    piece = encode_frame(1, BIG, wire.PIECE_LENGTH_EARLY)[16:]
    payload = bytes(wire.PIECE_LENGTH_EARLY)
    block = wire.frame_bytes(1, wire.Type.BLOCK, 0, piece, len(payload)) + payload
    fits = wire.STREAM_ALLOWANCE_EARLY // wire.PIECE_LENGTH_EARLY
    _, strict = pair()
    for _ in range(fits):
        feed(strict, block)
    assert isinstance(refusal(strict, block), CreditExceeded)
    _, open_to_all = pair(Limits())
    for _ in range(fits + 1):
        feed(open_to_all, block)


@pytest.mark.clause("BP1-AUT-005")
def test_what_another_result_says_admits_nobody() -> None:
    client, server = pair()
    stream = client.open_stream()
    feed(server, client.send(stream, List(1)))
    feed(client, server.send(stream, Result(1)))
    assert client.piece_length_max == wire.PIECE_LENGTH_EARLY
    assert server._reader.piece_length_max == wire.PIECE_LENGTH_EARLY
