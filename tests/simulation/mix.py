"""What goes wrong in one run: each seed draws its own mix, so that rare combinations come together (swarm testing)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from blockproto.protocol.session import Limits
from blockproto.testing.chaos import Amount, Conditions, Ending, How

MIB = 1 << 20
LEAST = Limits(
    head_length_max=4096,
    piece_length_max=65_536,
    streams_max=256,
    connection_allowance=MIB,
    stream_allowance=262_144,
    undurable_max=0,
    agent="least",
)
"""A server that takes as little as the protocol allows."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The troubles of a run; probabilities are for each line, command or period.

    Attributes:
        trouble_s: how long it lasts; after that everything must finish.
        rates: bytes a second that lines may have.
        round_trips: seconds.
        slices: lengths that lines may hand on at once.
        cut, black_hole: how a line may end; a black hole heals or does not.
        flip_every: bytes between flipped bits; None: none.
        kill_client, stop_client: the process of a command dies; or it is cancelled in order.
        kill_server, restart_server, die_in_commit: seconds between these on the average; None: never.
        slow_disk, full_disk: how often a period of it comes.
        disk_s: how long a commit takes on the average.
        rivals: a second device sends the same upload.
        changes: the source changes while it is sent.
        grease: everybody says reserved things now and then, which must be skipped.
        fine: lines and senders cut what they carry as small as real ones do, which costs several times as much to run.
        limits: what the server takes.
    """

    trouble_s: float
    rates: tuple[float | None, ...]
    round_trips: tuple[float, ...]
    slices: tuple[int | None, ...]
    cut: float
    black_hole: float
    flip_every: float | None
    kill_client: float
    stop_client: float
    kill_server: float | None
    restart_server: float | None
    die_in_commit: float | None
    slow_disk: float
    full_disk: float
    disk_s: float
    rivals: float
    changes: float
    grease: bool
    fine: bool
    limits: Limits

    @classmethod
    def calm(cls, **changes: Any) -> Mix:
        """Nothing goes wrong but for ``changes``."""
        nothing = cls(
            trouble_s=60.0, rates=(None,), round_trips=(0.02,), slices=(None,), cut=0.0, black_hole=0.0, flip_every=None,
            kill_client=0.0, stop_client=0.0, kill_server=None, restart_server=None, die_in_commit=None, slow_disk=0.0,
            full_disk=0.0, disk_s=0.01, rivals=0.0, changes=0.0, grease=False,
            fine=False, limits=Limits(agent="simulated"),
        )  # fmt: skip
        return replace(nothing, **changes)

    @classmethod
    def draw(cls, rng: random.Random) -> Mix:
        """Each trouble is there or not, and then weak or strong."""

        def maybe(*strengths: float, odds: float = 0.5) -> float:
            return rng.choice(strengths) if rng.random() < odds else 0.0

        def sometimes(*means_s: float, odds: float = 0.5) -> float | None:
            return rng.choice(means_s) if rng.random() < odds else None

        slow = rng.random() < 0.1
        return cls(
            trouble_s=rng.choice((20.0, 60.0, 300.0)),
            rates=(200e3, 1e6) if slow else rng.choice(((None,), (None, 4e6, 20e6))),
            round_trips=rng.choice(((0.0,), (0.02, 0.1), (0.1, 0.6, 2.0))),
            slices=(None, 700, 9000) if rng.random() < 0.05 else (None,),
            cut=maybe(0.1, 0.5),
            black_hole=maybe(0.05, 0.3),
            flip_every=sometimes(3e6, 30e6, odds=0.15),
            kill_client=maybe(0.2, 0.5),
            stop_client=maybe(0.2),
            kill_server=sometimes(10.0, 60.0),
            restart_server=sometimes(30.0, odds=0.3),
            die_in_commit=sometimes(10.0, 60.0),
            slow_disk=maybe(0.3),
            full_disk=maybe(0.3, odds=0.3),
            disk_s=rng.choice((0.001, 0.01, 0.3)),
            rivals=maybe(0.3, 0.8),
            changes=maybe(0.2, odds=0.3),
            grease=rng.random() < 0.2,
            limits=LEAST if rng.random() < 0.2 else Limits(agent="simulated"),
            fine=rng.random() < 0.1,
        )

    def line(self, rng: random.Random, calm: bool) -> Conditions:
        """What the next line is like."""
        rate = rng.choice(self.rates)
        line = Conditions(up_bytes_s=rate, down_bytes_s=rate, round_trip_s=rng.choice(self.round_trips))
        if calm:
            return line
        ending = None
        drawn = rng.random()
        if drawn < self.cut:
            ending = Ending(rng.choice((How.RESET, How.RESET, How.CLOSED)), self._when(rng))
        elif drawn < self.cut + self.black_hole:
            heals_s = rng.choice((None, 3.0, 40.0))
            ending = Ending(How.BLACK_HOLE, self._when(rng), heals_after_s=heals_s)
        slice_bytes = rng.choice(self.slices)
        return replace(line, slice_bytes=slice_bytes, flip_every_bytes=self.flip_every, ending=ending)

    def _when(self, rng: random.Random) -> Amount:
        """After how many bytes: in the greeting, among small messages, or in the middle of blocks."""
        return rng.choice((Amount(1, 500), Amount(1, 20_000), Amount(1, 3 * MIB)))
