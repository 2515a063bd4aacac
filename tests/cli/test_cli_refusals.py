"""What concerns the whole run is said once; what concerns one file has its object in ``--json``; addresses are explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hostile_server import CLOSE, Asked, HostileServer, frame
from processes import Ran, Server

from blockproto.cli import main
from blockproto.cli.address import AddressError, parse_address
from blockproto.cli.output import RECEIPT_FIELDS, Status
from blockproto.errors import Code
from blockproto.identity.tokens import new_token
from blockproto.wire import EntryKind, Error, FileItem, List, Remove, Result

Run = Callable[..., Ran]
COUNT = 300


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for no in range(COUNT):
        (folder / str(no)).write_bytes(b"x")
    return folder


def refusing(code: Code, current: int | None = None) -> Callable[[Asked], Iterable[object]]:
    def answer(asked: Asked) -> Iterable[object]:
        if isinstance(asked.message, List):
            yield frame(asked.stream, Result(asked.message.kind))
        else:
            yield frame(asked.stream, Error(int(code), 2, False, "no", 0, None, current))

    return answer


@pytest.mark.parametrize(
    ("code", "current"),
    [
        (Code.UNAUTHENTICATED, None),
        (Code.CREDENTIAL_EXPIRED, None),
        (Code.FORBIDDEN, None),
        (Code.STORE_FULL, None),
        (Code.QUOTA, 0),
    ],
)
def test_a_refusal_that_concerns_all_files_is_one_sentence(
    code: Code, current: int | None, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer(refusing(code, current)) as server:
        assert main(["put", str(many), f"{server.address}/", "--retry-for", "0"]) == Status.FAILED
        assert server.address in capsys.readouterr().err.splitlines()[0]
    with HostileServer(refusing(code, current)) as server:
        main(["put", str(many), f"{server.address}/", "--retry-for", "0"])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_refusal_of_one_file_does_not_end_the_others(
    many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer(refusing(Code.NAME_REFUSED)) as server:
        assert main(["put", str(many), f"{server.address}/", "--json", "--retry-for", "0"]) == Status.FAILED
    said = capsys.readouterr()
    assert said.err.count("\n") > COUNT
    assert said.out.count('"outcome": "failed"') >= COUNT


@pytest.mark.clause("BP1-COM-031")
def test_what_a_hook_refuses_is_one_sentence_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small files and bigger ones: exit code 1, the server's words, and nothing is removed there."""
    for name, size in (("small", 10), ("big", 3 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
        with HostileServer(refusing(Code.HOOK_REFUSED)) as server:
            assert main(["put", str(tmp_path / name), f"{server.address}/"]) == Status.FAILED
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{name}: no; ask whoever runs the server" in said
        assert not [asked for asked in server.heard if isinstance(asked.message, Remove)]


@pytest.mark.parametrize("command", ["put", "get", "ls"])
def test_a_refused_token_is_one_sentence(command: str, server: Server, many: Path, run: Run) -> None:
    words = {
        "put": [many, server.address + "/"],
        "get": [server.address, many / "to"],
        "ls": [server.address],
    }
    ran = run(command, *words[command], env={"BLOCKPROTO_TOKEN": new_token()})
    assert ran.status == Status.FAILED
    assert ran.err.count("\n") == 1, ran.err


def test_json_has_an_object_for_a_file_that_failed(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "good").write_bytes(b"1")
    ran = run("put", tmp_path / "good", tmp_path / "missing", server.address + "/", "--json")
    assert ran.status == Status.FAILED
    good, bad = sorted(ran.objects, key=lambda one: one["outcome"] == "failed")
    assert bad["outcome"] == "failed"
    assert set(RECEIPT_FIELDS) <= set(bad)
    assert "No such file" in bad["error"]
    assert good["stored_as"] == "good"
    got = run("get", f"{server.address}/good", f"{server.address}/nothing", tmp_path / "to/", "--json")
    assert got.status == Status.FAILED
    [bad] = [one for one in got.objects if one["outcome"] == "failed"]
    assert (bad["filename"], bad["code"]) == ("nothing", "UNKNOWN_FILE")


@pytest.mark.parametrize("words", [["ls", "{}"], ["stat", "{}/a"], ["rm", "{}/a"], ["uploads", "{}"]])
def test_questions_say_that_they_try_again(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.connections.RETRY_FOR_S", 0.2)
    monkeypatch.setattr("blockproto.cli.interruptions.TELL_WAIT_S", 0.0)
    with HostileServer(lambda asked: [CLOSE]) as server:
        assert main([word.format(server.address) for word in words]) == Status.UNREACHABLE
    assert "trying again in" in capsys.readouterr().err


def test_a_zone_is_understood_as_a_url_writes_it() -> None:
    assert parse_address("bp://[fe80::1%25eth0]/").host == "fe80::1%eth0"
    assert parse_address("bp://[fe80::1%eth0]:1/").host == "fe80::1%eth0"
    assert parse_address("bp://[fe80::1%25]/").host == "fe80::1%25"
    for text in ("bp://[fe80::1]/", "bp://[fe80::1%]/"):
        with pytest.raises(AddressError, match="%eth0"):
            parse_address(text)


def test_an_address_that_is_missing_is_asked_for(tmp_path: Path, run: Run) -> None:
    for words in (["get", "photos"], ["get"], ["put", tmp_path / "x"], ["ls"]):
        ran = run(*words)
        assert ran.status == Status.USAGE
        assert "bp://" in ran.err


def test_the_advice_fits_a_file_in_the_place_of_a_folder(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (server.folder / "film.mp4").write_bytes(b"2")
    ran = run("put", tmp_path / "x", f"{server.address}/film.mp4/")
    assert ran.status == Status.FAILED
    assert "rights" not in ran.err
    assert "folder" in ran.err
    missing = run("ls", "bps://localhost:1/", "--ca", tmp_path / "no.pem")
    assert missing.status == Status.FAILED
    assert "no.pem" in missing.err
    assert "rights" not in missing.err


def _objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


_ID = "5" * 32


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["put", "{many}", "{}/"], COUNT),
        (["get", "{}/a", "{}/b", "{to}/"], 2),
        (["rm", "{}/a", "{}/b", "{}/c"], 3),
        (["cancel", _ID, "6" * 32, "{}"], 2),
        (["get", "--upload", _ID, "{}", "{to}/x"], 1),
        (["ls", "{}"], 0),
        (["stat", "{}/a"], 0),
        (["uploads", "{}"], 0),
    ],
)
@pytest.mark.parametrize("how", ["a token that is refused", "a right that is missing", "nobody there"])
def test_what_ends_the_run_is_one_sentence_and_an_object_for_each(
    words: list[str], count: int, how: str, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(asked: Asked) -> Iterable[object]:
        code = Code.FORBIDDEN if "right" in how else Code.UNAUTHENTICATED
        yield frame(asked.stream, Error(int(code), 2, False, "no", 0, None, None))

    with HostileServer(answer) as server:
        address = "bp://127.0.0.1:1" if how == "nobody there" else server.address
        said = [word.format(address, many=many, to=tmp_path / "to") for word in words]
        expected = Status.UNREACHABLE if how == "nobody there" else Status.FAILED
        assert main([*said, "--json"]) == expected
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    failed = _objects(captured.out)
    assert len(failed) == count
    key = "sourceid" if words[0] == "cancel" else "filename"
    assert len({one[key] for one in failed}) == count
    for one in failed:
        assert (one["outcome"], bool(one["error"]), bool(one["code"])) == ("failed", True, True)


def test_one_file_that_cannot_be_removed_has_its_object(server: Server, run: Run) -> None:
    (server.folder / "a").write_bytes(b"1")
    ran = run("rm", f"{server.address}/nothing", f"{server.address}/a", "--json")
    assert ran.status == Status.FAILED
    bad, good = ran.objects
    assert (bad["filename"], bad["removed"], bad["outcome"], bad["code"]) == (
        "nothing", False, "failed", "UNKNOWN_FILE",
    )  # fmt: skip
    assert good == {"filename": "a", "removed": True}
    ran = run("cancel", _ID, server.address, "--json")
    assert ran.status == Status.FAILED
    [bad] = ran.objects
    assert (bad["sourceid"], bad["cancelled"], bad["outcome"]) == (_ID, False, "failed")


def test_files_that_got_no_answer_have_their_objects(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection ends after some answers, for good."""
    answered = 0

    def answer(asked: Asked) -> Iterable[object]:
        nonlocal answered
        answered += 1
        if isinstance(asked.message, List) and answered < 3:
            yield frame(asked.stream, Result(asked.message.kind))
        else:
            yield CLOSE

    with HostileServer(answer) as server:
        words = ["put", str(many), f"{server.address}/", "--json", "--retry-for", "0"]
        assert main(words) == Status.UNREACHABLE
    said = capsys.readouterr()
    names = {one["filename"] for one in _objects(said.out) if one["outcome"] == "failed"}
    assert names == {f"many/{no}" for no in range(COUNT)}
    assert said.err.count("\n") == 1


def test_a_queue_says_once_what_concerns_all(many: Path, tmp_path: Path, server: Server, run: Run) -> None:
    file = tmp_path / "queue"
    paths = [many / str(no) for no in range(20)]
    assert run("queue", "add", *paths, f"{server.address}/", "--queue", file).status == Status.DONE
    token = {"BLOCKPROTO_TOKEN": new_token()}
    only = ("--server", server.address, "--until-empty", "--json")
    ran = run("queue", "run", "--queue", file, *only, env=token)
    assert ran.status == Status.FAILED
    assert ran.err.count("\n") == 2, ran.err
    assert "19 other transfers failed for the same reason" in ran.err
    failed = [one for one in ran.objects if one["state"] == "failed"]
    assert {one["name"] for one in failed} == {str(no) for no in range(20)}
    assert all(one["error"] for one in failed)


@pytest.mark.parametrize("folder", [True, False])
def test_what_stands_in_the_way_is_asked_and_not_read_from_the_refusal(
    folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server refuses in words of its own; whether a file stands above the name is what its LIST says."""
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("1", "2"):
        (tmp_path / "a/b" / name).write_text(name)
    asked_for: list[str] = []

    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if isinstance(message, List) and message.exact:
            asked_for.append(message.name)
            kind = EntryKind.FOLDER if folder or message.name == "a" else EntryKind.FILE
            item = FileItem(kind, 0, 0, 0o644, bytes(16), bytes(16), message.name, "")
            yield frame(asked.stream, Result(message.kind, (item,)))
        elif isinstance(message, List):
            yield frame(asked.stream, Result(message.kind))
        else:
            yield frame(asked.stream, Error(int(Code.NOT_PERMITTED), 2, False, "no folder is in the way"))

    with HostileServer(answer) as server:
        assert main(["put", str(tmp_path / "a"), f"{server.address}/", "--retry-for", "0"]) == Status.FAILED
    said = capsys.readouterr().err
    assert ("something there has the name of this folder" in said) is not folder
    assert said.count("no folder is in the way") == (4 if folder else 2), said
    assert sorted(name for name in asked_for if name in ("a", "a/b")) == ["a", "a/b"], (
        "each is asked for once"
    )
