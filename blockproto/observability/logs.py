"""Logs: what a server does, one record and line each, as text for people or JSON for programs.

Every record has an event; a record of a connection also its number, peer and principal's name; a record of a transfer also
the file id, which stays the same through resumes, takeovers and restarts.

    info      upload begun, resumed, joined, taken over, committed · download · removed · cancelled · expired · let in
    warning   not let in · refused: forbidden, or by this server's own state (full, failed)
    debug     connection · refused · messages of the engine

The formatters escape foreign text in the messages, facts and tracebacks of all records, so that a record is one line, and
each line of a traceback is indented.

A record whose message is a sentence has the name of its event in ``extra``: ``event``, and ``facts`` for values that
programs want separately. Text shows the sentence; JSON the event and the facts, or the sentence as ``text``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..common.names import show_lines, show_name
from ..errors import Code
from ..store import Adopt, Decided, Discard, Finish, Remove, StoredFile, StoreFiles, Upload
from ..wire import PRINCIPAL_KIND, Error, Message, Open, PrincipalItem, Result
from .observer import CURRENT_CONNECTION, ConnectionLabel, Entered, Hook, Load, Observer

log = logging.getLogger("blockproto")

NOT_LET_IN = {Code.UNAUTHENTICATED, Code.CREDENTIAL_EXPIRED}
_NO_NAME = "message"
"""The event of a record of other code."""
LOUD = {Code.FORBIDDEN, Code.STORE_FULL, Code.STORE_FAILED, Code.BUSY}


def tell(level: int, event: str, connection_label: ConnectionLabel | None = None, **facts: object) -> None:
    """Write a record: ``event``, its connection, and ``facts``, in which foreign text has to be escaped already."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={"facts": facts, "connection_label": connection_label})


def _connection_of(record: logging.LogRecord) -> dict[str, Any]:
    """The facts of the connection for which a record was written."""
    connection_label: ConnectionLabel | None = (
        getattr(record, "connection_label", None) or CURRENT_CONNECTION.get()
    )
    facts: dict[str, Any] = {}
    if connection_label is not None:
        facts = {"connection": connection_label.number, "peer": connection_label.peer}
        if connection_label.principal:
            facts["principal"] = show_name(connection_label.principal)
    return facts


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, facts as NAME=VALUE."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        message = record.getMessage()
        facts = _connection_of(record)
        if facts and facts["peer"] in message:
            del facts["peer"]
        if not hasattr(record, "event"):
            facts |= getattr(record, "facts", {})
        said = " ".join(f"{name}={_plain(value)}" for name, value in facts.items())
        line = f"{self.formatTime(record)} {record.levelname} {show_name(message)}"
        text = f"{line}  {said}" if said else line
        return "\n".join((text, *map(show_lines, _below(self, record))))


def _below(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """What follows a record's line: its traceback and stack."""
    found = [formatter.formatException(record.exc_info)] if record.exc_info else []
    return [*found, formatter.formatStack(record.stack_info)] if record.stack_info else found


def _plain(value: object) -> str:
    text = show_name(str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or "=" in text or not text else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, event, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{at}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        message = record.getMessage()
        facts: dict[str, Any] | None = getattr(record, "facts", None)
        line["event"] = getattr(record, "event", show_name(message) if facts is not None else _NO_NAME)
        if facts is None:
            facts = {"text": message}
        said = (_connection_of(record) | facts).items()
        line |= {name: show_name(value) if isinstance(value, str) else value for name, value in said}
        if below := _below(self, record):
            line["traceback"] = "\n".join(map(show_lines, below))
        return json.dumps(line, default=lambda value: show_name(str(value)))


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


class Log(Observer):
    """An observer that writes records."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._hook = _Messages(self._names)

    def serving(self, load: Callable[[], Load]) -> None:
        """See Observer."""

    def hooks(self) -> tuple[Hook, ...]:
        """See Observer."""
        return (self._hook,)

    def came(self, kind: str) -> None:
        """See Observer."""
        tell(logging.DEBUG, "connection", kind=kind)

    def entered(self, upload: Upload, how: Entered) -> None:
        """See Observer."""
        facts = upload.facts
        event, name = f"upload {how}", facts.filename.text
        self._tell_of(event, upload.key.principal, upload.file_id, name, facts.filesize)

    def committed(self, decided: Sequence[Decided], elapsed_s: float) -> None:
        """See Observer."""
        for work, outcome in decided:
            if isinstance(work, Finish) and isinstance(outcome, StoredFile):
                self._tell_of_file(work.upload.key.principal, outcome)
            elif isinstance(work, StoreFiles) and isinstance(outcome, tuple):
                for one in outcome if log.isEnabledFor(logging.INFO) else ():
                    if isinstance(one, StoredFile):
                        self._tell_of_file(work.principal, one)
            elif isinstance(work, Adopt) and isinstance(outcome, StoredFile):
                event, name = _what_became(outcome), show_name(outcome.stored_as)
                tell(logging.INFO, event, file=outcome.file_id.hex(), name=name)
            elif isinstance(work, Remove) and outcome is None:
                name = "" if work.filename is None else work.filename.text
                tell(logging.INFO, "removed", file=(work.file_id or b"").hex(), name=show_name(name))
            elif isinstance(work, Discard) and outcome is None:
                event = "upload cancelled" if work.expired_ms is None else "upload expired"
                tell(logging.INFO, event, sourceid=work.key.sourceid.hex())

    def _tell_of_file(self, principal: bytes, stored: StoredFile) -> None:
        event, name = _what_became(stored), stored.stored_as
        self._tell_of(event, principal, stored.file_id, name, stored.filesize)

    def _tell_of(self, event: str, principal: bytes, file_id: bytes, name: str, filesize: int | None) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        known = self._names.get(principal)
        whose = {"principal": show_name(known)} if known else {}
        tell(
            logging.INFO,
            event,
            None,
            file=file_id.hex(),
            name=show_name(name),
            filesize=filesize,
            **whose,
        )


class _Messages(Hook):
    """Writes a record for what is said of a file's beginning, of who somebody is, and of refusals.

    Args:
        names: of principals that came in, by their 16 bytes; what is learned goes there.
    """

    def __init__(self, names: dict[bytes, str]) -> None:
        self._names = names

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        """See Hook."""
        if isinstance(message, Error):
            self._refused(connection_label, stream, message)
        elif isinstance(message, Open):
            file_id = (message.file_id or b"").hex()
            tell(logging.INFO, "download", connection_label, file=file_id, name=show_name(message.filename))
        elif isinstance(message, Result) and message.kind == PRINCIPAL_KIND:
            for item in message.items:
                if isinstance(item, PrincipalItem) and connection_label is not None:
                    connection_label.principal = self._names[item.principal] = item.name
            tell(logging.INFO, "let in", connection_label)

    def _refused(self, connection_label: ConnectionLabel | None, stream: int, error: Error) -> None:
        code = Code(error.code)
        if code in NOT_LET_IN:
            level, event = logging.WARNING, "not let in"
        else:
            level, event = (logging.WARNING if code in LOUD else logging.DEBUG), "refused"
        tell(level, event, connection_label, stream=stream, code=code.name, text=show_name(error.text))


def _what_became(stored: StoredFile) -> str:
    """The event of an upload that has ended well."""
    if stored.left:
        return "upload left what was there"
    return "upload was there already" if stored.there else "upload committed"
