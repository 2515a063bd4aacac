/**
 * The receiver of one file, over one stream or several: a server's upload, or a client's download.
 *
 * `Receiving` is the file: what is held, whose block is whose, when it is complete. A `Lane` is one stream of it.
 *
 * A block is in exactly one of these: missing · being received by one lane (`owners`) · verified and not yet durable
 * (`verified`) · held (`part.held`). Only held blocks are acknowledged. One loop (`settle`) makes durable what is
 * verified by then, all of it with one sync, and afterwards looks whether the file is complete.
 */
import {BLOCK, blockSpan, blocknosOf, hasher, heldRootOf, rootOf, runsOf} from './blocks.js';
import {Refusal, SCOPE, asRefusal} from './errors.js';

const badFacts = (text) => new Refusal('BAD_FACTS', text);

export class Receiving {
  /**
   * @param {object} facts sourceid, filename, filetype, filesize and blocknum (both null while unknown)
   * @param {import('./partfile.js').PartFile} part
   * @param {{first: number, end: number|null}} range the bytes that come; end is null while the size is unknown
   * @param {(commit: object) => Promise<object>} finish gives the file its name, durably; returns COMMITTED
   */
  constructor(facts, part, range, finish) {
    Object.assign(this, {facts, part, range, finish});
    /** @type {Set<Lane>} */ this.lanes = new Set();
    /** @type {Map<number, object>} */ this.owners = new Map();
    /** @type {Map<number, string>} */ this.verified = new Map();
    this.settling = null;
    this.unsettled = false;
    /** @type {Promise<object>|null} a commit that runs: nothing stops it any more */ this.finishing = null;
    /** It was committed or discarded: nothing is kept of what comes still. */ this.over = false;
  }

  get end() {
    return this.range.end ?? Infinity;
  }

  span(blockno) {
    return blockSpan(blockno, this.range.first, this.end);
  }

  /** The digest of a block that is held or about to be; undefined if it is neither. */
  digestOf(blockno) {
    return this.part.held.get(blockno) ?? this.verified.get(blockno);
  }

  /** The short block that ends a file of unknown size, if it has come (BLK-003). */
  get lastShort() {
    return this.part.notes.lastShort ?? null;
  }

  // --- what is said about it ----------------------------------------------------------------------------------------

  /** RES-016: the first byte of the first block that is not held, or the end. */
  position() {
    let blockno = Math.floor(this.range.first / BLOCK);
    while (this.part.held.has(blockno)) {
      if (this.lastShort?.[0] === blockno) return blockno * BLOCK + this.lastShort[1];
      blockno += 1;
    }
    return Math.max(this.range.first, Math.min(blockno * BLOCK, this.end));
  }

  ack(headMax) {
    const from = this.position();
    const beyond = [...this.part.held.keys()].filter((blockno) => blockno * BLOCK >= from);
    return {message: 'ACK', position: BigInt(from), held: runsOf(beyond, Math.floor((headMax - 10) / 8))};
  }

  /** The fields of OPENED that are about blocks. What does not fit is left out; HELD_ROOT is about what is named. */
  opened(headMax) {
    const half = Math.floor((headMax - 128) / 16);
    const held = runsOf(this.part.held.keys(), half);
    const named = held.flatMap(([first, count]) => Array.from({length: count}, (_, i) => first + i));
    const prefixes = [...this.part.prefixes].filter(([blockno, bytes]) =>
      bytes > 0 && !this.owners.has(blockno) && this.digestOf(blockno) === undefined);
    const digests = named.map((blockno) => this.part.held.get(blockno));
    const complete = named.length === this.part.held.size;
    return {
      position: BigInt(this.position()), held, prefixes: prefixes.sort((a, b) => a[0] - b[0]).slice(0, half),
      tlvs: complete && named.length > 0 ? {HELD_ROOT: heldRootOf(digests)} : {},
    };
  }

  // --- becoming durable ---------------------------------------------------------------------------------------------

  /** Makes durable what is verified, acknowledges it, commits when all is there. Errors go to every lane; it throws none. */
  settle() {
    this.unsettled = true;
    this.settling ??= this.settleAll().catch((error) => {
      const refusal = asRefusal(error);
      for (const lane of [...this.lanes]) lane.refuse(refusal);
    }).finally(() => {
      this.settling = null;
      if (this.unsettled && !this.over) this.settle();
    });
    return this.settling;
  }

