/**
 * Uploads on the server: OPEN and its judgement, takeover and join, brief files, their end (chapters RES, BLK, COM).
 *
 * What streams ask of one sourceid (OPEN, CANCEL with DISCARD, REMOVE, a brief file) is judged in turn, so that nothing
 * that was looked up has changed when it is acted upon. The bytes, their syncs and the commits of unfinished uploads have
 * no turn: a takeover does not wait for them (RES-010), and who needs a commit to have ended waits by `finished`.
 */
import {FOLDER, ZEROS16, factsOf, hasher} from './blocks.js';
import {Refusal} from './errors.js';
import {InTurn} from './inturn.js';
import {judgeName} from './names.js';
import {Lane, Receiving} from './receiving.js';
import {Store, committedMessage, randomId} from './store.js';

const badFacts = (text) => new Refusal('BAD_FACTS', text);

export class Uploads {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    /** @type {Map<string, Receiving>} unfinished uploads by sourceid */ this.open = new Map();
    this.turns = new InTurn();
  }

  /** Takes up what is on the disk. */
  async load() {
    for (const part of await this.store.loadParts()) this.add(part.facts, part);
  }

  add(facts, part) {
    const receiving = new Receiving(facts, part, {first: 0, end: facts.filesize}, (commit) => this.finish(receiving, commit));
    this.open.set(facts.sourceid, receiving);
    return receiving;
  }

  // --- OPEN ---------------------------------------------------------------------------------------------------------

  /** The lane of a stream that began with OPEN, judged in the order of RES-005; null if a receipt was the answer. */
  async onOpen(connection, stream, message) {
    judgeRule(message.if_exists);
    judgeName(message);
    const facts = factsOf(message);
    if (facts.sourceid === ZEROS16) facts.sourceid = randomId();
    return this.turns.run(facts.sourceid, () => this.judge(connection, stream, message, facts));
  }

  async judge(connection, stream, message, facts) {
    for (;;) {
      const {receipt, former} = await this.find(facts.sourceid);
      if (receipt !== null) return this.answerFromReceipt(connection, stream, message, receipt);
      if (former !== undefined) judgeAgain(former, message, facts);
      await this.store.judgePlace(facts.filename, facts.filetype, message.if_exists);
      await this.store.judgeRoom((facts.filesize ?? 0) - heldBytes(former));
      if (this.isStill(facts.sourceid, former)) return this.takeUp(connection, stream, message, facts);
    }
  }

  /** The receipt of a sourceid, or its unfinished upload, of which no commit runs, or neither. */
  async find(sourceid) {
    for (;;) {
      const former = this.open.get(sourceid);
      await former?.finished();
      const receipt = await this.store.receiptOf(sourceid);
      if (receipt !== null || this.isStill(sourceid, former)) return {receipt, former};
    }
  }

  /** Whether that is the unfinished upload of a sourceid; a commit may have begun and ended since it was looked up. */
  isStill(sourceid, former) {
    return this.open.get(sourceid) === former && (former?.finishing ?? null) === null;
  }

  async answerFromReceipt(connection, stream, message, receipt) {
    if (message.filesize !== null && message.filesize !== BigInt(receipt.filesize))
      throw new Refusal('SOURCE_CHANGED', 'this sourceid was committed with another filesize');
    connection.say(stream, committedMessage(await this.store.confirm(receipt)));
    return null;
  }

  /** Takeover, join or beginning, all in one step; `answer` says OPENED. */
  takeUp(connection, stream, message, facts) {
    const receiving = this.open.get(facts.sourceid) ?? this.add(facts, this.store.newPart(facts.sourceid));
    const {notes} = receiving.part;
    const takeover = notes.attempt !== undefined && message.attempt > BigInt(notes.attempt);
    const lane = new Lane(receiving, connection, stream, () => this.opened(receiving, connection));
    Object.assign(lane, {saidSourceid: message.sourceid, filetype: message.filetype});
    if (takeover) receiving.endLanes(new Refusal('SUPERSEDED', 'a newer attempt took the upload over', {current: message.attempt}), lane);
    lane.noted = receiving.part.note({
      attempt: String(message.attempt), ifExists: message.if_exists, mtime: textOf(message.tlvs.MTIME), mode: message.tlvs.MODE ?? null,
      fileId: notes.fileId ?? randomId(), expiresMs: Store.expiry(),
    });
    return lane;
  }

  /** OPENED, when what it says is durable. */
  async answer(lane) {
    await lane.noted;
    lane.connection.say(lane.stream, lane.opened());
    lane.saidOpened = true;
  }

  opened(receiving, connection) {
    const {notes, facts} = {notes: receiving.part.notes, facts: receiving.facts};
    return {
      message: 'OPENED', sourceid: facts.sourceid, file_id: notes.fileId, attempt: BigInt(notes.attempt),
      incarnation: this.store.incarnation, expires_ms: BigInt(notes.expiresMs), ...receiving.opened(connection.session.peer.head_length_max),
    };
  }

  /** RES-004: an upload without a byte does not outlive its last stream. */
  forgetIfEmpty(receiving) {
    const {sourceid} = receiving.facts;
    if (receiving.lanes.size === 0 && !receiving.part.begun && this.open.get(sourceid) === receiving) this.open.delete(sourceid);
  }

  // --- ends ---------------------------------------------------------------------------------------------------------

  async finish(receiving, commit) {
    const {facts, part} = receiving;
    const {notes} = part;
    await part.begin(facts);
    const receipt = await this.store.commit({
      ...facts, fileId: notes.fileId, root: commit.root, filesize: Number(commit.filesize), ifExists: notes.ifExists,
      mtime: commit.tlvs.MTIME ?? bigOf(notes.mtime), mode: commit.tlvs.MODE ?? notes.mode,
    }, part);
    if (facts.filetype === FOLDER) await part.discard();
    this.open.delete(facts.sourceid);
    return committedMessage(receipt);
  }

  /** CANCEL on a stream of an upload (COM-016 to COM-018). If it was too late the stream has ended with COMMITTED. */
  async onCancel(lane, message) {
    const {receiving} = lane;
    const discards = message.flags.includes('DISCARD');
    lane.abandon();
    if (discards) await this.turns.run(receiving.facts.sourceid, async () => !lane.dismissed && this.discard(receiving, lane));
    await receiving.finished();
    throw new Refusal('CANCELLED', discards ? 'the upload was discarded' : 'the transfer was cancelled');
  }

  /**
   * Throws an upload away, durably, when it has its turn. Its streams are told but for that of `lane`, which asked.
   * @returns {Promise<boolean>} false if it was committed or thrown away before
   */
  async discard(receiving, lane = null) {
    await receiving.finished();
    if (receiving.over) return false;
    receiving.over = true;
    this.open.delete(receiving.facts.sourceid);
    receiving.endLanes(new Refusal('CANCELLED', 'the upload was discarded'), lane);
    await receiving.settling;
    await receiving.part.discard();
    return true;
  }

  /** REMOVE of kind 2 (LST-013). */
  async remove(sourceid) {
    const discarded = await this.turns.run(sourceid, async () => this.open.has(sourceid) && this.discard(this.open.get(sourceid)));
    if (!discarded) throw new Refusal('UNKNOWN_UPLOAD', 'there is no such upload');
  }

  /** RES-022, by a timer. */
  async expire() {
    const hasExpired = ({lanes, part}) => lanes.size === 0 && part.notes.expiresMs < Date.now();
    for (const [sourceid, receiving] of [...this.open])
      if (hasExpired(receiving)) await this.turns.run(sourceid, async () => hasExpired(receiving) && this.discard(receiving));
  }

  /** Items of RESULT kind 2, in the order of their sourceids: what is held or recorded (LST-005). */
  items() {
    const begun = [...this.open.values()].filter((receiving) => receiving.part.begun);
    return begun.map((receiving) => {
      const {facts, part} = receiving;
      return {
        sourceid: facts.sourceid, file_id: part.notes.fileId, filesize: facts.filesize === null ? null : BigInt(facts.filesize),
        blocknum: facts.blocknum, position: BigInt(receiving.position()), held_count: part.held.size,
        expires_ms: BigInt(part.notes.expiresMs), filename: facts.filename, filetype: facts.filetype,
      };
    }).sort((a, b) => (a.sourceid < b.sourceid ? -1 : 1));
  }

  /** Lets go of the files of unfinished uploads, when their streams have ended. */
  async close() {
    for (const receiving of this.open.values()) await receiving.part.close();
  }
}

