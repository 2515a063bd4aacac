"""How many connections one principal has, and which of them goes when there are too many."""

from __future__ import annotations

import pytest

from blockproto.errors import BlockprotoError, Code
from blockproto.realm import ANONYMOUS
from blockproto.serving.company import CONNECTIONS_EACH, Company, connections_for

ALICE, BOB = b"a" * 16, b"b" * 16


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
    company = Company(2)
    ours, theirs = members(5, 3, 1), members(0)
    company.join(BOB, theirs[0])
    for member in ours:
        company.join(ALICE, member)
    assert [one.ended for one in (*ours, *theirs)] == [[], [Code.TIMEOUT], [], []]
    later = Member(9)
    company.join(ALICE, later)
    assert ours[2].ended == [Code.TIMEOUT]
    assert len(ours[1].ended) == 1, "who has to go makes no room twice"


@pytest.mark.clause("BP1-PRN-009")
def test_who_left_makes_room_and_who_says_auth_again_takes_none() -> None:
    company = Company(2)
    one, two, three = members(1, 2, 3)
    for member in (one, two, one, two):
        company.join(ALICE, member)
    company.leave(one)
    company.leave(one)
    company.join(ALICE, three)
    assert [member.ended for member in (one, two, three)] == [[], [], []]


def test_with_one_place_the_newest_has_it() -> None:
    company = Company(1)
    one, two, three = members(9, 2, 1)
    for member in (one, two, three):
        company.join(ALICE, member)
    assert [member.ended for member in (one, two, three)] == [[Code.TIMEOUT], [Code.TIMEOUT], []]


@pytest.mark.clause("BP1-PRN-009")
def test_the_anonymous_one_is_everybody() -> None:
    company = Company(1)
    crowd = members(*range(10))
    for member in crowd:
        company.join(ANONYMOUS.principal, member)
    assert not any(member.ended for member in crowd)


@pytest.mark.parametrize(("files", "each"), [(1, 1), (1024, 512), (1 << 20, CONNECTIONS_EACH)])
def test_one_principal_gets_half_of_the_descriptors_at_most(files: int, each: int) -> None:
    assert connections_for(files) == each