  async settleAll() {
    while (this.unsettled && !this.over) {
      this.unsettled = false;
      if (this.verified.size > 0) {
        const entries = [...this.verified];
        await this.part.hold(entries);
        for (const [blockno] of entries) this.verified.delete(blockno);
        for (const lane of this.lanes) {
          lane.connection.progress += entries.length;
          lane.acknowledge();
        }
      }
      if (this.verified.size > 0) this.unsettled = true;
      else if (this.finishing === null) await this.commitIfComplete();
    }
  }

  async commitIfComplete() {
    for (const lane of [...this.lanes]) {
      const {commit} = lane;
      if (commit === null || lane.stream.state === 'closed' || !this.isComplete(commit)) continue;
      const end = this.range.end ?? Number(commit.filesize);
      const digests = blocknosOf(this.range.first, end).map((blockno) => this.part.held.get(blockno));
      if (rootOf(digests) === commit.root) return this.commit(() => this.finish(commit));
      lane.commit = null;
      lane.refuse(new Refusal('DIGESTS_DIFFER', 'that is not the root of what is held'));
    }
    return undefined;
  }

  /** Whether every block is held; what does not fit the COMMIT of a file of unknown size is refused (COM-003). */
  isComplete(commit) {
    const end = this.range.end ?? Number(commit.filesize);
    return blocknosOf(this.range.first, end).every((blockno) => this.part.held.has(blockno));
  }

  async withdraw(blocknos) {
    await this.part.withdraw(blocknos);
    if (blocknos.includes(this.lastShort?.[0])) await this.part.note({lastShort: null});
  }

  /**
   * From here on nothing stops it: CANCEL is answered by COMMITTED (COM-018), unless `finish` refuses.
   * @param {() => Promise<object>} finish as the constructor's; returns COMMITTED, and so does this
   */
  async commit(finish) {
    this.finishing = finish();
    try {
      const committed = await this.finishing;
      this.over = true;
      for (const each of [...this.lanes]) each.connection.say(each.stream, committed);
      return committed;
    } finally {
      this.finishing = null;
    }
  }

  /** Resolves when no commit runs. */
  async finished() {
    while (this.finishing !== null) await this.finishing.catch(() => {});
  }

  // --- its end ------------------------------------------------------------------------------------------------------

  /** Every stream but `except` ends with this refusal. */
  endLanes(refusal, except = null) {
    for (const lane of [...this.lanes]) {
      if (lane === except) continue;
      lane.dismissed = true;
      lane.connection.refuse(lane.stream, refusal);
    }
  }

  /** A stream has ended, and what it brought is settled; with the last one, prefixes are recorded (RES-014). */
  async leave(lane) {
    await this.settling;
    this.lanes.delete(lane);
    await this.recordIfLeft();
  }

  /** Where no stream is left that could bring more. */
  async recordIfLeft() {
    if (this.lanes.size === 0 && !this.over) await this.part.recordPrefixes();
  }
}

/** One stream of a file that is being received. */
export class Lane {
  /** @param {() => object} opened gives the OPENED that answers OPEN and HAVE */
  constructor(receiving, connection, stream, opened) {
    Object.assign(this, {receiving, connection, stream, opened});
    this.saidOpened = false;
    /** A newer attempt or a DISCARD ended this stream: of what has come, only bytes still count. */ this.dismissed = false;
    this.commit = null;
    this.unfinished = null;
    receiving.lanes.add(this);
  }

  /** Tells this stream of an error of the upload. Once CANCEL came, its answer is another (COM-016). */
  refuse(refusal) {
    if (refusal.scope !== SCOPE.stream || this.stream.state !== 'cancelling') this.connection.refuse(this.stream, refusal);
  }

  acknowledge() {
    if (!this.saidOpened) return;
    const {session} = this.connection;
    this.connection.acknowledge(this.stream, () => this.receiving.ack(session.peer.head_length_max));
  }

  onMessage(message) {
    if (this.isTooLate || (this.stream.state === 'closed' && message.message === 'COMMIT')) return undefined;
    if (this.dismissed && message.message === 'HAVE') return undefined;
    switch (message.message) {
      case 'BLOCK': return this.onBlock(message);
      case 'PIECE': return this.onPiece(message);
      case 'HAVE': return this.onHave(message);
      case 'COMMIT': return this.onCommit(message);
      default: throw new Error(`our mistake: ${message.message} reached a receiver`);
    }
  }