/** skip and update belong to a feature that this server does not have (FRM-019). */
function judgeRule(ifExists) {
  if (ifExists > 2) throw new Refusal('UNSUPPORTED', `there is no if_exists ${ifExists}`);
}

/** What an OPEN of an upload that was begun is judged by: attempt, then facts (RES-006, RES-007). */
function judgeAgain(former, message, facts) {
  const attempt = BigInt(former.part.notes.attempt);
  if (message.attempt < attempt) throw new Refusal('SUPERSEDED', 'a newer attempt has the upload', {current: attempt});
  const begun = former.facts;
  if (facts.filename !== begun.filename || facts.filesize !== begun.filesize || facts.blocknum !== begun.blocknum)
    throw new Refusal('SOURCE_CHANGED', 'the upload was begun with another name or size');
}

const heldBytes = (receiving) => (receiving === undefined ? 0 : receiving.part.held.size * 1048576);
const textOf = (value) => (value === undefined ? null : String(value));
const bigOf = (text) => (text === null || text === undefined ? null : BigInt(text));

/** A file of at most one block without OPEN (BLK-014 to BLK-019): gathered in a part, then committed. */
export class BriefLane {
  constructor(uploads, connection, stream) {
    Object.assign(this, {uploads, connection, stream});
    this.facts = null;
    this.part = null;
  }

