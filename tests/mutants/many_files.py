"""Mutants of chapter FIL: frames of many small files, and what becomes of each."""

from __future__ import annotations

from .edits import Mutant

SERVER, CLIENT = ("server",), ("client",)
STREAMS, SESSION = "protocol/streams.py", "protocol/session.py"
FRAME, RECEIVER = "transfer/file_frame.py", "transfer/files_receiver.py"
SENDING = "client_side/upload_files.py"
GIVING = "serving/handlers/served_files.py"

ALL = [
    Mutant("files-are-known-without-being-agreed-on", "FIL-001", SESSION, "if number in FILES_TYPES and not self.files:",
           "if False:", SERVER),
    Mutant("the-payload-of-files-has-any-length", "FIL-002", STREAMS, "if message.payload_length != payload_length:", "if False:",
           SERVER),
    Mutant("records-that-point-nowhere", "FIL-002", "common/file_table.py", "if any(record[5] >= folders", "if any(record[5] > folders",
           SERVER),
    Mutant("the-numbers-of-files-need-not-rise", "FIL-003", STREAMS, "if message.number <= self.number:", "if False:", SERVER),
    Mutant("files-without-their-folder", "FIL-004", FRAME,
           'above = f"{realm.inward(folder).text}/" if folder else realm.above', "above = realm.above", SERVER),
    Mutant("damaged-files-are-stored", "FIL-005", FRAME, "elif digest_of(view) != digest:", "elif False:", SERVER),
    Mutant("one-bad-name-refuses-the-frame", "FIL-005", FRAME, "        except NameRefused as exc:\n            yield exc.with_traceback(None)",
           "        except NameRefused as exc:\n            raise", SERVER),
    Mutant("the-facts-of-files-are-not-kept", "FIL-005", FRAME, "None if mtime_ns == MTIME_UNSAID else mtime_ns,", "None,", SERVER),
    Mutant("another-name-is-not-said", "FIL-006", RECEIVER, "            status = Status.RENAMED",
           "            return Status.STORED, None", SERVER),
    Mutant("the-answer-has-any-length", "FIL-006", RECEIVER,
           "in stored_pages(stored, self._connection.session.head_length_max):", "in [stored]:", SERVER),
    Mutant("statuses-in-the-wrong-order", "FIL-006", RECEIVER, "bytes(statuses), tuple(items), last)",
           "bytes(reversed(statuses)), tuple(items), last)", SERVER),
    Mutant("each-file-is-an-upload-of-its-own", "FIL-008", FRAME,
           "secrets.token_bytes(16) if sourceid == ZERO_ID else sourceid", "secrets.token_bytes(16)", SERVER),
    Mutant("files-leave-the-upload-of-their-sourceid", "FIL-008", "transfer/live_uploads.py",
           "if live is not None and isinstance(outcome, StoredFile):", "if False:", SERVER),
    Mutant("the-last-is-not-said", "FIL-009", RECEIVER, "last = self._last and not self._under_way", "last = False", SERVER),
    Mutant("the-last-before-the-others", "FIL-009", RECEIVER, "last = self._last and not self._under_way", "last = self._last", SERVER),
    Mutant("cancelled-before-the-answers", "FIL-012", RECEIVER,
           "if self._cancelled and not self._under_way and not self._last:", "if self._cancelled and not self._last:", SERVER),
    Mutant("frames-to-a-server-that-knows-none", "FIL-001", "client_side/upload_many.py",
           "if connection.session.files else -1", "if True else -1", CLIENT),
    Mutant("files-under-their-last-component", "FIL-004", "client_side/file_frames.py",
           'folder, _, name = facts.filename.text.rpartition("/")', 'folder, name = "", facts.filename.text.rpartition("/")[2]', CLIENT),
    Mutant("damaged-files-are-not-sent-again", "FIL-005", SENDING, "if self._damaged[one] < SENT_AGAIN_MAX:", "if False:", CLIENT),
    Mutant("damaged-files-are-sent-for-ever", "FIL-005", SENDING, "if self._damaged[one] < SENT_AGAIN_MAX:", "if True:", CLIENT),
    Mutant("answers-to-nothing-are-taken", "FIL-006", STREAMS,
           'left = unanswered.get(message.number, 0) - len(message.statuses)\n        if left < 0:',
           'left = max(0, unanswered.get(message.number, 0) - len(message.statuses))\n        if left < 0:', CLIENT),
    Mutant("any-number-of-frames-waits", "FIL-010", SENDING,
           "stream.unanswered >= FRAMES_EACH or stream.bytes_unanswered >= hello.undurable_max", "False", CLIENT),
    Mutant("the-bytes-that-wait-are-not-counted", "FIL-010", SENDING,
           "stream.unanswered >= FRAMES_EACH or stream.bytes_unanswered >= hello.undurable_max",
           "stream.unanswered >= FRAMES_EACH", CLIENT),
    Mutant("whatever-was-stored-is-success", "FIL-013", SENDING,
           "judge_committed(one.facts, None if one.is_folder else root, committed)", "pass", CLIENT),
    Mutant("wanted-without-being-agreed-on", "FIL-017", SESSION, "if message.wanted and not self.gives_files:", "if False:", SERVER),
    Mutant("what-is-wanted-counts-as-sent", "FIL-018", STREAMS, "        if message.wanted:\n            return\n", "", SERVER),
    Mutant("any-version-is-given", "FIL-020", GIVING, "if version not in (ZERO_ID, entry.version) or", "if", SERVER),
    Mutant("the-last-frame-is-not-said", "FIL-019", GIVING, "last=at == count", "last=False", SERVER),
    Mutant("one-file-that-is-not-there-ends-all", "FIL-020", GIVING,
           "        except BlockprotoError:\n            return True", "        except BlockprotoError:\n            raise", SERVER),
    Mutant("given-under-another-digest", "FIL-019", GIVING, "digest = digest_of(content)\n            check_committed",
           "digest = bytes(32)\n            check_committed", SERVER),
    Mutant("files-behind-goaway", "FIL-016", SENDING,
           "return stream.error is None and self._connection.going_away is None", "return stream.error is None", CLIENT),
]  # fmt: skip