  /** What came before a stream ended is written still, whatever ended it (RES-014), but for what is stored or thrown away. */
  get isTooLate() {
    return this.receiving.over || (this.stream.state === 'closed' && this.receiving.finishing !== null);
  }

  async onEnd() {
    this.abandon();
    await this.receiving.leave(this);
  }

  // --- blocks -------------------------------------------------------------------------------------------------------

  async onBlock(message) {
    const {receiving} = this;
    this.abandon();
    this.judgeAgreement(message);
    const {blockno} = message;
    const ends = message.flags.includes('END');
    if (receiving.facts.blocknum === 0 && blockno === 0 && message.payloadLength === 0 && ends) return;
    this.judgePlace(message, ends);
    const [start, end] = receiving.span(blockno);
    const position = Number(message.position);
    const unfinished = {blockno, start, end, next: position, mode: 'write', hash: hasher(), writing: Promise.resolve()};
    this.unfinished = unfinished;
    if (receiving.digestOf(blockno) !== undefined) unfinished.mode = 'known';
    else await this.own(unfinished, position);
    await this.expect(message, ends);
  }

  /** The block becomes this lane's; the former owner's last write is waited for, and its bytes are no prefix (BLK-013, RES-013). */
  async own(unfinished, position) {
    const {owners, part, facts} = this.receiving;
    const {blockno, start} = unfinished;
    const former = owners.get(blockno);
    owners.set(blockno, unfinished);
    if (former !== undefined) {
      former.mode = 'lost';
      await former.writing;
    }
    const prefix = former === undefined ? part.prefixes.get(blockno) ?? 0 : 0;
    part.prefixes.delete(blockno);
    if (unfinished.mode !== 'write') return;
    if (position === start) await part.begin(facts);
    else if (position === start + prefix) {
      unfinished.hash.update(await part.read(start, prefix));
      part.prefixes.set(blockno, prefix);
    } else unfinished.mode = 'refused';
  }

  judgeAgreement(message) {
    const {facts} = this.receiving;
    const filesize = message.filesize === null ? null : Number(message.filesize);
    const sameId = message.sourceid === facts.sourceid || (message.sourceid === this.saidSourceid);
    if (!sameId || filesize !== facts.filesize || message.blocknum !== facts.blocknum ||
        message.filename !== facts.filename || message.filetype !== (this.filetype ?? facts.filetype))
      throw badFacts('BLOCK says other facts than OPEN');
  }

  judgePlace(message, ends) {
    const {receiving} = this;
    const {blockno, payloadLength} = message;
    const {blocknum} = receiving.facts;
    const [start, end] = receiving.span(blockno);
    const position = Number(message.position);
    if (blockno >= (blocknum ?? 0xfffffffe)) throw badFacts(`there is no block ${blockno}`);
    if (start >= end) throw badFacts(`block ${blockno} is not in the range`);
    if (position < start || position > end) throw badFacts(`position ${position} is not in block ${blockno}`);
    if (position + payloadLength > end) throw badFacts(`the payload runs past the end of block ${blockno}`);
    if (blocknum === null) this.judgeUnknown(blockno, ends ? position + payloadLength - start : 0);
  }

  /** BLK-003: a block that ends short is the last one. */
  judgeUnknown(blockno, endsWith) {
    const short = this.receiving.lastShort;
    if (short !== null && (blockno > short[0] || (blockno === short[0] && endsWith > 0 && endsWith !== short[1])))
      throw badFacts(`block ${blockno} does not fit the short block ${short[0]}`);
  }

  onPiece(message) {
    const {unfinished} = this;
    const position = Number(message.position);
    if (unfinished === null) throw badFacts('PIECE without a block');
    if (position !== unfinished.next) throw badFacts(`PIECE at ${position}, not at ${unfinished.next}`);
    if (position + message.payloadLength > unfinished.end) throw badFacts('the payload runs past the end of the block');
    return this.expect(message, message.flags.includes('END'));
  }

  /** A frame of the unfinished block began: what it will have brought when its last byte is there. */
  async expect(message, ends) {
    const {unfinished} = this;
    unfinished.next = Number(message.position) + message.payloadLength;
    unfinished.written ??= Number(message.position);
    if (ends && unfinished.next < unfinished.end && this.receiving.facts.filesize !== null) {
      this.abandon();
      throw badFacts('END before the end of the block');
    }
    unfinished.digest = ends ? message.digest : null;
    if (message.payloadLength === 0 && ends) await this.endBlock();
  }