  async onMessage(message) {
    if (message.message === 'BLOCK') return this.onBlock(message);
    if (message.message === 'CANCEL') throw new Refusal('CANCELLED', 'the transfer was cancelled');
    if (message.message !== 'PIECE') throw new Error(`our mistake: ${message.message} reached a brief stream`);
    return this.expect(message);
  }

  async onBlock(message) {
    if (this.facts !== null) throw badFacts('a second BLOCK on a brief stream');
    judgeRule(message.tlvs.IF_EXISTS ?? 0);
    judgeName(message);
    this.facts = factsOf(message);
    const {filesize} = this.facts;
    if (filesize === null || filesize > 1048576) throw badFacts('a file without OPEN has at most one block, and a known size');
    if (message.blockno !== 0 || message.position !== 0n) throw badFacts('a file without OPEN begins with block 0 at position 0');
    this.options = {ifExists: message.tlvs.IF_EXISTS ?? 0, mtime: message.tlvs.MTIME ?? null, mode: message.tlvs.MODE ?? null};
    this.hash = hasher();
    Object.assign(this, {next: 0, written: 0});
    await this.uploads.store.judgePlace(this.facts.filename, this.facts.filetype, this.options.ifExists).catch((error) => (this.place = error));
    await this.expect(message);
  }

  async expect(message) {
    const {filesize} = this.facts;
    if (message.position !== BigInt(this.next)) throw badFacts(`PIECE at ${message.position}, not at ${this.next}`);
    this.next += message.payloadLength;
    if (this.next > filesize) throw badFacts('the payload runs past the end of the file');
    const ends = message.flags.includes('END');
    if (ends && !message.flags.includes('COMMIT')) throw badFacts('a file without OPEN ends with COMMIT');
    if (ends && this.next < filesize) throw badFacts('END before the end of the file');
    this.digest = ends ? message.digest : null;
    if (ends && message.payloadLength === 0) await this.commit();
  }

  /** Where its bytes are until the commit. */
  async gather() {
    this.part ??= this.uploads.store.newPart(`brief-${randomId()}`);
    await this.part.beginScratch();
  }

  async onBytes(bytes, last) {
    await this.gather();
    await this.part.write(this.written, bytes);
    this.hash.update(bytes);
    this.written += bytes.length;
    if (last && this.digest !== null) await this.commit();
  }

  async commit() {
    if (this.hash.digest() !== this.digest) throw new Refusal('DIGEST_MISMATCH', 'the file arrived damaged', {scope: 2, blockno: 0});
    await this.gather();
    if (this.facts.sourceid === ZEROS16) this.facts.sourceid = randomId();
    const {sourceid} = this.facts;
    this.connection.say(this.stream, await this.uploads.turns.run(sourceid, () => this.committed(sourceid)));
  }

  /** In its turn: COMMITTED of this file, or of the receipt that there is. */
  async committed(sourceid) {
    const {store} = this.uploads;
    const {receipt, former} = await this.uploads.find(sourceid);
    if (receipt !== null) return this.fromReceipt(receipt);
    if (this.place !== undefined) throw this.place;
    const fileId = former?.part.notes.fileId ?? randomId();
    const finish = async () => committedMessage(await store.commit({...this.facts, fileId, root: this.digest, ...this.options}, this.part));
    return former === undefined ? finish() : this.endFormer(former, finish);
  }

  async fromReceipt(receipt) {
    if (receipt.root !== this.digest || receipt.filesize !== this.facts.filesize)
      throw new Refusal('SOURCE_CHANGED', 'this sourceid was committed with other bytes');
    return committedMessage(await this.uploads.store.confirm(receipt));
  }

  /** BLK-019: an unfinished upload of this sourceid ends with the brief file's commit; if that is refused, it goes on. */
  async endFormer(former, finish) {
    const committed = await former.commit(finish).catch((error) => {
      former.settle();
      throw error;
    });
    this.uploads.open.delete(former.facts.sourceid);
    await former.settling;
    await former.part.discard();
    return committed;
  }

  async onEnd() {
    if (this.part !== null) await this.part.discard(false);
  }
}
