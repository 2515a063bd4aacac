"""Mutants of transfers and requests: blocks, resume, digests, commit, fetch, list, errors, end."""

from __future__ import annotations

from .edits import Mutant

SERVER, CLIENT = ("server",), ("client",)
BRIEF = "transfer/brief_receiver.py"
BLOCKS, PREFIX, FETCHING = (
    "transfer/block_receiver.py",
    "transfer/block_prefix.py",
    "transfer/fetch_receiver.py",
)
RECEIVING, UPLOAD, SENDING = "transfer/receiver.py", "transfer/live_upload.py", "transfer/sender.py"
PLAN = "transfer/send_plan.py"
UPLOADS = "transfer/live_uploads.py"
SERVICE = "transfer/file_service.py"
FETCH, SOURCE = "serving/handlers/fetch.py", "serving/handlers/stored_source.py"
LANE, LINK, WIRE, REQUESTS = (
    "transfer/send_stream.py",
    "connection/connection.py",
    "wire.py",
    "serving/handlers/requests.py",
)
SESSION, STREAMS, RULES = "protocol/session.py", "protocol/streams.py", "store/rules.py"
UPLOAD_STATE = "store/upload_state.py"
CHOOSING = "store/local/name_choice.py"
NAME_RULES = "store/name_rules.py"

