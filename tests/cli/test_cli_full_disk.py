"""Many small files to a server whose disk is too small for them: no size of the disk may end the server (BP1-ERR-008)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns.tools import CannotMount, mounted
from peers import bytes_of
from processes import Ran, Server

from blockproto.cli.output import Status

FILES = 2_500
FILESIZE = 8_192


@pytest.mark.root
@pytest.mark.parametrize("room_kib", [17_000, 20_000, 23_500, 26_000])
def test_a_disk_too_small_for_many_files(
    room_kib: int, start_server: Callable[..., Server], run: Callable[..., Ran], tmp_path: Path
) -> None:
    """What is said to be stored is there, the rest is refused, and with room the same command sends the rest."""
    folder, served = tmp_path / "folder", tmp_path / "small"
    content = bytes_of(FILES * FILESIZE)
    for number in range(FILES):
        path = folder / f"{number // 500}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[number * FILESIZE : (number + 1) * FILESIZE])
    served.mkdir()
    try:
        with mounted("-t", "tmpfs", "-o", f"size={room_kib}k", "tmpfs", served):
            server = start_server(served)
            ran = run("put", folder, server.address, "--json")
            assert ran.status == Status.FAILED, ran.err
            assert server.process.poll() is None
            stored = [one["filename"] for one in ran.objects if one.get("outcome") == "sent"]
            assert 0 < len(stored) < FILES, (ran.err[-500:], ran.objects[:2])
            for name in stored:
                assert (served / name).read_bytes() == (tmp_path / name).read_bytes()
            subprocess.run(["mount", "-o", "remount,size=64m", served], check=True, timeout=60)
            assert run("put", folder, server.address).status == Status.DONE
            assert server.stop() == 0
    except CannotMount as exc:
        pytest.skip(str(exc))
