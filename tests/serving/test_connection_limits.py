"""How many connections one principal has, and which of them goes when there are too many."""

from __future__ import annotations

import pytest

from blockproto.errors import BlockprotoError, Code
from blockproto.identity.realm import ANONYMOUS
from blockproto.serving.connection_limits import CONNECTIONS_EACH, ConnectionLimits, connections_for

ALICE, BOB = b"a" * 16, b"b" * 16
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Member:
    """A connection on which something came at a certain time."""

    def __init__(self, heard_s: float) -> None:
        self.heard_s = heard_s
        self.ended: list[Code] = []

    def end_with(self, error: BlockprotoError) -> None:
        self.ended.append(error.code)


def members(*heard_s: float) -> list[Member]:
    return [Member(one) for one in heard_s]


@pytest.mark.clause("BP1-PRN-009", "BP1-PRN-007")
def test_the_one_that_was_silent_longest_goes_and_no_other() -> None:
    limits = ConnectionLimits(2)
    ours, theirs = members(5, 3, 1), members(0)
    limits.join(BOB, HERE, theirs[0])
    for member in ours:
        limits.join(ALICE, HERE, member)
    assert [one.ended for one in (*ours, *theirs)] == [[], [Code.TIMEOUT], [], []]
    later = Member(9)
    limits.join(ALICE, HERE, later)
    assert ours[2].ended == [Code.TIMEOUT]
    assert len(ours[1].ended) == 1, "who has to go makes no room twice"


@pytest.mark.clause("BP1-PRN-009")
def test_who_left_makes_room_and_who_says_auth_again_takes_none() -> None:
    limits = ConnectionLimits(2)
    one, two, three = members(1, 2, 3)
    for member in (one, two, one, two):
        limits.join(ALICE, HERE, member)
    limits.leave(one)
    limits.leave(one)
    limits.join(ALICE, HERE, three)
    assert [member.ended for member in (one, two, three)] == [[], [], []]


def test_with_one_place_the_newest_has_it() -> None:
    limits = ConnectionLimits(1)
    one, two, three = members(9, 2, 1)
    for member in (one, two, three):
        limits.join(ALICE, HERE, member)
    assert [member.ended for member in (one, two, three)] == [[Code.TIMEOUT], [Code.TIMEOUT], []]


@pytest.mark.clause("BP1-PRN-009")
def test_of_those_who_say_no_token_each_address_is_counted_alone() -> None:
    limits = ConnectionLimits(2)
    here, there, alice = members(3, 1, 2), members(0, 0), Member(0)
    limits.join(ALICE, HERE, alice)
    for member in there:
        limits.join(ANONYMOUS.principal, THERE, member)
    for member in here:
        limits.join(ANONYMOUS.principal, HERE, member)
    assert [member.ended for member in (*here, *there, alice)] == [[], [Code.TIMEOUT], [], [], [], []]


@pytest.mark.clause("BP1-PRN-009")
def test_the_addresses_of_one_household_are_one() -> None:
    limits = ConnectionLimits(1)
    one, two = members(1, 2)
    limits.join(ANONYMOUS.principal, "2001:db8::1", one)
    limits.join(ANONYMOUS.principal, "2001:db8::2", two)
    assert one.ended == [Code.TIMEOUT]


def test_who_says_a_token_later_is_of_the_address_no_more() -> None:
    limits = ConnectionLimits(1)
    one, two, three = members(1, 2, 3)
    limits.join(ANONYMOUS.principal, HERE, one)
    limits.join(ALICE, HERE, one)
    limits.join(ANONYMOUS.principal, HERE, two)
    assert not one.ended
    limits.leave(one)
    limits.join(ALICE, HERE, three)
    assert not any(member.ended for member in (one, two, three))


@pytest.mark.parametrize(("files", "each"), [(1, 1), (1024, 512), (1 << 20, CONNECTIONS_EACH)])
def test_one_principal_gets_half_of_the_descriptors_at_most(files: int, each: int) -> None:
    assert connections_for(files) == each


def test_the_operator_may_allow_more_and_less() -> None:
    assert [connections_for(1 << 20, wanted) for wanted in (3, 10_000)] == [3, 10_000]
    assert connections_for(1024, 10_000) == 512