BLK = [
    Mutant("blocks-end-a-byte-early", "BLK-001", "common/blocks.py",
           "min((blockno + 1) * BLOCK_LENGTH, end) - start)", "min((blockno + 1) * BLOCK_LENGTH - 1, end) - start)"),
    Mutant("blocknum-need-not-fit", "BLK-002", WIRE, "elif blocknum != -(-filesize // BLOCK_LENGTH):", "elif False:"),
    Mutant("one-size-unknown-alone", "BLK-003", WIRE, "if filesize is not blocknum:", "if False:"),
    Mutant("a-second-short-block", "BLK-003", UPLOAD_STATE, "if shape.short_end is not None and (", "if False and (", SERVER),
    Mutant("a-pipe-has-the-size-of-its-first-block", "BLK-003", "client_side/upload.py",
           "blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),",
           "blocknum=blocknum_of(facts.filesize or 1 << 20),", CLIENT,
           (("client_side/upload.py", "filesize=facts.filesize,", "filesize=facts.filesize if facts.filesize is not None else 1 << 20,"),)),
    Mutant("an-empty-file-has-a-block", "BLK-004", "common/blocks.py", "return -(-filesize // BLOCK_LENGTH)",
           "return -(-filesize // BLOCK_LENGTH) or 1"),
    Mutant("pieces-count-from-their-block", "BLK-005", LANE, "Piece(begin + at, digest=end)", "Piece(at, digest=end)", CLIENT,
           ((STREAMS, "if position != self.position or end < 0:", "if False:"),)),
    Mutant("pieces-anywhere", "BLK-006", STREAMS, "if position != self.position or end < 0:", "if end < 0:", ("server", "client"),
           ((BLOCKS, "if position != self.next:", "if False:"),)),
    Mutant("no-block-while-one-is-unfinished", "BLK-007", RECEIVING,
           "        blocks.abandon()\n        if message.filesize == 0:",
           "        if blocks.block is not None:\n            raise BadFacts('unfinished')\n        if message.filesize == 0:"),
    Mutant("positions-outside-their-block", "BLK-008", WIRE,
           "if not blockno * BLOCK_LENGTH <= self.position <= self.end:", "if False:", ("server", "client"),
           ((STREAMS, "if position + payload_length > end:", "if False:"), (BLOCKS, "if after > limit:", "if False:"))),
    Mutant("end-before-the-end", "BLK-009", BLOCKS,
           "if digest is not None and self.end is not None and after != self.end:", "if False:", ("server", "client"),
           ((UPLOAD_STATE, "if length == 0 or length != work.length:", "if False:"),)),
    Mutant("digest-of-what-is-sent-now", "BLK-009", LANE, "end = digest if at + length == len(block) else None",
           "end = digest_of(block[at:]) if at + length == len(block) else None", ("server", "client"),
           (("transfer/served_send_stream.py", "hasher.update(view)\n                    at += len(view)", "at += len(view)"),)),
    Mutant("damaged-blocks-are-taken", "BLK-011", BLOCKS, "if block.dropped or block.hasher.digest() != digest:", "if block.dropped:"),
    Mutant("held-blocks-with-other-bytes", "BLK-012", BLOCKS, "Ended.KNOWN if digest == block.known else Ended.DIFFERS", "Ended.KNOWN"),
    Mutant("held-blocks-are-not-acknowledged-again", "BLK-012", RECEIVING,
           "if ended is Ended.KNOWN and block.blockno in upload.held:\n            self.say_durable", "if False:\n            self.say_durable"),
    Mutant("brief-files-of-two-blocks", "BLK-014", BRIEF, 'raise BadFacts("a file without OPEN is one block")', "return", SERVER),
    Mutant("brief-files-without-commit", "BLK-014", BRIEF, "if message.digest is not None and not message.commit:", "if False:", SERVER),
    Mutant("brief-files-never-say-commit", "BLK-014 COM-002", "client_side/upload_brief.py", "commit=whole,", "commit=False,", CLIENT),
    Mutant("tlvs-of-brief-files-are-not-read", "BLK-015", RECEIVING, "mtime_ns=message.mtime_ns,", "mtime_ns=None,", SERVER),
    Mutant("folders-with-bytes", "BLK-016", SERVICE,
           "if facts.filetype == FOLDER_FILETYPE and facts.filesize != 0:", "if False:", SERVER),
    Mutant("folders-with-bytes-in-downloads", "BLK-016", FETCHING,
           'while it was being fetched")\n        if message.filetype == FOLDER_FILETYPE and message.filesize != 0:',
           'while it was being fetched")\n        if False:', CLIENT),
    Mutant("the-commit-flag-with-open", "BLK-017", STREAMS,
           "return message.TYPE | 0x100 if message.commit else message.TYPE", "return message.TYPE"),
    Mutant("the-commit-flag-without-end", "BLK-017", WIRE,
           'outside block {blockno}")\n        if self.commit and self.digest is None:', 'outside block {blockno}")\n        if False:'),
    Mutant("a-brief-file-leaves-the-upload-of-its-sourceid", "BLK-019", SERVICE,
           "if live is not None:\n            live.committed_as", "if False:\n            live.committed_as", SERVER),
    Mutant("blocks-need-not-agree-with-open", "BLK-020", RECEIVING, "if said_of(message) != self._said:", "if False:"),
    Mutant("blocks-name-no-filetype", "BLK-020", LANE, "filetype=facts.filetype,", 'filetype="",', CLIENT),
    Mutant("any-filetype", "BLK-021", WIRE,
           "if not (filetype.isascii() and filetype.isprintable()) or len(filetype) > FILETYPE_LENGTH_MAX:", "if False:"),
]  # fmt: skip

