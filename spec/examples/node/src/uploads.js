/**
 * Uploads on the server: OPEN and its judgement, takeover and join, brief files, their end (chapters RES, BLK, COM).
 */
import {FOLDER, ZEROS16, factsOf, hasher} from './blocks.js';
import {Refusal} from './errors.js';
import {judgeName} from './names.js';
import {Lane, Receiving} from './receiving.js';
import {Store, committedMessage, randomId} from './store.js';

const badFacts = (text) => new Refusal('BAD_FACTS', text);

export class Uploads {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    /** @type {Map<string, Receiving>} unfinished uploads by sourceid */ this.open = new Map();
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

  /** The handler of a stream that began with OPEN, judged in the order of RES-005. */
  async onOpen(connection, stream, message) {
    judgeRule(message.if_exists);
    judgeName(message);
    const facts = factsOf(message);
    const receipt = message.sourceid === ZEROS16 ? null : await this.store.receiptOf(message.sourceid);
    if (receipt !== null) return this.answerFromReceipt(connection, stream, message, receipt);
    const former = this.open.get(message.sourceid);
    if (former !== undefined) judgeAgain(former, message, facts);
    await this.store.judgePlace(facts.filename, facts.filetype, message.if_exists);
    await this.store.judgeRoom((facts.filesize ?? 0) - heldBytes(former));
    return this.takeUp(connection, stream, message, facts);
  }

  async answerFromReceipt(connection, stream, message, receipt) {
    if (message.filesize !== null && message.filesize !== BigInt(receipt.filesize))
      throw new Refusal('SOURCE_CHANGED', 'this sourceid was committed with another filesize');
    connection.say(stream, committedMessage(await this.store.confirm(receipt)));
    return null;
  }

  async takeUp(connection, stream, message, facts) {
    if (facts.sourceid === ZEROS16) facts.sourceid = randomId();
    const receiving = this.open.get(facts.sourceid) ?? this.add(facts, this.store.newPart(facts.sourceid));
    const {notes} = receiving.part;
    const takeover = notes.attempt !== undefined && message.attempt > BigInt(notes.attempt);
    const lane = new Lane(receiving, connection, stream, () => this.opened(receiving, connection));
    Object.assign(lane, {saidSourceid: message.sourceid, filetype: message.filetype});
    if (takeover) receiving.endLanes(new Refusal('SUPERSEDED', 'a newer attempt took the upload over', {current: message.attempt}), lane);
    await receiving.part.note({
      attempt: String(message.attempt), ifExists: message.if_exists, mtime: textOf(message.tlvs.MTIME), mode: message.tlvs.MODE ?? null,
      fileId: notes.fileId ?? randomId(), expiresMs: Store.expiry(),
    });
    connection.say(stream, lane.opened());
    lane.saidOpened = true;
    return lane;
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
    if (!part.begun) await part.begin(facts);
    const receipt = await this.store.commit({
      ...facts, fileId: notes.fileId, root: commit.root, filesize: Number(commit.filesize), ifExists: notes.ifExists,
      mtime: commit.tlvs.MTIME ?? bigOf(notes.mtime), mode: commit.tlvs.MODE ?? notes.mode,
    }, part);
    if (facts.filetype === FOLDER) await part.discard();
    this.open.delete(facts.sourceid);
    return committedMessage(receipt);
  }

  /** CANCEL on a stream of an upload (COM-016 to COM-018). */
  async onCancel(lane, message) {
    const {receiving} = lane;
    if (receiving.finishing !== null) return;
    lane.abandon();
    if (message.flags.includes('DISCARD')) await this.discard(receiving, lane);
    else throw new Refusal('CANCELLED', 'the transfer was cancelled');
  }

  /** Throws an upload away, durably; then its streams are told. Too late while it is being committed. */
  async discard(receiving, lane = null) {
    const refusal = new Refusal('CANCELLED', 'the upload was discarded');
    receiving.finishing = Promise.resolve();
    this.open.delete(receiving.facts.sourceid);
    receiving.endLanes(refusal, lane);
    await receiving.settling;
    await receiving.part.discard();
    if (lane !== null) throw refusal;
  }

  /** REMOVE of kind 2 (LST-013). */
  async remove(sourceid) {
    const receiving = this.open.get(sourceid);
    if (receiving === undefined || receiving.finishing !== null) throw new Refusal('UNKNOWN_UPLOAD', 'there is no such upload');
    await this.discard(receiving);
  }

  /** RES-022, by a timer. */
  async expire() {
    for (const receiving of [...this.open.values()])
      if (receiving.lanes.size === 0 && receiving.part.notes.expiresMs < Date.now()) await this.discard(receiving);
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
    for (const receiving of this.open.values()) {
      await Promise.all([...receiving.lanes].map((lane) => lane.stream.work));
      await receiving.left;
      await receiving.part.close();
    }
  }

  /** GOAWAY: what has no stream any more is recorded; the rest as its streams end (END-010). */
  async recordAll() {
    for (const receiving of this.open.values()) {
      await receiving.settling;
      if (receiving.finishing === null) await receiving.part.recordPrefixes();
    }
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

  async onBytes(bytes, last) {
    if (this.part === null) {
      this.part = this.uploads.store.newPart(`brief-${randomId()}`);
      await this.part.beginScratch();
    }
    await this.part.write(this.written, bytes);
    this.hash.update(bytes);
    this.written += bytes.length;
    if (last && this.digest !== null) await this.commit();
  }

  async commit() {
    if (this.hash.digest() !== this.digest) throw new Refusal('DIGEST_MISMATCH', 'the file arrived damaged', {scope: 2, blockno: 0});
    const {store} = this.uploads;
    const {facts, digest} = this;
    const receipt = facts.sourceid === ZEROS16 ? null : await store.receiptOf(facts.sourceid);
    if (receipt !== null) return this.answerFromReceipt(receipt);
    if (this.place !== undefined) throw this.place;
    const sourceid = facts.sourceid === ZEROS16 ? randomId() : facts.sourceid;
    const former = this.uploads.open.get(sourceid);
    const fileId = former?.part.notes.fileId ?? randomId();
    if (this.part === null) {
      this.part = store.newPart(`brief-${randomId()}`);
      await this.part.beginScratch();
    }
    const fresh = await store.commit({...facts, sourceid, fileId, root: digest, ...this.options}, this.part);
    if (former !== undefined) await this.endFormer(former, fresh);
    this.connection.say(this.stream, committedMessage(fresh));
    return undefined;
  }

  async answerFromReceipt(receipt) {
    if (receipt.root !== this.digest || receipt.filesize !== this.facts.filesize)
      throw new Refusal('SOURCE_CHANGED', 'this sourceid was committed with other bytes');
    this.connection.say(this.stream, committedMessage(await this.uploads.store.confirm(receipt)));
  }

  /** BLK-019: an unfinished upload of this sourceid ends with the brief file's commit. */
  async endFormer(former, receipt) {
    this.uploads.open.delete(former.facts.sourceid);
    former.finishing = Promise.resolve();
    for (const lane of [...former.lanes]) lane.connection.say(lane.stream, committedMessage(receipt));
    await former.settling;
    await former.part.discard();
  }

  async onEnd() {
    if (this.part !== null) await this.part.discard(false);
  }
}
