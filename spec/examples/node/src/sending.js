/**
 * The sender of one file: a client's upload, or a server's answer to FETCH (chapters BLK, RES, DIG, COM).
 *
 * What came from the receiver only changes what is known (`held`, `again`, `committed` …) and wakes the loop in `run`,
 * which decides what to do next from that alone. So it does not matter in which order messages cross.
 *
 *   a block is sent while: it is not held, and sent − acknowledged < undurable_max (or nothing is unacknowledged)
 *   COMMIT is said when: every block was sent or is held; it does not wait for acknowledgements
 *   DIGEST_MISMATCH: that block again, from its beginning, at most five times in a row
 *   DIGESTS_DIFFER: HAVE, OPENED, what is missing, COMMIT; at most three rounds
 */
import {BLOCK, blockSpan, blocknosOf, blocknumOf, digestOf, rootOf} from './blocks.js';
import {Refusal} from './errors.js';

const ROUNDS_MAX = 3;
const TRIES_MAX = 5;

/** How many blocks of an upload were ever held in this run: more is progress, the same again is not. */
const FURTHEST = new Map();

/**
 * @typedef {object} Source where the bytes come from
 * @property {(position: number, length: number) => Promise<Buffer>} read exactly that many bytes
 * @property {() => Promise<void>} check throws a Refusal SOURCE_CHANGED if the file is not what it was
 * @property {(from: number) => Promise<number>} [grow] for a file of unknown size: resolves when a whole block is there
 *   from that position on, or the source has ended; to how many bytes of that block there are
 */

export class Sending {
  /**
   * @param {import('./connection.js').Connection} connection
   * @param {import('./session.js').Stream} stream
   * @param {{sourceid: string, filename: string, filetype: string, filesize: number, blocknum: number}} facts
   * @param {{first: number, end: number}} range the bytes to send: all of them in an upload
   * @param {Source} source
   * @param {(event: {blockno: number, bytes: number}) => void} [onSent] told after each block
   */
  constructor(connection, stream, facts, range, source, onSent = () => {}) {
    Object.assign(this, {connection, stream, facts, range, source, onSent});
    this.blocknos = blocknosOf(range.first, range.end);
    /** @type {Set<number>} */ this.held = new Set();
    /** @type {Map<number, number>} */ this.prefixes = new Map();
    /** @type {Map<number, string>} */ this.digests = new Map();
    /** @type {Map<number, number>} blocks that are sent and not acknowledged, with their sizes */ this.undurable = new Map();
    this.tries = new Map();
    this.todo = [...this.blocknos];
    this.growing = facts.filesize === null;
    /** @type {[number, number][]} runs that were said to be held, for blocks that are yet to grow */ this.said = [];
    this.saidPosition = 0n;
    Object.assign(this, {opened: false, awaitsOpened: false, commitSaid: false, rounds: 0, committed: null, error: null});
    this.wake = () => {};
    this.onGoaway = (message) => {
      this.goaway = message;
      this.wake();
    };
    connection.on('goaway', this.onGoaway);
  }

  head() {
    const {sourceid, filename, filetype, filesize, blocknum} = this.facts;
    return {sourceid, filesize: filesize === null ? null : BigInt(filesize), blocknum, filename, filetype};
  }

  // --- what the receiver says ---------------------------------------------------------------------------------------

  onMessage(message) {
    if (message.message === 'OPENED') this.onOpened(message);
    else if (message.message === 'ACK') this.onAck(message);
    else if (message.message === 'COMMITTED') this.committed = message;
    else if (message.message === 'ERROR') this.onBlockError(Refusal.fromMessage(message));
    this.wake();
  }

  onBytes() {
    throw new Error('our mistake: the receiver of a file sent payload');
  }

  onEnd(error) {
    this.connection.off('goaway', this.onGoaway);
    this.error ??= error;
    this.wake();
  }