RES = [
    Mutant("a-sourceid-for-each-run", "RES-001 RES-011", "client_side/resume_id.py", "    parts = (name, path,", "    parts = (os.urandom(16).hex(), path,", CLIENT),
    Mutant("a-sourceid-for-each-open", "RES-001", RECEIVING, "secrets.token_bytes(16) if self._chosen_here else message.sourceid",
           "secrets.token_bytes(16)", SERVER),
    Mutant("zeros-are-a-sourceid", "RES-003", RECEIVING, "self._sourceid = secrets.token_bytes(16) if self._chosen_here else message.sourceid",
           "self._sourceid = message.sourceid", SERVER),
    Mutant("a-refused-open-keeps-its-attempt", "RES-005 RES-006", UPLOAD,
           "if (facts.filename, facts.filesize) != (self.facts.filename, self.facts.filesize):",
           "before, self.attempt = self.attempt, attempt\n"
           "        if (facts.filename, facts.filesize) == (self.facts.filename, self.facts.filesize):\n"
           "            self.attempt = before\n        else:", SERVER),
    Mutant("smaller-attempts-join", "RES-006", UPLOAD, "if attempt < self.attempt:", "if False:", SERVER),
    Mutant("a-takeover-tells-nobody", "RES-006", UPLOAD,
           "older = tuple(self.feeds) if attempt > self.attempt else ()", "older: tuple[Feed, ...] = ()", SERVER),
    Mutant("other-facts-for-the-same-sourceid", "RES-007", UPLOAD,
           "if (facts.filename, facts.filesize) != (self.facts.filename, self.facts.filesize):", "if False:", SERVER),
    Mutant("receipts-of-another-size", "RES-008", UPLOADS, "if facts.filesize not in (None, stored.filesize):", "if False:", SERVER),
    Mutant("opened-says-attempt-0", "RES-009", RECEIVING, "attempt=upload.attempt,", "attempt=0,", SERVER),
    Mutant("attempts-count-from-1", "RES-011", "client_side/resume_id.py",
           "self._last = max(time.time_ns() // 1_000_000, self._last + 1)", "self._last += 1", CLIENT),
    Mutant("prefixes-are-not-told", "RES-013", RECEIVING, "prefixes=tuple(unowned[:OPENED_PREFIXES_MAX]),", "prefixes=(),", SERVER),
    Mutant("position-counts-blocks-behind-a-gap", "RES-016", UPLOAD,
           "self.held.first_gap(self.first // BLOCK_LENGTH) * BLOCK_LENGTH", "len(self.held) * BLOCK_LENGTH"),
    Mutant("position-is-not-read", "RES-018", PLAN, "self.held = held\n        self._hold_up_to(position)", "self.held = held", CLIENT),
    Mutant("one-stream-hears-of-durable-blocks", "RES-019", UPLOAD,
           "_tell(self.feeds, lambda feed: feed.say_durable(", "_tell(self.feeds[:1], lambda feed: feed.say_durable(", SERVER),
]  # fmt: skip

RES += [
    Mutant("a-receipt-with-another-root-answers", "RES-008", UPLOADS, "if root not in (None, stored.root):", "if False:", SERVER),
]  # fmt: skip

DIG = [
    Mutant("roots-from-behind", "DIG-001", PLAN, "root_of(digests, blocknum - self._first_block)",
           "root_of(reversed(list(digests)), blocknum - self._first_block)"),
    Mutant("the-root-as-b3sum", "DIG-002", "transfer/file_hashing.py", "self.outcome = self._hasher.digest()",
           "self.outcome = self._store.stat(self._name).root or self._hasher.digest()", SERVER),
    Mutant("the-root-is-shown-as-b3sum", "DIG-002", "results.py", "b3sum=item.b3sum.hex() if item.b3sum else None,",
           "b3sum=item.root.hex() if item.root else None,", CLIENT),
    Mutant("a-root-that-differs-ends-the-stream", "DIG-005", RECEIVING,
           "self._connection.refuse(self._stream, error, Scope.BLOCK)\n\n    def say_stopped",
           "self._connection.refuse(self._stream, error, Scope.STREAM)\n\n    def say_stopped"),
    Mutant("have-names-one-block", "DIG-006", PLAN, "for blockno in page)", "for blockno in page[:1])"),
    Mutant("repaired-for-ever", "DIG-008", PLAN, "if self._repairs > REPAIRS_MAX:", "if self._repairs > 50:", CLIENT),
    Mutant("the-root-is-not-compared", "DIG-009 DIG-005", UPLOAD_STATE, "if root_of(digests, len(wanted)) != work.root:", "if False:"),
]  # fmt: skip

