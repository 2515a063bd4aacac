from blockproto.wire import Ack, Block, Piece, decode_head, decode_header, encode_frame


def test_messages_survive_the_wire():
    for message in (
        Block(bytes(16), 5, 1, 0, 0, "a/文", "text/plain", bytes(32), True, mode=0o644),
        Piece(7),
        Ack(9, ((0, 1), (5, 2))),
    ):
        frame = encode_frame(3, message)
        assert decode_head(decode_header(frame), frame[16:]) == message