  /** The first OPENED adds to what is held; the one that answers HAVE replaces it (RES-018). */
  onOpened(message) {
    if (this.awaitsOpened) {
      this.held.clear();
      this.undurable.clear();
      this.said = [];
      this.saidPosition = 0n;
      this.awaitsOpened = false;
      this.commitSaid = false;
    }
    this.opened = true;
    this.facts.sourceid = message.sourceid;
    this.prefixes = new Map(message.prefixes);
    this.onHeld(message);
    this.todo = this.blocknos.filter((blockno) => !this.held.has(blockno));
  }

  onAck(message) {
    this.onHeld(message);
    if (this.held.size <= (FURTHEST.get(this.facts.sourceid) ?? 0)) return;
    FURTHEST.set(this.facts.sourceid, this.held.size);
    this.connection.progress += 1;
  }

  onHeld({position, held}) {
    this.saidPosition = position > this.saidPosition ? position : this.saidPosition;
    this.said = this.growing ? [...this.said, ...held] : held;
    for (const blockno of this.blocknos) if (!this.held.has(blockno) && this.wasSaid(blockno)) this.hold(blockno);
  }

  wasSaid(blockno) {
    if (BigInt(blockSpan(blockno, this.range.first, this.range.end)[1]) <= this.saidPosition) return true;
    return this.said.some(([first, count]) => blockno >= first && blockno < first + count);
  }

  hold(blockno) {
    this.held.add(blockno);
    this.undurable.delete(blockno);
    this.tries.delete(blockno);
  }

  /** Scope block: the transfer goes on, also after a code that means nothing to us (ERR-002); but ERR-011. */
  onBlockError(refusal) {
    if (refusal.name === 'DIGESTS_DIFFER') this.differ = true;
    else if (refusal.name === 'DIGEST_MISMATCH' && !this.blocknos.includes(refusal.blockno)) {
      const wrong = new Refusal('BAD_FACTS', 'a block arrived damaged that was not sent');
      this.connection.refuse(this.stream, wrong);
      this.onEnd(wrong);
    } else if (refusal.name === 'DIGEST_MISMATCH') {
      this.tries.set(refusal.blockno, (this.tries.get(refusal.blockno) ?? 0) + 1);
      this.prefixes.delete(refusal.blockno);
      this.undurable.delete(refusal.blockno);
      if (!this.todo.includes(refusal.blockno)) this.todo.unshift(refusal.blockno);
    }
  }

  // --- what we do ---------------------------------------------------------------------------------------------------

  /** Resolves when OPENED (or the end) has come: what is held need not be sent. A sender may also not wait (RES-012). */
  async untilOpened() {
    while (!this.opened && this.committed === null && this.error === null) await new Promise((resolve) => (this.wake = resolve));
  }

  /** Sends what is missing until COMMITTED; returns that message, or throws why there is none. */
  async run() {
    for (;;) {
      if (this.committed !== null) return this.judgeCommitted(this.committed);
      if (this.error !== null) throw this.error;
      if (this.goaway !== undefined && !this.commitSaid) throw new Refusal('GOING_AWAY', 'the other side is stopping', {retryAfterMs: this.goaway.retry_after_ms});
      if (this.differ) await this.sayHave();
      else if (this.todo.length > 0 && !this.awaitsOpened && this.mayBegin()) await this.sendBlock(this.todo.shift());
      else if (this.todo.length === 0 && this.growing && !this.awaitsOpened) await this.grow();
      else if (this.todo.length === 0 && !this.commitSaid && !this.awaitsOpened) await this.sayCommit();
      else await new Promise((resolve) => (this.wake = resolve));
    }
  }

  /** A file of unknown size has one block more, or has ended (BLK-003). */
  async grow() {
    const length = await this.source.grow(this.range.end);
    const blockno = this.blocknos.length;
    this.range.end += length;
    this.growing = length === BLOCK;
    if (length === 0) return;
    this.blocknos.push(blockno);
    if (this.wasSaid(blockno)) this.hold(blockno);
    else this.todo.push(blockno);
  }

