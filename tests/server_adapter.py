"""An adapter for ``blockproto conform server``: starts, stops and kills ``blockproto serve``, and looks at its folder.

    python tests/server_adapter.py FOLDER PORT [OPTION OF serve…]

Also an example of how short such a program is: one JSON object a line on stdin, one a line on stdout. The protocol is
described in spec/conformance.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

END_S = 60.0


class Adapter:
    """A server in a process of its own, and its folder.

    Args:
        folder: what it serves.
        port: where it listens, the same after each start.
        options: more arguments of ``serve``.
    """

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.folder = folder
        self.port = port
        self.options = options
        self.process: subprocess.Popen[str] | None = None
        self.stopping = False

    def hello(self) -> dict[str, Any]:
        """Start the server, and say what can be done."""
        self.start()
        return {"can": ["kill", "stop", "start", "files", "write", "link"]}

    def start(self) -> dict[str, Any]:
        """Start the server unless it runs; the answer comes when it listens."""
        if self.process is not None:
            if self.process.poll() is None and not self.stopping:
                return {}
            self.process.wait(END_S)
        self.stopping = False
        command = [
            sys.executable,
            "-m",
            "blockproto",
            "serve",
            str(self.folder),
            "--listen",
            f"127.0.0.1:{self.port}",
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the server did not start: {line!r}")
        return {}

    def stop(self) -> dict[str, Any]:
        """Tell the server to end in order; does not wait for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.stopping = True
        return {}

    def kill(self) -> dict[str, Any]:
        """End the server at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(END_S)
        return {}

    def files(self, name: str) -> dict[str, Any]:
        """What lies below a name, with sizes."""
        found = {}
        for above, _, names in os.walk(self.folder / name):
            for one in names:
                path = Path(above, one)
                found[str(path.relative_to(self.folder))] = path.lstat().st_size
        return {"files": found}

    def write(self, name: str, hex: str) -> dict[str, Any]:
        """Other bytes into a file, past the server."""
        (self.folder / name).write_bytes(bytes.fromhex(hex))
        return {}

    def link(self, name: str, to: str) -> dict[str, Any]:
        """A symbolic link in the served folder."""
        (self.folder / name).symlink_to(to)
        return {}

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one line."""
        question = json.loads(line)
        try:
            return {"ok": True, **getattr(self, question.pop("do"))(**question)}
        except (OSError, RuntimeError, TypeError, AttributeError) as error:
            return {"ok": False, "why": str(error)}


def main(folder: str, port: str, *options: str) -> None:
    """Answer until stdin ends; then the server ends too."""
    adapter = Adapter(Path(folder), int(port), *options)
    try:
        for line in sys.stdin:
            print(json.dumps(adapter.answer(line)), flush=True)
    finally:
        if adapter.process is not None:
            adapter.kill()
            assert adapter.process.stdout is not None
            adapter.process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
