"""Explain why a transfer was slow or stuck, from the log that ``observability.recorder`` wrote.

The log says how many seconds the transfers waited for what. One thing is reinterpreted: if nothing at all was heard during a
wait, and it was long or ended with the connection, then the peer was silent, whatever was waited for.

A pure function of the log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Code

FORMAT = 1
SILENT_S = 20.0
"""A wait of this length without a byte means silence: a live peer answers a PING sooner."""
SHORT_S = 5.0
"""The same for a wait that ends with the loss of the connection."""

_LOOK_THERE = "if other programs are faster over this line, look at the disk and the load of the other side"
_FASTER = f"use a faster network, or --connections 4 where each single connection is held down; {_LOOK_THERE}"
_HERE = (
    "the address is one of this machine: if a tunnel or a proxy leads on from there, what lies behind it holds the line up, "
    "else the load and the disk of this machine"
)
_BREAKS = "and find out what breaks the connection: each time what was on its way is sent again"
_DOWN = "the line carried no more, or the other side sent no more"
_DOING = {
    "line": (
        "the line carried no more, or the other side took no more from it",
        _FASTER,
    ),
    "credit": (
        "the line was free, and the other side had no room for more: it is busy, or writing takes long there",
        "look at the disk and the load of the other side",
    ),
    "acknowledgement": (
        "the bytes had arrived, and the other side had not made them durable yet",
        "look at the disk of the other side: its syncs are slow, and nothing is acknowledged before them",
    ),
    "disk": (
        "this machine: the file was being read, hashed or written here",
        "look at the disk and the load of this machine",
    ),
    "peer": (
        "the other side said nothing",
        "see that the server runs, and that no firewall or mobile network silently drops the connection",
    ),
    "connecting": (
        "there was no connection yet, or none any more",
        "see that the server runs there and that the network holds; --retry-for says how long to come back",
    ),
}
"""By reason: what it means, and what to do."""


@dataclass(slots=True)
class Explanation:
    """The summary of a log.

    Attributes:
        waits: seconds by reason.
        elapsed_s: from the first line to the last.
        losses: why connections were lost, in order.
        unreachable: why there was no connection when one was looked for first; "" if there was.
        payload_sent, payload_received: bytes of file content.
        acknowledged: bytes of it that the other side made durable.
        ack_lag_s: the longest time until bytes were durable.
        round_trip_s: the shortest round trip, or None.
        files: names, in the order in which they were begun.
        errors: the refusals of the other side, in its words.
        complete: whether the log has its end.
        connected: whether there was a connection.
        loopback: whether the server was on this machine.
    """

    waits: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0
    losses: list[str] = field(default_factory=list)
    unreachable: str = ""
    payload_sent: int = 0
    payload_received: int = 0
    acknowledged: int = 0
    ack_lag_s: float = 0.0
    round_trip_s: float | None = None
    files: dict[str, None] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    complete: bool = False
    connected: bool = False
    loopback: bool = False

    @property
    def reason(self) -> str | None:
        """The reason with the longest waits; None if there was none."""
        return max(self.waits, key=lambda reason: self.waits[reason]) if self.waits else None

    def share(self, reason: str) -> float:
        """The share of a reason in all waits."""
        total = sum(self.waits.values())
        return self.waits[reason] / total if total else 0.0

    @property
    def advice(self) -> str:
        """What to do about ``reason``."""
        if self.reason is None:
            return ""
        advice = self._doing(self.reason)[1]
        return f"{advice}; {_BREAKS}" if len(self.losses) > 1 and self.reason != "connecting" else advice

    def _doing(self, reason: str) -> tuple[str, str]:
        """What a reason means, and what to do: what a line carries depends on the way and on where it goes."""
        meaning, advice = _DOING[reason]
        if reason != "line":
            return meaning, advice
        if self.payload_received > self.payload_sent:  # and `get` has no --connections
            meaning, advice = _DOWN, f"use a faster network; {_LOOK_THERE}"
        return meaning, _HERE if self.loopback else advice

    def sentences(self) -> Iterable[str]:
        """The summary in sentences, the main reason first."""
        if self.reason is None:
            yield "Nothing was transferred long enough to say anything."
        else:
            yield f"{self.share(self.reason):.0%} of the time: {self._doing(self.reason)[0]}."
            yield f"What to do: {self.advice}."
            for reason, _ in self.waits.most_common()[1:]:
                if self.share(reason) >= 0.05:
                    yield f"{self.share(reason):.0%}: {self._doing(reason)[0]}."
        if self.losses:
            times = "once" if len(self.losses) == 1 else f"{len(self.losses)} times"
            yield f"The connection was lost {times}, the last time because: {self.losses[-1]}."
        elif self.unreachable:
            yield f"There was no connection at first, because: {self.unreachable}."
        for error in dict.fromkeys(self.errors):
            yield f"The other side refused something: {error}."
        yield self._figures()
        if not self.complete:
            yield "The log ends in the middle: the program was killed, or is still running."

    def _figures(self) -> str:
        moved = max(self.payload_sent, self.payload_received)
        rate = moved / self.elapsed_s / 2**20 if self.elapsed_s else 0.0
        trip = "" if self.round_trip_s is None else f", round trip {self.round_trip_s * 1000:.0f} ms at best"
        lag = f", up to {self.ack_lag_s:.1f} s until durable" if self.ack_lag_s else ""
        return f"{moved / 2**20:.1f} MiB in {self.elapsed_s:.1f} s, {rate:.2f} MiB/s{trip}{lag}."


def explain(lines: Iterable[str]) -> Explanation:
    """Summarise the lines of a log.

    Raises:
        ValueError: they are not such a log.
    """
    events = list(_parsed(lines))
    if not events or events[0].get("event") != "begin":
        raise ValueError(_NO_LOG)
    if events[0].get("format") != FORMAT:
        raise ValueError(f"the log has the format {events[0].get('format')}, this program knows {FORMAT}")
    told = Explanation(elapsed_s=float(events[-1]["t"]), loopback=events[0].get("loopback") is True)
    silences: dict[int, Counter[str]] = {}
    own = _own_questions(events)
    for event in events:
        if event["event"] == "error" and event.get("code") == Code.UNKNOWN_FILE and _stream(event) in own:
            continue
        _take(told, event, silences)
    for silence in silences.values():
        _settle(told, silence, lost=False)
    return told


_NO_LOG = "this is not the log of a transfer: `put --log FILE` and `get --log FILE` write one"


def _own_questions(events: Iterable[Mapping[str, Any]]) -> set[tuple[int, int]]:
    """The streams on which an upload asked for a file: UNKNOWN_FILE there is not a refusal, as it is for a download."""
    begun = [event for event in events if event["event"] == "transfer"]
    if not any(event.get("message") in ("OPEN", "BLOCK") for event in begun):
        return set()
    return {_stream(event) for event in begun if event.get("message") == "LIST"}


def _stream(event: Mapping[str, Any]) -> tuple[int, int]:
    return int(event.get("connection", 0)), int(event.get("stream", 0))


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """The events; an incomplete last line is skipped."""
    waiting: str | None = None
    for number, line in enumerate(lines):
        if waiting is not None:
            yield _event(waiting, number)
        waiting = line.strip() or None
    if waiting is not None:
        try:
            last = _event(waiting, 0)
        except ValueError:
            return
        yield last


def _event(line: str, number: int) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("t"), int | float):
        raise ValueError(_NO_LOG if number == 1 else f"line {number} is damaged: it is not an event of a log")
    return event


def _take(told: Explanation, event: Mapping[str, Any], silences: dict[int, Counter[str]]) -> None:
    """Count one event; ``silences`` holds, by connection, the waits since something was heard on it."""
    kind, number = event["event"], int(event.get("connection", 0))
    if kind == "second":
        _take_second(told, event, silences.setdefault(number, Counter()))
    elif kind in ("lost", "closed"):
        _settle(told, silences.pop(number, Counter()), lost=kind == "lost")
        if kind == "lost":
            told.losses.append(str(event.get("why", "")))
    elif kind == "connected":
        told.connected = True
    elif (
        kind == "reconnecting" and not told.connected
    ):  # later ones are of what is lost, or will be said to be
        told.unreachable = str(event.get("why", ""))
    elif kind == "transfer" and event.get("filename"):
        told.files[str(event["filename"])] = None
    elif kind == "error":
        told.errors.append(str(event.get("text") or f"code {event.get('code')}"))
    elif kind == "end":
        told.complete = True


def _take_second(told: Explanation, event: Mapping[str, Any], silence: Counter[str]) -> None:
    if event.get("bytes_in"):
        _settle(told, silence, lost=False)
    silence.update({reason: float(seconds) for reason, seconds in event["waits"].items()})
    told.payload_sent += int(event.get("payload_sent", 0))
    told.payload_received += int(event.get("payload_received", 0))
    told.acknowledged += int(event.get("acknowledged", 0))
    told.ack_lag_s = max(told.ack_lag_s, float(event.get("ack_lag_s") or 0))
    trip = event.get("round_trip_s")
    if trip is not None:
        told.round_trip_s = trip if told.round_trip_s is None else min(told.round_trip_s, trip)


def _settle(told: Explanation, silence: Counter[str], *, lost: bool) -> None:
    """Count waits during which nothing was heard: as they are, or as silence if they were too long."""
    waited_s = sum(seconds for reason, seconds in silence.items() if reason not in ("disk", "connecting"))
    if waited_s >= SILENT_S or (lost and waited_s >= SHORT_S):
        for reason in [reason for reason in silence if reason not in ("disk", "connecting")]:
            silence["peer"] += silence.pop(reason)
    told.waits.update(silence)
    silence.clear()
