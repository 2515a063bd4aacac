"""A client that asks many things at once on one connection and counts the answers: raw frames over a blocking socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Auth,
    Committed,
    Error,
    Hello,
    Message,
    Result,
    decode_head,
    decode_header,
    encode_frame,
)

AT_ONCE = 400
ANSWER_S = 120.0
Asked = tuple[Message, bytes]


class Pipeline:
    """One connection on which up to ``AT_ONCE`` questions wait for their answers.

    Args:
        port: of a server on this machine.
        token: what to come in with, or None.
    """

    def __init__(self, port: int, token: str | None = None) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        self._heard = bytearray()
        self._stream = 1
        self.payload = bytearray()
        self._sock.sendall(PREFACE + encode_frame(0, Hello(agent="pipeline")))
        assert self._take(len(PREFACE)) == PREFACE
        self._hear()
        if token is not None:
            (answer,) = self.ask([(Auth(token), b"")])
            assert isinstance(answer, Result), answer

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, questions: Iterable[Asked]) -> Iterator[Message]:
        """The final answer to each question, in their order."""
        waiting: list[Asked] = []
        for question in questions:
            waiting.append(question)
            if len(waiting) == AT_ONCE:
                yield from self._ask_at_once(waiting)
                waiting = []
        yield from self._ask_at_once(waiting)

    def say(self, questions: Iterable[Asked]) -> None:
        """Ask, and hear no answer."""
        for message, payload in questions:
            self._sock.sendall(encode_frame(self._stream, message, len(payload)) + payload)
            self._stream += 2

    def _ask_at_once(self, questions: list[Asked]) -> list[Message]:
        first = self._stream
        self._stream += 2 * len(questions)
        said = bytearray()
        for number, (message, payload) in enumerate(questions):
            said += encode_frame(first + 2 * number, message, len(payload)) + payload
        self._sock.sendall(said)
        answers: dict[int, Message] = {}
        while len(answers) < len(questions):
            stream, message = self._hear()
            assert not (stream == 0 and isinstance(message, Error)), message
            if isinstance(message, Error | Committed | Result) or message.TYPE.name == "COMMIT":
                answers[stream] = message
        return [answers[first + 2 * number] for number in range(len(questions))]

    def _hear(self) -> tuple[int, Message]:
        header = decode_header(self._take(HEADER_LENGTH))
        message = decode_head(header, self._take(header.head_length))
        self.payload += self._take(header.payload_length)
        assert message is not None
        return header.stream, message

    def _take(self, length: int) -> bytes:
        while len(self._heard) < length:
            more = self._sock.recv(1 << 18)
            if not more:
                raise ConnectionError("the server closed the connection")
            self._heard += more
        taken = bytes(self._heard[:length])
        del self._heard[:length]
        return taken
