"""``blockproto conform client``: our own client as a command, clients that are none, and what people see."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import COMMAND, Ran

from blockproto.conformance.client import all_cases
from blockproto.conformance.outcome import EXIT_FAILED, EXIT_PASSED, EXIT_UNREACHABLE, EXIT_USAGE

ADAPTER = [sys.executable, str(Path(__file__).resolve().parents[1].joinpath("client_adapter.py"))]
RUN_S = 120.0
DEAF = """
import json, sys
job = json.loads(sys.argv[-1])
if job["job"] == "no-such-job":
    sys.exit(127)
print(json.dumps({"error": "NOT_PERMITTED"}))
sys.exit(1)
"""
"""A client that knows which jobs there are and does none."""

Conform = Callable[..., Ran]


@pytest.fixture
def conform(tmp_path: Path) -> Conform:
    """Run ``blockproto conform client`` with a memory of its own."""

    def run(*arguments: object) -> Ran:
        ran = subprocess.run(
            [*COMMAND, "conform", "client", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "300"},
            timeout=RUN_S,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.mark.long
def test_our_client_as_a_command_in_segments_of_one_byte(conform: Conform, tmp_path: Path) -> None:
    """A slice; ``test_mutants`` runs every case against our client in processes that start sooner."""
    report = tmp_path / "run.jsonl"
    words = [
        "-k",
        "client/com/committed",
        "-k",
        "client/fet/resume",
        "--jobs",
        2,
        "--slow",
        3,
        "--small-segments",
    ]
    ran = conform(*words, "--json", report, "--", *ADAPTER)
    assert ran.status == EXIT_PASSED, ran.err[-4_000:]
    rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    verdicts = {row["case"]: row["verdict"] for row in rows if "case" in row}
    assert len(verdicts) == 6
    assert set(verdicts.values()) == {"PASS"}


def test_a_failure_can_be_run_again(conform: Conform, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(DEAF, encoding="utf-8")
    name = "bp1/client/com/committed/another-root"
    ran = conform("-k", name, "--", sys.executable, deaf)
    assert ran.status == EXIT_FAILED
    assert f"blockproto conform client -k {name} -- {sys.executable} {deaf}" in ran.err
    assert re.search(r"exit code 1( \(\w+\))? where it had to connect", ran.err)


@pytest.mark.parametrize(
    "words", [["true"], ["false"], ["/no/such/command"]], ids=["true", "false", "absent"]
)
def test_who_does_not_know_what_a_job_is_is_not_examined(conform: Conform, words: list[str]) -> None:
    ran = conform("--", *words)
    assert ran.status == EXIT_UNREACHABLE
    assert "no-such-job" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_job_that_a_client_does_not_know_is_unsupported(conform: Conform, tmp_path: Path) -> None:
    ran = conform("-k", "client/lst", "--", "sh", "-c", "exit 127")
    assert ran.status == EXIT_PASSED
    assert "UNSUPPORTED" in ran.err


def test_list_needs_no_client(conform: Conform) -> None:
    ran = conform("--list")
    assert ran.status == 0
    assert len(ran.out.splitlines()) == len(all_cases()) >= 240


def test_usage(conform: Conform) -> None:
    ran = conform()
    assert ran.status == EXIT_USAGE
    assert "-- ./my-client" in ran.err
    assert conform("-k", "no such case", "--", "true").status == EXIT_USAGE
