"""Which modules a command imports: most of a short command's time is imports, and what creeps in is found here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from processes import TIMEOUT_S, Server

PROGRAM = """
import json, sys
before = set(sys.modules)
from blockproto.__main__ import main
words, listed = json.loads(sys.argv[1]), sys.argv[2]
sys.argv[1:] = words
status = main()
with open(listed, "w") as file:
    json.dump(sorted(set(sys.modules) - before), file)
sys.exit(status)
"""

TRIO = {"attr", "attrs", "idna", "outcome", "sniffio", "sortedcontainers", "trio"}
CLIENT = {"blake3", "click", "platformdirs", *TRIO}
"""What a client needs of other people's libraries, with what these need."""

NOT_FOR_CLIENTS = {
    "conformance", "dialects", "identity.certificates", "identity.principals", "observability.logs", "queue", "serving",
    "server", "store.local", "testing",
}  # fmt: skip
NOT_FOR_PUT = {
    "client_side.brief_download", "client_side.download", "client_side.download_many", "client_side.existing_file",
    "store.part_file", "transfer.block_receiver", "transfer.committer", "transfer.engine", "transfer.file_service",
    "transfer.live_upload", "transfer.quota", "transfer.receiver",
}  # fmt: skip
NOT_FOR_GET = {
    "client_side.sources", "client_side.upload", "client_side.upload_decision", "client_side.upload_many",
    "client_side.upload_one", "transfer.send_plan", "transfer.send_stream", "transfer.sender",
}  # fmt: skip


def _imported(tmp_path: Path, *words: str) -> set[str]:
    """Everything that the command imports until its end."""
    listed = tmp_path / "modules.json"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words), str(listed)],
        check=True,
        timeout=TIMEOUT_S,
        capture_output=True,
    )
    return set(json.loads(listed.read_text()))


def _libraries(modules: Iterable[str]) -> set[str]:
    """The libraries among them that are neither Python's nor ours."""
    return {module.partition(".")[0] for module in modules} - {*sys.stdlib_module_names, "blockproto"}


def _ours(modules: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of ``names``, modules and rooms of ours, that were imported."""
    return {
        name for name in names if any(f"{module}.".startswith(f"blockproto.{name}.") for module in modules)
    }


def test_version(tmp_path: Path) -> None:
    found = _imported(tmp_path, "--version")
    assert _libraries(found) == {"click"}
    assert {module for module in found if module.startswith("blockproto")} == {
        "blockproto", "blockproto.__main__", "blockproto.cli", "blockproto.cli.output", "blockproto.cli.stopped",
        "blockproto.cli.streams",
        "blockproto.common", "blockproto.common.names", "blockproto.errors",
    }  # fmt: skip


def test_the_names_that_are_imported_when_they_are_used_are_found_before() -> None:
    """A prompt completes what ``dir`` tells."""
    program = (
        "import sys, blockproto; there = set(blockproto.__all__) <= set(dir(blockproto)); "
        "print(there, '__version__' in dir(blockproto), 'trio' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    assert ran.stdout == "True True False\n"


def test_put_and_get(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.bin").write_bytes(bytes(4096))
    put = _imported(tmp_path, "put", str(tmp_path / "small.bin"), server.address + "/")
    get = _imported(tmp_path, "get", server.address + "/small.bin", str(tmp_path / "copy.bin"))
    assert (tmp_path / "copy.bin").read_bytes() == bytes(4096)
    assert _ours(put, NOT_FOR_GET) >= NOT_FOR_GET - {"client_side.upload_one"}, (
        "what put needs was named well"
    )
    for found, needless in ((put, NOT_FOR_PUT), (get, NOT_FOR_GET)):
        assert _libraries(found) <= CLIENT
        assert _ours(found, NOT_FOR_CLIENTS | needless) == set()
        assert "asyncio" not in found
