/**
 * Every way to refuse, and what a refusal looks like on its way through this program (chapter ERR).
 *
 * A `Refusal` is thrown where a rule is broken and caught where an ERROR can be said: by the connection. One that came
 * from the other side is a `Refusal` too, with `remote` set.
 */

/** What ends: the block, the stream or the connection. */
export const SCOPE = Object.freeze({block: 1, stream: 2, connection: 3});

/** name → [code, scope, retryable], the error table of the specification. */
export const ERRORS = Object.freeze({
  MALFORMED: [1, SCOPE.connection, false],
  TOO_LARGE: [2, SCOPE.connection, false],
  BAD_CHECK: [3, SCOPE.connection, true],
  UNEXPECTED: [4, SCOPE.connection, false],
  UNSUPPORTED_VERSION: [5, SCOPE.connection, false],
  UNSUPPORTED: [6, SCOPE.stream, false],
  CREDIT_EXCEEDED: [7, SCOPE.connection, false],
  TIMEOUT: [8, SCOPE.connection, true],
  TOO_MANY_STREAMS: [9, SCOPE.connection, false],
  NOT_BLOCKPROTO: [10, SCOPE.connection, false],
  NAME_REFUSED: [20, SCOPE.stream, false],
  FILE_EXISTS: [21, SCOPE.stream, false],
  UNKNOWN_FILE: [22, SCOPE.stream, false],
  UNKNOWN_UPLOAD: [23, SCOPE.stream, false],
  SUPERSEDED: [24, SCOPE.stream, false],
  SOURCE_CHANGED: [25, SCOPE.stream, false],
  DIGEST_MISMATCH: [26, SCOPE.block, true],
  DIGESTS_DIFFER: [27, SCOPE.block, true],
  BAD_FACTS: [28, SCOPE.stream, false],
  STORE_FULL: [29, SCOPE.stream, true],
  STORE_FAILED: [30, SCOPE.connection, false],
  CANCELLED: [31, SCOPE.stream, false],
  NOT_PERMITTED: [32, SCOPE.stream, false],
  BUSY: [33, SCOPE.stream, true],
  GOING_AWAY: [34, SCOPE.stream, true],
  NOT_EMPTY: [35, SCOPE.stream, false],
  INTERNAL: [36, SCOPE.stream, false],
  HOOK_REFUSED: [37, SCOPE.stream, false],
});

const NAMES = new Map(Object.entries(ERRORS).map(([name, [code]]) => [code, name]));

/** A rule was broken, here or there: what an ERROR says. */
export class Refusal extends Error {
  /**
   * @param {string} name a row of the error table
   * @param {string} text for people
   * @param {{scope?: number, blockno?: number|null, current?: bigint|null, retryAfterMs?: number}} [more]
   */
  constructor(name, text, more = {}) {
    super(text);
    const [code, scope, retryable] = ERRORS[name];
    this.name = name;
    this.code = code;
    this.scope = more.scope ?? scope;
    this.retryable = retryable;
    this.retryAfterMs = more.retryAfterMs ?? 0;
    this.blockno = more.blockno ?? null;
    this.current = more.current ?? null;
    this.remote = false;
  }

  /** The refusal that an ERROR of the other side is; unknown codes go by scope and retryable (ERR-004). */
  static fromMessage(message) {
    const known = NAMES.get(message.code);
    const refusal = new Refusal(known ?? 'CANCELLED', escapeText(message.text) || known || `code ${message.code}`);
    refusal.name = known ?? `UNKNOWN_${message.code}`;
    refusal.code = message.code;
    refusal.scope = message.scope;
    refusal.retryable = message.retryable !== 0;
    refusal.retryAfterMs = message.retry_after_ms;
    refusal.blockno = message.blockno;
    refusal.current = message.current;
    refusal.remote = true;
    return refusal;
  }

  /** The ERROR message that says this refusal. */
  toMessage() {
    return {
      message: 'ERROR', code: this.code, scope: this.scope, retryable: this.retryable ? 1 : 0,
      retry_after_ms: this.retryAfterMs, blockno: this.blockno, current: this.current,
      text: cutText(this.message, 1024),
    };
  }
}

/** The connection ended before what was asked was answered; the same again can succeed. */
export class ConnectionLost extends Error {
  constructor(text, retryAfterMs = 0) {
    super(text);
    this.name = 'ConnectionLost';
    this.retryable = true;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * What an error of the file system means to the other side: a full disk is not a broken one (ERR-008). Any other error is
 * a mistake of this program: INTERNAL (ERR-010), which has it as its `cause`.
 */
export function asRefusal(error) {
  if (error instanceof Refusal || error instanceof ConnectionLost) return error;
  if (error?.code === 'ENOSPC' || error?.code === 'EDQUOT') return new Refusal('STORE_FULL', 'there is no room');
  if (error?.syscall !== undefined) return new Refusal('STORE_FAILED', `the disk reported ${error.code}`);
  return Object.assign(new Refusal('INTERNAL', 'an error that nobody expected'), {cause: error});
}

/** Text from the other side, with everything escaped that a terminal would obey (ERR-003). */
export function escapeText(text) {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
}

function cutText(text, bytesMax) {
  let cut = text;
  while (Buffer.byteLength(cut) > bytesMax) cut = cut.slice(0, -1);
  return cut;
}