COM = [
    Mutant("commit-without-its-root", "COM-001", SENDING, "Commit(self.sourceid, root, ", "Commit(self.sourceid, bytes(32), ", CLIENT),
    Mutant("a-brief-file-is-never-complete", "COM-002", "client_side/upload_brief.py", "commit=last)", "commit=False)", CLIENT,
           (("client_side/upload_brief.py", "commit=whole,", "commit=False,"),)),
    Mutant("a-commit-of-another-size", "COM-003", UPLOAD,
           "if self.facts.filesize is not None and filesize != self.facts.filesize:", "if False:", SERVER,
           ((UPLOAD_STATE, "if known is not None and end != known:", "if False:"),)),
    Mutant("a-commit-of-another-file", "COM-003", FETCHING,
           'raise BadFacts(f"COMMIT says {message.filesize} bytes, OPEN said {opening.filesize}")', "pass", CLIENT),
    Mutant("commit-does-not-wait", "COM-004", UPLOAD,
           "< wanted and not contradicted:\n            return",
           "< wanted and not contradicted:\n            self._fail(BadFacts('blocks are missing'))\n            return"),
    Mutant("one-stream-hears-committed", "COM-007", UPLOAD,
           "_tell(self.feeds, lambda feed: feed.say_committed(stored))", "_tell(self.feeds[:1], lambda feed: feed.say_committed(stored))", SERVER),
    Mutant("any-committed-will-do", "COM-008", SENDING,
           "if facts.filesize not in (None, committed.filesize) or root not in (None, committed.root):", "if False:", CLIENT),
    Mutant("what-a-hook-refused-is-removed", "COM-031", "client_side/upload.py",
           "                asked_for = False\n                if sending",
           "                if exc.code == 37:\n                    await self._discard(sourceid)\n                if sending", CLIENT),
    Mutant("what-a-hook-refused-is-sent-again", "COM-031", "client_side/connections.py",
           "return error.retryable and comes_back", "return (error.retryable or error.code == 37) and comes_back", CLIENT),
    Mutant("everything-acknowledged-is-success", "COM-009", SENDING,
           "self._keeps(self.plan.acknowledged(message.held, message.position))\n        self._report()",
           "self._keeps(self.plan.acknowledged(message.held, message.position))\n"
           "        if self.plan.root is not None and len(self.plan.held) == self.plan._blocknum:\n"
           "            self.committed = Committed(self.sourceid, bytes(16), self.plan.root, self._filesize(), 'x')\n"
           "        self._report()", CLIENT),
    Mutant("receipts-answer-other-bytes", "COM-010", RULES,
           "if (receipt.root, receipt.filesize) != (root, filesize):", "if False:", SERVER),
    Mutant("a-parent-that-is-a-file-is-unknown", "COM-012", "store/os_errors.py",
           "return NotPermitted(_NOT_PERMITTED[number])", "return UnknownFile()", SERVER),
    Mutant("refuse-replaces", "COM-013", CHOOSING, "        if verdict is Verdict.REFUSE:\n            raise FileExists",
           "        if verdict is Verdict.REFUSE:\n            return NameChoice(name, over=True)", SERVER),
    Mutant("the-same-file-is-stored-again", "COM-021", CHOOSING, "return root == wanted.root", "return False", SERVER),
    Mutant("the-size-is-enough", "COM-021 COM-013", CHOOSING, "return root == wanted.root", "return True", SERVER),
    Mutant("only-the-wanted-name-is-compared", "COM-021", CHOOSING, "islice(names, COMPARED_MAX)", "islice(names, 1)", SERVER),
    Mutant("the-same-bytes-keep-their-time", "COM-022", "store/local/batch_names.py",
           "if wanted.facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE):", "if False:", SERVER),
    Mutant("the-same-file-again-has-no-receipt", "COM-023", "store/local/batch_names.py", "view.put_further(receipt)", "pass", SERVER),
    Mutant("skip-replaces", "COM-025", NAME_RULES, "        return Verdict.LEAVE\n    if there is not Kind.FILE", "        return Verdict.REPLACE\n    if there is not Kind.FILE", SERVER),
    Mutant("update-replaces-what-is-newer", "COM-025", NAME_RULES,
           "return facts.mtime_ns is not None and is_newer(facts.mtime_ns, there_ns)", "return facts.mtime_ns is not None", SERVER),
    Mutant("receipts-of-any-rule-answer", "COM-027", "store/local/batch_names.py", "if own.if_exists is if_exists else None", "if True else None", SERVER,
           (("store/local/store.py", "self._finished.true_receipt(view, context.state.file_id(key), None, facts.if_exists)",
             "self._finished.true_receipt(view, context.state.file_id(key))"),)),
    Mutant("stored-as-is-the-wanted-name", "COM-014", RECEIVING, "stored_as=writer.shown(stored.stored_as),",
           'stored_as=writer.shown(stored.stored_as).replace(" (1)", ""),', SERVER),
    Mutant("cancel-is-not-answered", "COM-016", RECEIVING, "else:\n            self.say_stopped(cancelled)", "else:\n            self._leave()"),
    Mutant("discard-keeps-the-bytes", "COM-017", RECEIVING, "if message.discard:", "if False:", SERVER),
    Mutant("giving-up-says-nothing", "COM-019", LANE,
           "if self.connection.lost is not None or not self.connection.session.is_open(self.stream):", "if True:", CLIENT),
]  # fmt: skip

