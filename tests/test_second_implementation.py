"""The second implementation (``spec/examples/node``): its own tests, and both programs with each other, as processes.

It needs Node and one package from npm, which is installed beside it once (``npm ci``, no scripts). Where Node, npm or
the registry is missing the tests are skipped, and say so.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import COMMAND, Process, Ran, Server, wait_for_line, wait_until_held

EXAMPLE = Path(__file__).parent.parent / "spec" / "examples" / "node"
NODE = ["node", str(EXAMPLE / "bin" / "blockproto.js")]
NAMES = ["plain.bin", "with space 语音.bin"]
MIB = 1 << 20
TIMEOUT_S = 60.0


@functools.cache
def _what_is_missing() -> str | None:
    """Install the package if it is not there; say why the tests cannot run, or None."""
    if shutil.which("node") is None:
        return "node is not installed (on Debian: apt install nodejs npm)"
    version = subprocess.run(
        ["node", "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    if tuple(int(part) for part in version.lstrip("v").split(".")[:2]) < (18, 15):
        return f"node {version} is older than 18.15"
    wanted = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]["@noble/hashes"]
    there = EXAMPLE / "node_modules" / "@noble" / "hashes" / "package.json"
    if there.exists() and json.loads(there.read_text())["version"] == wanted:
        return None
    if shutil.which("npm") is None:
        return "npm is not installed (on Debian: apt install npm)"
    install = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
    installed = subprocess.run(
        install, cwd=EXAMPLE, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return (
        None
        if installed.returncode == 0
        else f"npm could not install @noble/hashes: {installed.stderr[-300:]}"
    )


@pytest.fixture(autouse=True)
def _needs_node() -> None:
    missing = _what_is_missing()
    if missing is not None:
        pytest.skip(missing)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A file of several blocks and one of less than a block, with names that are easy to get wrong."""
    made = []
    for name, size in zip(NAMES, (3 * MIB + 5, 1000), strict=True):
        path = tmp_path / "from" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.Random(size).randbytes(size))
        made.append(path)
    return made


class NodeServer:
    """``blockproto.js serve`` as a process that is ready."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.process = Process(
            [*NODE, "serve", str(folder), "--port", str(port)], stdout=subprocess.PIPE, text=True
        )
        self.port = int(wait_for_line(self.process, timeout_s=TIMEOUT_S).rpartition(":")[2])
        self.address = f"bp://127.0.0.1:{self.port}/"

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def node_server(tmp_path: Path) -> Iterator[NodeServer]:
    server = NodeServer(tmp_path / "served by node")
    yield server
    server.stop()


@pytest.fixture
def our_server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served by us").mkdir()
    server = Server(tmp_path / "served by us")
    yield server
    server.stop()


def node_arguments(*arguments: str | Path) -> list[str]:
    return [*NODE, *map(str, arguments), "--json"]


def node(state: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    """Run the Node command to its end; the objects it printed."""
    ran = subprocess.run(
        node_arguments(*arguments),
        env={**os.environ, "BLOCKPROTO_NODE_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def run(*arguments: str) -> Ran:
    """Run our command to its end."""
    ran = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.long
def test_its_own_tests_pass_every_vector() -> None:
    ran = subprocess.run(
        ["node", "--test"], cwd=EXAMPLE, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, (
        "\n".join(line for line in ran.stdout.splitlines() if "not ok" in line) + ran.stderr
    )
    assert "# fail 0" in ran.stdout


def test_its_client_with_our_server(our_server: Server, files: list[Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    for path in files:
        (stored,) = node(state, "upload", path, f"{our_server.address}/a 文/")
        assert stored["stored_as"] == f"a 文/{path.name}"
        (again,) = node(state, "upload", path, f"{our_server.address}/a 文/")
        assert again["payload_bytes_sent"] <= MIB, "what was there was sent again"
        assert (our_server.folder / "a 文" / path.name).read_bytes() == path.read_bytes()
        node(state, "download", f"{our_server.address}/a 文/{path.name}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == path.read_bytes()
    listed = node(state, "list", f"{our_server.address}/", "-r")
    assert {one["filename"] for one in listed} == {"a 文"} | {f"a 文/{name}" for name in NAMES}
    node(
        state,
        "download",
        f"{our_server.address}/a 文/{NAMES[0]}",
        tmp_path / "part",
        "--range",
        "1000000-2200000",
    )
    assert (tmp_path / "part").read_bytes() == files[0].read_bytes()[1_000_000:2_200_001]


def test_our_client_with_its_server(node_server: NodeServer, files: list[Path], tmp_path: Path) -> None:
    put = run("put", *map(str, files), f"{node_server.address}a 文/", "--json")
    assert put.status == 0, put.err
    again = run("put", *map(str, files), f"{node_server.address}a 文/", "--json")
    assert [one["payload_bytes_sent"] for one in again.objects] == [0, 0]
    got = run("get", f"{node_server.address}a 文", str(tmp_path / "back"), "--json")
    assert got.status == 0, got.err
    for path in files:
        assert (tmp_path / "served by node" / "a 文" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert run("rm", "-r", f"{node_server.address}a 文").status == 0
    assert run("ls", node_server.address).out == ""


def _big(tmp_path: Path) -> Path:
    path = tmp_path / "big 大.bin"
    path.write_bytes(random.Random(1).randbytes(24 * MIB))
    return path


async def test_its_client_goes_on_after_kill_9(our_server: Server, tmp_path: Path) -> None:
    state, big = tmp_path / "state", _big(tmp_path)
    environment = {**os.environ, "BLOCKPROTO_NODE_STATE": str(state)}
    cut = Process(
        node_arguments("upload", big, f"{our_server.address}/"), env=environment, stdout=subprocess.DEVNULL
    )
    held = await wait_until_held(our_server.address, 2)
    cut.kill()
    cut.wait(TIMEOUT_S)
    (done,) = node(state, "resume")
    assert done["payload_bytes_sent"] <= (24 - held.held_count) * MIB, "what was held was sent again"
    assert (our_server.folder / big.name).read_bytes() == big.read_bytes()


async def test_our_client_goes_on_after_kill_9_of_its_server(tmp_path: Path) -> None:
    served, big = tmp_path / "served", _big(tmp_path)
    server = NodeServer(served)
    put = [*COMMAND, "put", str(big), server.address, "--json"]
    cut = Process(put, stdout=subprocess.PIPE)
    await wait_until_held(server.address, 2)
    server.stop(signal.SIGKILL)
    server = NodeServer(served, port=server.port)
    out, _ = cut.communicate(timeout=TIMEOUT_S)
    server.stop()
    assert cut.returncode == 0
    assert json.loads(out)["stored_as"] == big.name
    assert (served / big.name).read_bytes() == big.read_bytes()


def _conform(*arguments: str) -> None:
    """Hold it against the spec; ``make example`` does it with every case."""
    ran = run("conform", *arguments)
    assert ran.status == 0, ran.out + ran.err


@pytest.mark.long
def test_its_server_conforms_in_a_slice(node_server: NodeServer) -> None:
    address = node_server.address.removeprefix("bp://").rstrip("/")
    _conform("server", address, "--quick", "--jobs", "4", "-k", "bp1/res", "-k", "bp1/dig", "-k", "bp1/com")


@pytest.mark.long
def test_its_client_conforms_in_a_slice() -> None:
    words = ("-k", "bp1/client/dig", "-k", "bp1/client/res", "-k", "bp1/client/com/commit")
    _conform("client", "--quick", "--jobs", "4", *words, "--", "node", str(EXAMPLE / "bin" / "job.js"))
