"""Fixtures for every test: the command as real processes, and servers that are gone when the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forking import Forker
from hypothesis import HealthCheck, settings
from processes import COMMAND, TIMEOUT_S, Ran, Server

pytest.register_assert_rewrite("blockproto.testing.store_contract")

# The same examples in every run, judged by what they do and never by how long a busy machine takes for them.
settings.register_profile(
    "blockproto", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("blockproto")

# The tests start hundreds of processes: without cached bytecode each would compile the package anew, half a second of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

PROCESS_FIXTURES = {"run", "server", "start_server", "node_server", "our_server", "open_to_all", "lab"}
SLOW_ROOMS = {"crash", "simulation"}
SLOW_MODULES = {
    "test_attacks", "test_blind_clients", "test_blind_mutants", "test_cli_serve", "test_cli_token",
    "test_conformance_client", "test_conformance_identity", "test_conformance_server", "test_dialect_clients",
    "test_distribution", "test_end_to_end", "test_endurance", "test_mutants", "test_operations",
    "test_second_implementation", "test_struct82_processes", "test_terminal", "test_time_and_networks", "test_wireshark",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``slow`` what starts processes or runs for long: `make quick` leaves it out.

    ``long`` comes first, then the rest of what is slow: it waits while other workers compute, and no worker begins a long
    test when the others have ended.
    """
    for item in items:
        slow = SLOW_ROOMS & set(item.path.parts) or item.path.stem in SLOW_MODULES
        if slow or PROCESS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: 2 - bool(item.get_closest_marker("slow")) - bool(item.get_closest_marker("long"))
    )


@pytest.fixture(autouse=True, scope="session")
def _heed_sigint() -> None:
    """Let started processes heed SIGINT: a shell's background job ignores it, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' installation secret out of the user's configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKPROTO_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def forker(_heed_sigint: None, _own_secret: None) -> Iterator[Forker]:
    """A process that has imported everything, from which commands are forked off."""
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture
def run(forker: Forker) -> Callable[..., Ran]:
    """Run the command to its end: ``run("put", path, address)``; ``stdin`` is bytes for its standard input.

    ``forked=False`` starts an interpreter of its own, whose arguments the system shows.
    """

    def run(
        *arguments: object,
        stdin: bytes = b"",
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        forked: bool = True,
    ) -> Ran:
        whole, words = os.environ | (env or {}), list(map(str, arguments))
        if forked and forker.can_run_in(whole):
            status, out, err = forker.run(words, stdin, str(cwd or Path.cwd()), whole, TIMEOUT_S)
        else:
            ran = subprocess.run(
                [*COMMAND, *words], input=stdin, capture_output=True, cwd=cwd, env=whole, timeout=TIMEOUT_S
            )
            status, out, err = ran.returncode, ran.stdout, ran.stderr
        return Ran(status, out.decode(), err.decode())

    return run


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that are stopped when the test ends; the folder defaults to ``tmp_path/"served"``."""
    servers: list[Server] = []

    def start(folder: Path | None = None, *options: str, port: int = 0) -> Server:
        folder = folder or tmp_path / "served"
        folder.mkdir(exist_ok=True)
        servers.append(Server(folder, *options, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    """A running server on an empty folder."""
    return start_server()
