"""What the command says: sentences, exit codes, sizes, and nothing a terminal would obey."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import click
import pytest

from blockproto.cli.output import (
    RECEIPT_FIELDS,
    Status,
    about,
    explain,
    fail,
    leaves_of,
    print_json,
    print_receipt,
    show_count,
    show_round,
    show_size,
    show_time,
    status_of,
)
from blockproto.cli.streams import NoReader
from blockproto.errors import (
    BadCheck,
    BlockprotoError,
    ConnectionLost,
    FileExists,
    GoingAway,
    NotBlockproto,
    NotEmpty,
    Refused,
    StoreFull,
    UnknownFile,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConnectionLost("refused"), Status.UNREACHABLE),
        (GoingAway(), Status.UNREACHABLE),
        (BadCheck(), Status.UNREACHABLE),
        (NotBlockproto(), Status.FAILED),
        (FileExists(), Status.FAILED),
        (OSError(errno.ENOENT, "No such file or directory", "x"), Status.FAILED),
    ],
)
def test_exit_codes(error: BaseException, status: Status) -> None:
    assert status_of(error) == status


def test_an_error_says_which_input_what_and_what_to_do() -> None:
    assert explain(FileExists(), "a.txt") == (
        "a.txt: the name is taken; choose another name, or give --if-exists keep or replace"
    )
    assert explain(Refused("a folder is there"), "a", "ask") == "a: a folder is there; ask"
    assert explain(Refused("a.txt: gone"), "a.txt", "ask") == "a.txt: gone; ask"
    assert explain(UnknownFile(), "a").endswith("; `blockproto ls` shows what is there")
    assert explain(NotEmpty(), "a").endswith("; add -r to remove it with what is in it")
    assert explain(StoreFull("no room"), "a") == "a: no room; make room, then resume"
    assert explain(Refused("no"), "a", "ask") == "a: no; ask"
    assert explain(ConnectionLost("refused"), "bp://h:1").startswith("bp://h:1: refused; ")
    assert "run the same command again" in explain(ConnectionLost("refused"))


def test_an_error_of_this_machine_names_its_file() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "x y")
    assert explain(error) == "x y: No such file or directory"
    assert explain(OSError("odd")) == "odd"


@pytest.mark.clause("BP1-ERR-003")
def test_foreign_words_cannot_move_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fail(Refused("\x1b[2J\u202egnp"), "a\nb")
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("\n") == 1


def test_json_is_one_line_with_exactly_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    receipt = SimpleNamespace(**dict.fromkeys(RECEIPT_FIELDS, 1), more="never")
    receipt.filename = "a\n中\udcff"
    print_receipt(receipt)
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert text.isascii()
    assert list(json.loads(text)) == list(RECEIPT_FIELDS)
    assert json.loads(text)["filename"] == "a\n中\\xff"
    print_json({"a": None})
    assert capsys.readouterr().out == '{"a": null}\n'


@pytest.mark.parametrize("name", ["\udc80x\udcff", "\ud800", "😀\udcff", "plain 😀"])
def test_json_has_no_lone_surrogates_anywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Strict readers refuse them; a pair, of what is not in the first plane, is none."""
    print_json({"name": name, "more": [name, {"deep": (name,)}]})
    said = json.loads(capsys.readouterr().out)
    said["name"].encode()
    assert said["more"] == [said["name"], {"deep": [said["name"]]}]
    assert said["name"] == name.replace("\udc80", "\\x80").replace("\udcff", "\\xff").replace(
        "\ud800", "\\ud800"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert show_size(count) == text


def test_counts() -> None:
    assert [show_count(count, "file") for count in (0, 1, 20000)] == ["0 files", "1 file", "20,000 files"]


def test_times_before_1970_and_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show_time(-1) == show_time(-(10**9))
    assert len(show_time(0)) == 19


def test_errors_of_a_whole_command_become_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit) as ended, about("bp://h:1"):
        raise BaseExceptionGroup("", [Refused("no"), ExceptionGroup("", [ConnectionLost("gone")])])
    assert ended.value.exit_code == Status.UNREACHABLE
    assert capsys.readouterr().err.count("bp://h:1: ") == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), NoReader(BrokenPipeError())])
def test_bugs_and_interrupts_pass_through(error: BaseException) -> None:
    with pytest.raises(BaseExceptionGroup), about("x"):
        raise BaseExceptionGroup("", [error, Refused("no")])
    with pytest.raises(type(error)), about("x"):
        raise error


def test_leaves_of() -> None:
    first, second = BlockprotoError(), ValueError()
    assert leaves_of(BaseExceptionGroup("", [first, BaseExceptionGroup("", [second])])) == [first, second]
    assert leaves_of(first) == [first]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (10**6, "1 MB"),
        (15 * 10**8, "1500 MB"),
        (2000, "2 kB"),
        (1 << 30, "1.0 GiB"),
        (0, "0 B"),
        (999, "999 B"),
    ],
)
def test_a_round_number_of_bytes_is_shown_as_it_was_typed(count: int, text: str) -> None:
    assert show_round(count) == text