FET = [
    Mutant("folders-are-not-there", "FET-001", "store/folder_io.py", 'raise NotPermitted("it is a folder")', "raise UnknownFile", SERVER),
    Mutant("fetch-gives-any-version", "FET-002", SOURCE,
           'raise SourceChanged(\n                f"{realm.outward(entry.filename.text)} is not the version',
           'str(\n                f"{realm.outward(entry.filename.text)} is not the version', SERVER),
    Mutant("open-without-its-version", "FET-003", SOURCE, "version=message.version if _stands_for(message, entry.file_id) else entry.version,", "version=None,", SERVER),
    Mutant("ranges-begin-at-0", "FET-005", SOURCE, "self.first = min(message.first, entry.filesize)", "self.first = 0", SERVER),
    Mutant("ranges-are-asked-from-0", "FET-005", "client_side/download.py", "first=wanted.first,", "first=0,", CLIENT),
    Mutant("ranges-behind-the-end-are-empty", "FET-005", SOURCE, "if entry.filesize and message.first >= entry.filesize:", "if False:", SERVER),
    Mutant("what-is-held-is-sent", "FET-006", FETCH,
           "sending.receiver_holds(BlockSet(message.held), dict(message.prefixes))", "sending.receiver_holds(BlockSet(), {})", SERVER),
    Mutant("a-fetcher-acknowledges-nothing", "FET-008 CRD-011", FETCHING,
           "super().say_durable(position, runs)\n        self._on_durable", "super()\n        self._on_durable", CLIENT),
    Mutant("held-of-no-version", "FET-009", "client_side/download.py", "version=wanted.version,", "version=bytes(16),", CLIENT),
    Mutant("position-counts-from-the-files-beginning", "FET-010", UPLOAD, "held = max(self.first, ", "held = max(0, ", CLIENT),
    Mutant("a-fetcher-gives-up-in-silence", "FET-014", "client_side/download.py", "self._receiver.say_stopped(reason)", "self._receiver.ended(reason)", CLIENT),
]  # fmt: skip

