from __future__ import annotations

import inspect

import pytest

from blockproto import errors
from blockproto.errors import (
    ERRORS,
    BlockprotoError,
    Code,
    ConnectionLost,
    LocalProtocolError,
    NameRefused,
    ProtocolError,
    Refused,
    RemoteProtocolError,
    Scope,
    StoreError,
    StoreFailed,
    Superseded,
    TransferError,
    error_from_code,
)

CLASSES = [
    found
    for found in vars(errors).values()
    if inspect.isclass(found) and issubclass(found, BlockprotoError) and found is not BlockprotoError
]
FAMILIES = (ProtocolError, TransferError, StoreError, ConnectionLost)


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_row_that_helps(code):
    row = ERRORS[code]
    assert row.scope in Scope
    assert row.meaning
    assert row.advice
    assert row.meaning != row.advice


def test_codes_and_scopes_are_those_of_the_wire():
    assert [int(scope) for scope in (Scope.BLOCK, Scope.STREAM, Scope.CONNECTION)] == [1, 2, 3]
    connection = {code for code, row in ERRORS.items() if row.scope is Scope.CONNECTION}
    assert connection == {*range(1, 6), *range(7, 11), Code.STORE_FAILED}
    assert {code for code, row in ERRORS.items() if row.scope is Scope.BLOCK} == {26, 27}
    assert {code for code, row in ERRORS.items() if row.retryable} == {3, 8, 26, 27, 29, 33, 34}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_belongs_to_a_family_and_says_something(cls):
    error = cls()
    assert isinstance(error, FAMILIES)
    assert error.code in Code
    assert error.retryable is ERRORS[error.code].retryable
    assert str(error) == ERRORS[error.code].meaning
    assert (error.retry_after_ms, error.blockno, error.current) == (0, None, None)
    assert str(cls("because")) == "because"


def test_blame():
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert not any(
        issubclass(cls, RemoteProtocolError) for cls in CLASSES if issubclass(cls, TransferError | StoreError)
    )


@pytest.mark.parametrize("code", Code)
def test_an_error_comes_back_from_its_code(code):
    error = error_from_code(
        code, "why", retryable=not ERRORS[code].retryable, retry_after_ms=5, blockno=6, current=7
    )
    assert error.code is code
    assert str(error) == "why"
    assert error.retryable is not ERRORS[code].retryable
    assert (error.retry_after_ms, error.blockno, error.current) == (5, 6, 7)
    assert not isinstance(error, LocalProtocolError)


def test_classes_come_back():
    assert isinstance(error_from_code(24, "", retryable=False, current=9), Superseded)
    assert isinstance(error_from_code(30, "", retryable=False), StoreFailed)
    assert isinstance(error_from_code(20, "", retryable=False), NameRefused)
    assert isinstance(error_from_code(32, "", retryable=False), errors.NotPermitted)
    assert isinstance(error_from_code(33, "", retryable=True), Refused)


def test_an_unknown_code_is_a_refusal_with_the_peers_words():
    error = error_from_code(40_000, "not today", retryable=True, retry_after_ms=9)
    assert type(error) is Refused
    assert str(error) == "not today"
    assert error.retryable
    assert error.retry_after_ms == 9


def test_what_is_given_wins_over_the_row():
    error = ConnectionLost("gone", code=Code.GOING_AWAY)
    assert error.code is Code.GOING_AWAY
    assert error.retryable
    assert ConnectionLost.code is Code.TIMEOUT
    assert ConnectionLost("gone", retryable=False).retryable is False
    refused = NameRefused("no", rule="empty", profile="portable")
    assert (refused.rule, refused.profile, refused.code) == ("empty", "portable", Code.NAME_REFUSED)