  async onBytes(bytes, last) {
    const {unfinished} = this;
    if (unfinished === null || this.isTooLate) return;
    if (unfinished.mode === 'write') {
      const {part} = this.receiving;
      unfinished.writing = part.write(unfinished.written, bytes);
      await unfinished.writing;
      unfinished.hash.update(bytes);
    }
    unfinished.written += bytes.length;
    if (unfinished.mode === 'write') this.receiving.part.prefixes.set(unfinished.blockno, unfinished.written - unfinished.start);
    if (last && unfinished.digest !== null) await this.endBlock();
  }

  async endBlock() {
    const {receiving, unfinished} = this;
    const {blockno, mode, digest} = unfinished;
    this.unfinished = null;
    if (receiving.owners.get(blockno) === unfinished) receiving.owners.delete(blockno);
    if (mode === 'lost') return;
    const known = receiving.digestOf(blockno);
    if (known !== undefined) {
      if (known !== digest) throw new Refusal('SOURCE_CHANGED', `block ${blockno} is held with another digest`);
      if (receiving.part.held.has(blockno)) this.acknowledge();
      return;
    }
    receiving.part.prefixes.delete(blockno);
    if (mode !== 'write' || unfinished.hash.digest() !== digest) {
      this.connection.refuse(this.stream, new Refusal('DIGEST_MISMATCH', `block ${blockno} arrived damaged`, {blockno}));
      return;
    }
    await this.noteShort(unfinished);
    receiving.verified.set(blockno, digest);
    receiving.settle();
  }

  async noteShort({blockno, start, written}) {
    const {receiving} = this;
    if (receiving.facts.filesize !== null || written - start === BLOCK) return;
    const behind = [...receiving.part.held.keys(), ...receiving.verified.keys()].some((other) => other > blockno);
    if (written === start || behind || receiving.lastShort !== null) throw badFacts(`block ${blockno} is short and not the last`);
    await receiving.part.note({lastShort: [blockno, written - start]});
  }

  /** What was received of the unfinished block stays as its prefix (BLK-007). */
  abandon() {
    const {unfinished, receiving} = this;
    this.unfinished = null;
    if (unfinished !== null && receiving.owners.get(unfinished.blockno) === unfinished) receiving.owners.delete(unfinished.blockno);
  }

  // --- repair and commit --------------------------------------------------------------------------------------------

  /** DIG-007; what is on its way to be durable is waited for first. */
  async onHave(message) {
    const {receiving} = this;
    await receiving.settling;
    const differing = message.digests.filter(([blockno, digest]) => (receiving.part.held.get(blockno) ?? digest) !== digest);
    if (receiving.finishing === null) await receiving.withdraw(differing.map(([blockno]) => blockno));
    if (!message.flags.includes('MORE')) this.connection.say(this.stream, this.opened());
  }

  onCommit(message) {
    const {receiving} = this;
    const {facts} = receiving;
    const filesize = Number(message.filesize);
    if (message.sourceid !== facts.sourceid && message.sourceid !== this.saidSourceid) throw badFacts('COMMIT names another sourceid');
    if (message.blocknum !== Math.ceil(filesize / BLOCK)) throw badFacts('filesize and blocknum of COMMIT disagree');
    if (facts.filesize !== null && filesize !== facts.filesize) throw badFacts('COMMIT says another filesize than OPEN');
    if (facts.filesize === null) this.judgeSize(filesize, message.blocknum);
    this.commit = message;
    receiving.settle();
  }

  judgeSize(filesize, blocknum) {
    const {receiving} = this;
    const blocknos = [...receiving.part.held.keys(), ...receiving.verified.keys()];
    const short = receiving.lastShort;
    if (blocknos.some((blockno) => blockno >= blocknum)) throw badFacts('there are blocks behind the end that COMMIT says');
    if (short !== null && short[0] * BLOCK + short[1] !== filesize) throw badFacts('the last block does not end where COMMIT says');
    if (short === null && filesize % BLOCK !== 0 && blocknos.includes(blocknum - 1)) throw badFacts('the last block is longer than COMMIT says');
  }
}
