"""The optional process that can do to a server what cannot be done over the wire: kill it, start it, look at its files.

The harness writes one JSON object a line to its stdin and reads one a line from its stdout:

    {"do": "hello"}                  {"ok": true, "can": ["kill", "stop", "start", "files", "write", "link"]}
    {"do": "kill"}                   the server's process is gone at once, as with SIGKILL; its data stays
    {"do": "stop"}                   the server is told to end in order; the answer does not wait for its end
    {"do": "start"}                  the server runs again on the same address and data; the answer comes when it listens
    {"do": "files", "name": "a"}     {"ok": true, "files": {"a/b.bin": 14}}: what lies below a name of the served
                                     folder as the machine sees it, with sizes; symbolic links are not followed
    {"do": "write", "name": "a/b", "hex": "00ff"}   other bytes into a file of the served folder, past the server
    {"do": "link", "name": "a/l", "to": "/tmp"}     a symbolic link in the served folder

Each answer has ``ok``; where it is false, ``why`` is a sentence. An adapter says in ``can`` what it does; cases that need
more are UNSUPPORTED.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from typing import Any

from .verdicts import Unsupported


class AdapterError(Exception):
    """The adapter does not do what it says it can; the harness cannot go on with it."""


class Adapter:
    """A running adapter process.

    Args:
        command: as typed in a shell; it is split, not run by one.

    Raises:
        AdapterError: it does not start or does not answer.
    """

    def __init__(self, command: str) -> None:
        self._lock = threading.Lock()
        try:
            self._process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except (OSError, ValueError) as error:
            raise AdapterError(f"the adapter {command!r} does not start: {error}") from error
        self.can = frozenset(self.ask("hello").get("can", ()))

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Say what to do and return the answer.

        Raises:
            Unsupported: the adapter cannot do it.
            AdapterError: it failed.
        """
        if do != "hello" and do not in self.can:
            raise Unsupported(f"needs an adapter that can {do}")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
                answer = json.loads(line)
            except (OSError, ValueError) as error:
                raise AdapterError(f"the adapter gave no answer to {do!r}: {error}") from error
        if not isinstance(answer, dict) or not answer.get("ok"):
            why = answer.get("why", "it did not say why") if isinstance(answer, dict) else "it is no object"
            raise AdapterError(f"the adapter cannot {do}: {why}")
        return answer

    def close(self) -> None:
        """End the adapter by closing its stdin."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