  /** CRD-009: not too much that is sent and not acknowledged. */
  mayBegin() {
    let bytes = 0;
    for (const length of this.undurable.values()) bytes += length;
    return bytes === 0 || bytes < Number(this.connection.session.peer.undurable_max);
  }

  async sendBlock(blockno) {
    if ((this.tries.get(blockno) ?? 0) >= TRIES_MAX) {
      this.giveUp(new Refusal('DIGEST_MISMATCH', `block ${blockno} arrived damaged ${TRIES_MAX} times`));
      return;
    }
    const [start, end] = blockSpan(blockno, this.range.first, this.range.end);
    const bytes = await this.readBlock(blockno);
    const skip = Math.min(this.prefixes.get(blockno) ?? 0, bytes.length);
    this.prefixes.delete(blockno);
    this.undurable.set(blockno, end - start);
    await this.connection.sendBlock(this.stream, {
      head: {...this.head(), blockno}, position: start + skip, bytes: bytes.subarray(skip), digest: this.digests.get(blockno),
    }).catch((error) => (this.error ??= error));
    this.onSent({blockno, bytes: bytes.length - skip});
  }

  async readBlock(blockno) {
    const [start, end] = blockSpan(blockno, this.range.first, this.range.end);
    const bytes = await this.source.read(start, end - start);
    await this.source.check();
    this.digests.set(blockno, digestOf(bytes));
    return bytes;
  }

  /** The digests of all blocks, also of those that the receiver held already: they are read for it. */
  async allDigests() {
    for (const blockno of this.blocknos) if (!this.digests.has(blockno)) await this.readBlock(blockno);
    return this.blocknos.map((blockno) => this.digests.get(blockno));
  }

  async sayCommit() {
    this.root = rootOf(await this.allDigests());
    if (this.stream.state !== 'open') return;
    this.commitSaid = true;
    const filesize = this.facts.filesize ?? this.range.end;
    this.connection.say(this.stream, {
      message: 'COMMIT', sourceid: this.facts.sourceid, root: this.root, filesize: BigInt(filesize), blocknum: blocknumOf(filesize),
    });
  }

  /** DIG-006: what we have, page by page; the answer is OPENED. */
  async sayHave() {
    this.differ = false;
    this.rounds += 1;
    if (this.rounds > ROUNDS_MAX) {
      this.giveUp(new Refusal('SOURCE_CHANGED', 'the file is changing: its root differs again and again'));
      return;
    }
    this.digests.clear();
    const digests = (await this.allDigests()).map((digest, i) => [this.blocknos[i], digest]);
    const perPage = Math.floor((this.connection.session.peer.head_length_max - 2) / 36);
    this.awaitsOpened = true;
    do {
      const page = digests.splice(0, perPage);
      this.connection.say(this.stream, {message: 'HAVE', flags: digests.length > 0 ? ['MORE'] : [], digests: page});
    } while (digests.length > 0);
  }

  giveUp(error) {
    error.retryable = false;
    this.error ??= error;
    this.cancel(25, error.message);
  }

  /** Ends this stream from our side; with `discard` the receiver throws the upload away. */
  cancel(reason, text, discard = false) {
    this.connection.abandon(this.stream, new Refusal('CANCELLED', text));
    if (['open', 'brief', 'committing'].includes(this.stream.state))
      this.connection.say(this.stream, {message: 'CANCEL', flags: discard ? ['DISCARD'] : [], reason, text});
  }

  /** COM-008: a root or size that is not ours means that the sourceid was used for another file. */
  async judgeCommitted(message) {
    const root = rootOf(await this.allDigests());
    const sameSize = this.stream.ours ? message.filesize === BigInt(this.facts.filesize ?? this.range.end) : true;
    if (message.root !== root || !sameSize) throw new Refusal('SOURCE_CHANGED', 'the other side committed another file under this sourceid');
    return message;
  }
}

