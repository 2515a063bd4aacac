"""Captures written by hand: a TCP conversation as a pcap file, cut into segments as the test likes."""

from __future__ import annotations

import struct
from pathlib import Path

SEGMENT_LENGTH_MAX = 60_000
_RAW_IP = 101
_PORT_CLIENT = 40_000
_FIN, _SYN, _PUSH, _ACK = 0x01, 0x02, 0x08, 0x10


class Capture:
    """A pcap file of TCP connections between a client and a server on 127.0.0.1.

    Args:
        path: where to write; one that is there is replaced.
        port: of the server.
    """

    def __init__(self, path: Path, port: int = 7878) -> None:
        self.path = path
        self._port = port
        self._client = _PORT_CLIENT
        self._next = {True: 0, False: 0}
        self._packets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, _RAW_IP)]

    def connect(self) -> None:
        """Begin a connection; what is said from now on is said there."""
        self._client += 1
        self._next = {True: 1000, False: 2000}
        for from_client, flags in ((True, _SYN), (False, _SYN | _ACK)):
            self._packet(from_client, flags, b"")
            self._next[from_client] += 1
        self._packet(True, _ACK, b"")

    def say(self, from_client: bool, raw: bytes, segment_length: int = SEGMENT_LENGTH_MAX) -> None:
        """Bytes of one side, in segments of this length."""
        for at in range(0, len(raw), segment_length):
            self._packet(from_client, _PUSH | _ACK, raw[at : at + segment_length])

    def save(self) -> Path:
        """Write the file; returns its path."""
        self.path.write_bytes(b"".join(self._packets))
        return self.path

    def _packet(self, from_client: bool, flags: int, raw: bytes) -> None:
        ports = (self._client, self._port) if from_client else (self._port, self._client)
        tcp = struct.pack(
            ">HHIIBBHHH",
            *ports,
            self._next[from_client],
            self._next[not from_client],
            5 << 4,
            flags,
            65_535,
            0,
            0,
        )
        self._next[from_client] += len(raw)
        packet = _ip(len(tcp) + len(raw)) + tcp + raw
        at_us = len(self._packets) * 1000
        self._packets.append(
            struct.pack("<IIII", at_us // 1_000_000, at_us % 1_000_000, len(packet), len(packet)) + packet
        )


def _ip(length: int) -> bytes:
    return struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 6, 0, bytes([127, 0, 0, 1]), bytes([127, 0, 0, 1])
    )