LST = [
    Mutant("receipts-are-listed-of-any-rule", "LST-015", REQUESTS,
           "rule = None if message.if_exists is None else IfExists(message.if_exists)", "rule = None", SERVER),
    Mutant("two-answers-in-one", "LST-001", REQUESTS, "return fit_left_out(result, head_length_max) if result.left_out else result",
           "return Result(message.kind, result.items * 2, result.cursor)", SERVER),
    Mutant("pages-of-any-length", "LST-002", REQUESTS, "page(max(1, min(message.limit, PAGE_ITEMS_MAX, likely)))", "page(PAGE_ITEMS_MAX)", SERVER),
    Mutant("cursors-are-cut", "LST-003", "client_side/paging.py",
           'hardly an entry on each")\n        question = replace(question, cursor=page.cursor)',
           'hardly an entry on each")\n        question = replace(question, cursor=page.cursor[:500])', CLIENT),
    Mutant("an-entry-twice-where-pages-meet", "LST-003", "store/local/listing.py", "return rest + b\"\\0\" if rest else b\"\"", "return rest", SERVER),
    Mutant("only-the-folders-own-entries", "LST-004", SERVICE, "within, recursive, after, limit", "within, False, after, limit", SERVER),
    Mutant("no-unfinished-uploads", "LST-005", REQUESTS, "tuple(upload_item(entry, writer.realm) for entry in entries), cursor", "(), cursor", SERVER),
    Mutant("exact-is-a-folder", "LST-006", REQUESTS, "await (self._stat(message) if message.exact else self._list_files(message))",
           "await self._list_files(message)", SERVER),
    Mutant("b3sum-only-where-it-is-known", "LST-007", SERVICE, "if b3sum and entry.b3sum is None and not entry.folder:", "if False:", SERVER),
    Mutant("one-receipt-at-most", "LST-008", REQUESTS, "message.ids[at:end], rule)", "message.ids[at:end][:1])", SERVER),
    Mutant("follow-is-ignored", "LST-009", REQUESTS, "if message.follow:", "if False:", SERVER),
    Mutant("remove-removes-nothing", "LST-010", SERVICE, "await commit_and_wait(self._engine.committer, Remove",
           "_ = (self._engine.committer, Remove", SERVER),
    Mutant("remove-is-answered-with-a-cursor", "LST-011", REQUESTS, "return Result(kind=message.kind)", 'return Result(kind=message.kind, cursor="x")', SERVER),
    Mutant("full-folders-go", "LST-012", SERVICE, "Remove(name, id_, recursive)", "Remove(name, id_, True)", SERVER),
    Mutant("remove-leaves-the-upload", "LST-013", SERVICE,
           "await self._engine.uploads.discard(self._key(sourceid))", "pass", SERVER),
]  # fmt: skip

ERR = [
    Mutant("everything-is-retryable", "ERR-001", "protocol/events.py", "retryable=error.retryable,", "retryable=True,"),
    Mutant("the-code-says-what-ends", "ERR-002", SENDING, "if message.scope != Scope.BLOCK:",
           "if message.code not in (Code.DIGEST_MISMATCH, Code.DIGESTS_DIFFER):", CLIENT),
    Mutant("unknown-codes-crash", "ERR-004", LINK,
           "code=Code(message.code) if message.code in Code._value2member_map_ else None", "code=Code(message.code)", CLIENT),
    Mutant("an-unknown-code-of-a-block-ends-the-connection", "ERR-004", SESSION, "stream.credited(message)",
           "stream.credited(message)\n        if isinstance(message, Error) and message.code > 100:\n"
           "            raise UnexpectedMessage('code')"),
    Mutant("blocks-are-refused-by-senders", "ERR-005", STREAMS, "state = TABLE.get((self.state, speaker, kind))",
           "state = self.state if kind == Kind.ERROR_BLOCK else TABLE.get((self.state, speaker, kind))", CLIENT),
    Mutant("superseded-does-not-say-by-what", "ERR-009", UPLOAD, "current=self.attempt)", "current=None)", SERVER),
]  # fmt: skip

