"""The world of one case for clients: files on this machine, a listening port, and runs of the command.

A case starts a job, receives the visits of the client, and says how the job must end. A client that does not come back
by itself, and ends with the exit code for a lost connection, is started again with the same job.
"""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Scope
from ..case import Case
from ..peer import Heard
from ..ready import readable
from ..sample import Sample
from ..timing import Patience
from ..transcript import Transcript
from ..verdicts import Closed, Failed, Hung, Unsupported, Verdict, first_difference, require
from . import command as exits
from .command import Command, Run
from .giving import Download, fetched
from .guarding import answer_tls
from .shelf import Shelf
from .taking import Upload, begun
from .visit import Visit

RUNS_MAX = 5
"""How often the command is started again in one case because it ended as lost."""

_TRANSFERS = (wire.Open, wire.Fetch, wire.Block, wire.Files)

LOOK_S = 0.02
"""Seconds between two looks at whether the command has ended."""

START_S = 10.0
"""Seconds that the command may take before it connects, besides what an answer may take."""


def _reason(answer: dict[str, Any]) -> str:
    """The error that the client has printed."""
    return f" ({answer['error']})" if isinstance(answer.get("error"), str) else ""


class Crashed(Failed):
    """The client ended with an exit code that means nothing, or by a signal."""

    verdict = Verdict.CRASH


