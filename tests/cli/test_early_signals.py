"""Signals that come while a server is still starting."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from processes import TIMEOUT_S, Process, wait_for_line

HUP_AT_EVERY_IMPORT = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
from blockproto.__main__ import main

class Hup(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, Hup())
sys.exit(main())
"""


def test_sighup_ends_no_server_that_is_starting(tmp_path: Path) -> None:
    """It comes at every import from the first line of the program on, until the server listens and after."""
    command = [sys.executable, "-c", HUP_AT_EVERY_IMPORT, "serve", str(tmp_path), "--listen", "127.0.0.1:0"]
    with Process(command, stdout=subprocess.PIPE, text=True) as process:
        assert wait_for_line(process, TIMEOUT_S).startswith("listening on ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_sighup_still_ends_what_is_no_server() -> None:
    command = [sys.executable, "-c", HUP_AT_EVERY_IMPORT, "ls", "bp://127.0.0.1:1"]
    ran = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    assert ran.returncode == -signal.SIGHUP