END = [
    Mutant("answers-with-an-opaque-of-its-own", "END-002", LINK, "Ping(opaque=message.opaque, next_s=0, answer=True)",
           "Ping(opaque=bytes(8), next_s=0, answer=True)"),
    Mutant("answers-are-answered", "END-002", LINK, "if message.answer:\n                return", "if False:\n                return"),
    Mutant("promises-are-forgotten", "END-003", "connection/liveness.py", "return Due.PING if now_s >= self._ping_s() else Due.NOTHING",
           "return Due.PING if now_s >= self._ping_s() and not self._asked_s else Due.NOTHING", CLIENT),
    Mutant("blocks-begin-after-goaway", "END-008", LANE, "if leaving is not None:", "if False:", CLIENT,
           ((LINK, "self.going_away = message\n", "pass\n"),)),
    Mutant("going-away-is-for-good", "END-009", "connection/stream_handler.py", "message.code,\n        message.text,",
           "32 if message.code == 34 else message.code,\n        message.text,", CLIENT),
    Mutant("an-error-of-the-connection-ends-nothing", "END-011", LINK,
           "elif isinstance(message, Error):\n            raise ConnectionLost(", "elif False:\n            raise ConnectionLost("),
]  # fmt: skip

EDGE = [
    Mutant("all-ones-is-never-a-number", "FRM-015", LINK, "self._liveness.promised(message.next_s)",
           "self._liveness.promised(message.next_s)\n            if message.next_s == 0xFFFFFFFF:\n                raise ConnectionLost('all ones')", SERVER),
    Mutant("a-short-block-counts-as-a-whole-one", "RES-016", UPLOAD,
           "end = self._short_end if self.facts.filesize is None else self.facts.filesize", "end = self.facts.filesize", SERVER),
    Mutant("the-former-owners-end-is-an-error", "BLK-013", BLOCKS,
           "return Ended.TAKEN_AWAY",
           "raise BadFacts('another stream sends this block')", SERVER),
    Mutant("a-prefix-that-is-not-there-ends-the-stream", "RES-013", PREFIX,
           "if prefix is None or prefix.length != length:\n        return False",
           "if prefix is None or prefix.length != length:\n        raise BadFacts('there is no such prefix')", SERVER),
    Mutant("uploads-without-a-byte-are-listed", "LST-005", REQUESTS,
           "tuple(upload_item(entry, writer.realm) for entry in entries), cursor",
           "tuple([upload_item(entry, writer.realm) for entry in entries] + [\n"
           "                __import__('blockproto.wire').wire.UploadItem(live.stored.key.sourceid, live.stored.file_id, live.facts.filesize, 1, 0, 0, None,\n"
           "                                live.facts.filename.text, live.facts.filetype)\n"
           "                for live in writer._engine.uploads._live.values() if not live.held]), cursor", SERVER),
    Mutant("held-of-no-version-is-left-out", "FET-009", FETCH, "if message.version == ZERO_ID and (message.held or message.prefixes):", "if False:", SERVER),
    Mutant("the-served-folder-is-an-entry", "LST-006", REQUESTS,
           "reader = self._service.reader()\n        entry",
           "if not message.name:\n            return await self._list_files(message)\n        reader = self._service.reader()\n        entry", SERVER),
    Mutant("blocks-begin-after-the-clients-goaway", "END-008", LANE, "if leaving is not None:", "if False:", SERVER),
    Mutant("who-goes-with-nothing-open-is-kept", "END-008", "connection/ending.py", "if self.going_away is not None and self.quiet:", "if False:", SERVER),
    Mutant("received-is-a-byte-too-many", "CRD-008", STREAMS, "return Credit(self.granted, self.received)",
           "return Credit(self.granted, self.received + 1)"),
    Mutant("have-in-one-page", "FRM-006 DIG-006", SENDING, "most = min(HAVE_DIGESTS_MAX, digests_max(send_stream.connection.session.head_length_max))",
           "most = HAVE_DIGESTS_MAX", CLIENT),
    Mutant("any-block-can-have-been-damaged", "ERR-011", PLAN, "if blockno is None or blockno not in self._digested:", "if False:", CLIENT),
]  # fmt: skip

ALL = [*BLK, *RES, *DIG, *COM, *FET, *LST, *ERR, *END, *EDGE]