class Trial:
    """The world of one run of one case.

    Args:
        command: the client.
        case: what is run.
        patience: how long to wait.
        small_segments: whether everything is sent in segments of one byte.

    Attributes:
        shelf: what the harness's server has.
        transcript, notes: see ``target.Trial``.
        folder: where the files of the case lie.
        answer: what the last run that ended printed.
        repeats: whether blocks and transfers that come while the run ends are what was under way.
        tls: with what every connection is answered; None: without TLS.
        host: what the server is called in the job; empty: by its address.
    """

    def __init__(
        self, command: Command, case: Case, patience: Patience | None = None, small_segments: bool = False
    ) -> None:
        self.shelf = Shelf()
        self.transcript = Transcript()
        self.notes: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="blockproto-conform-"))
        self.answer: dict[str, Any] = {}
        self.repeats = False
        self.tls: ssl.SSLContext | None = None
        self.host = ""
        self.patience = patience or Patience()
        self._command = command
        self._case = case
        self._small = small_segments
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._visits: list[Visit] = []
        self._job: dict[str, Any] = {}
        self._run: Run | None = None
        self._runs = 0
        self._came_back = 0
        self._files = 0

    # ---- files

    def sample(self, filesize: int = 1_000, **facts: Any) -> Sample:
        """A new file: its own name and bytes."""
        self._files += 1
        slug = self._case.name.rpartition("/")[2][:40]
        facts = {
            "filename": f"{slug}-{self._files}.bin",
            "sourceid": bytes(16),
            "seed": random.getrandbits(32),
            **facts,
        }
        return Sample(filesize=filesize, **facts)

    def path(self, sample: Sample, role: str = "source") -> Path:
        """Where the file lies that is sent (``source``), or is to be fetched (``target``)."""
        return self.folder / role / sample.filename.replace("/", "_")

    def write(self, sample: Sample) -> Path:
        """Put its bytes where the client finds them."""
        path = self.path(sample)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample.content)
        return path

    # ---- jobs

    def upload(self, sample: Sample, job: str = "upload", **members: Any) -> None:
        """Give the client the file to send."""
        self.start(job, path=str(self.write(sample)), filename=sample.filename, **members)

    def download(self, sample: Sample, **members: Any) -> None:
        """Offer the file and give the client the job to fetch it."""
        if sample.filename not in self.shelf.files:
            self.shelf.offer(sample)
        target = self.path(sample, "target")
        target.parent.mkdir(exist_ok=True)
        self.start("download", filename=sample.filename, path=str(target), **members)

    def start(self, job: str, **members: Any) -> None:
        """Give the client a job; what it says from now on comes by ``visit``. Without other words, it tries once."""
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        host, port = self._listener.getsockname()
        server = {"job": job, "server": f"{self.host or host}:{port}", "state": str(state), "tries": 1}
        self._job = {**server, **members}
        self._runs = 0
        self._start()

    def _start(self) -> None:
        if self._run is not None:
            self._run.kill()
        self._runs += 1
        self.transcript.add(0, "-", f"the client is started: {self._job}")
        try:
            self._run = self._command.start(self._job, self.folder / "stderr")
        except OSError as error:
            raise Failed("the client cannot be started", got=str(error)) from error

    def again(self) -> None:
        """The same job once more; what it was before has ended."""
        self._start()

    # ---- visits

    def visit(self, *, welcome: bool = True, hello: wire.Hello | None = None) -> Visit:
        """The next connection that the client makes, welcomed unless the case does it itself."""
        sock = self._accept()
        if self.tls is not None:
            sock = answer_tls(sock, self.tls, self.patience.answer_s)
        number = len(self._visits) + 1
        visit = Visit(sock, number, self.transcript, self.patience, self.lenient, self._small)
        self._visits.append(visit)
        if welcome:
            visit.welcome(hello)
        return visit

    def knocks(self, *, comes: bool = True) -> Iterator[socket.socket]:
        """Every connection that the client makes before its run ends, as it is.

        Args:
            comes: whether it must make one at least.
        """
        assert self._run is not None
        if comes:
            yield self._accept()
        deadline = time.monotonic() + START_S * self.patience.slow + self.patience.answer_s
        while time.monotonic() < deadline:
            if readable(self._listener, LOOK_S):
                yield self._listener.accept()[0]
            elif not self._run.running:
                return

    def move_to(self, host: str) -> None:
        """Listen on another address of this machine; before the job is given."""
        self._listener.close()
        self._listener = socket.create_server((host, 0), backlog=16)

    def _accept(self) -> socket.socket:
        deadline = time.monotonic() + START_S * self.patience.slow + self.patience.answer_s
        assert self._run is not None
        while time.monotonic() < deadline:
            if readable(self._listener, LOOK_S):
                return self._listener.accept()[0]
            if not self._run.running:
                self._start_again()
        raise Hung("the client does not connect", got=self._run.words())

    def _start_again(self) -> None:
        """The run has ended where the client had to connect: another one, if it ended as lost."""
        code, answer = self._ended()
        if code != exits.LOST or self._runs >= RUNS_MAX:
            raise Failed(
                f"the client ended with exit code {code}{_reason(answer)} where it had to connect",
                got=f"{answer} {self._run.words() if self._run else ''}",
            )
        self._start()

    def lenient(self, note: str) -> None:
        """Note that something is allowed and not strict: the verdict becomes NON_STRICT."""
        self.notes.append(note)

    # ---- scenes: a job that has come so far

    def uploading(self, filesize: int = BLOCK_LENGTH + 5, **options: Any) -> tuple[Visit, Upload]:
        """An upload of several blocks whose OPEN has come and was not answered; ``hello`` is the one to welcome with."""
        hello = options.pop("hello", None)
        sample = self.sample(filesize)
        self.upload(sample, **options)
        visit = self.visit(hello=hello)
        upload = begun(visit, self.shelf, sample)
        require(not upload.brief, "a file of several blocks came without OPEN")
        return visit, upload

    def downloading(self, filesize: int = BLOCK_LENGTH + 5, **options: Any) -> tuple[Visit, Download]:
        """A download whose FETCH has come and was not answered."""
        hello = options.pop("hello", None)
        sample = self.sample(filesize)
        self.download(sample, **options)
        visit = self.visit(hello=hello)
        return visit, fetched(visit, self.shelf, sample)

    def asking(self) -> tuple[Visit, int]:
        """A list job whose LIST has come and was not answered; returns its stream."""
        self.start("list", folder="")
        visit = self.visit()
        return visit, visit.expect_heard(wire.List).stream

    # ---- ends

    def _ended(self, timeout_s: float = 1.0) -> tuple[int, dict[str, Any]]:
        assert self._run is not None
        code, self.answer = self._run.result(timeout_s)
        self.transcript.add(0, "-", f"the client ended: exit code {code}, {self.answer}")
        if code == exits.UNKNOWN_JOB:
            raise Unsupported("the client does not know this job, or one of its members")
        if code not in exits.MEANT:
            raise Crashed(f"the client crashed with exit code {code}", got=self._run.words())
        return code, self.answer

    def expect_unknown(self) -> None:
        """The client ends with the exit code for a job that it does not know."""
        assert self._run is not None
        code, _ = self._run.result(START_S * self.patience.slow + self.patience.answer_s)
        require(
            code == exits.UNKNOWN_JOB, "another exit code for an unknown job", expected="127", got=str(code)
        )

    def end(self) -> int:
        """Wait until the run ends; returns the exit code. Questions are answered meanwhile, on new connections too.

        A transfer that the client begins now has no reason any more: Failed. But a client may come back by itself after a
        connection that was lost, as often as the job says: then the line breaks again.
        """
        assert self._run is not None
        known = len(self._visits)
        deadline = time.monotonic() + self.patience.answer_s + START_S * self.patience.slow
        while self._run.running and time.monotonic() < deadline:
            visits = [one for one in self._visits if not one.ended]
            waiting = [one for one in visits if one.readable(0)]
            if waiting:
                for visit in waiting:
                    self._serve(visit, late=self._visits.index(visit) >= known)
            elif readable(self._listener, LOOK_S):
                with suppress(Closed):
                    self.visit()
        return self._ended(max(0.1, deadline - time.monotonic()))[0]

    def _serve(self, visit: Visit, *, late: bool) -> None:
        """Answer what comes before the run ends; ``late``: on a connection that no step of the case has asked for."""
        try:
            heard = visit.hear("a question, or the end")
        except Closed:
            return
        if isinstance(heard.message, wire.Error) and heard.message.scope == Scope.CONNECTION:
            raise Failed("the client ends the connection with ERROR", got=str(heard))
        if self.shelf.answer(visit, heard) or not isinstance(heard.message, _TRANSFERS):
            return
        if late and self._visits[self._visits.index(visit) - 1].lost:
            self._break_again(visit, heard)
        elif not self.repeats:
            raise Failed("the client begins another transfer", expected="the end", got=str(heard))

    def _break_again(self, visit: Visit, heard: Heard) -> None:
        """The client has come back by itself, which it may (conformance.md): for this case the line stays broken."""
        self._came_back += 1
        tries = self._job["tries"]
        if self._came_back > tries:
            raise Failed(
                "the client comes back by itself more often than the job says",
                expected=f"tries: {tries}",
                got=f"{self._came_back} times, now with {heard}",
            )
        visit.reset()

    def done(self) -> dict[str, Any]:
        """The job is done: exit code 0; returns what was printed."""
        code = self.end()
        if code != exits.DONE:
            raise Failed(
                f"exit code {code}{_reason(self.answer)} where the job is done",
                expected="0",
                got=f"{self.answer} {self._words()}",
            )
        return self.answer

    def not_done(self, *errors: str) -> dict[str, Any]:
        """The job has failed: any exit code but 0, and one of these errors if any are named."""
        code = self.end()
        require(
            code != exits.DONE,
            "exit code 0 where the job has failed",
            expected="1 or 3",
            got=str(self.answer),
        )
        if errors:
            said = self.answer.get("error")
            require(said in errors, "another error is reported", expected=" or ".join(errors), got=str(said))
        return self.answer

    def refused(self, *errors: str) -> dict[str, Any]:
        """As ``not_done``; the exit code says that the same again does not help."""
        answer = self.not_done(*errors)
        assert self._run is not None
        code = self._run.process.poll()
        require(
            code == exits.REFUSED, "another exit code than 1", expected="1", got=f"{code} {self._words()}"
        )
        return answer

    def said_nowhere(self, secret: str) -> None:
        """The run has ended, and ``secret`` is in nothing that it has printed."""
        said = f"{self.answer} {(self.folder / 'stderr').read_text(encoding='utf-8', errors='replace')}"
        if secret in said:
            raise Failed("a credential was printed", clause="BP1-AUT-011")

    def _words(self) -> str:
        return self._run.words() if self._run is not None else ""

    def stored(self, sample: Sample) -> None:
        """The job is done, and what was printed is about ``sample``."""
        answer = self.done()
        wanted = {"filesize": sample.filesize, "root": sample.root.hex()}
        said = {name: answer.get(name) for name in wanted}
        require(said == wanted, "what is printed is not what was stored", expected=str(wanted), got=str(said))

    def fetched(self, sample: Sample, first: int = 0, length: int | None = None) -> None:
        """The job is done, and the file is there with the bytes of the range."""
        self.done()
        expected = sample.content[first:] if length is None else sample.content[first : first + length]
        path = self.path(sample, "target")
        require(path.is_file(), "the file is not there although the job is done")
        divergence = first_difference("the file", expected, path.read_bytes())
        if divergence is not None:
            raise Failed("the file that was fetched has other bytes", divergence=divergence)

    def absent(self, sample: Sample) -> None:
        """The file must not be there under its name: it was not complete."""
        require(
            not self.path(sample, "target").exists(), "a file that is not complete is there under its name"
        )

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.kill()
        for visit in self._visits:
            visit.close()
        self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)
