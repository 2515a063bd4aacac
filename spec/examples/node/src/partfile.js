/**
 * One unfinished file on the disk: `PATH.part` with its bytes, `PATH.ledger` with what is known about them.
 *
 * The ledger is lines of JSON, only ever appended to: {"begin": facts}, {"held": [[blockno, digest] …]},
 * {"withdrawn": [blockno …]}, {"prefixes": [[blockno, bytes] …]}, {"note": {…}}. The order is the whole trick:
 *
 *   write the bytes → sync them → append to the ledger → sync that → only now may anybody be told
 *
 * So after any crash, whatever the ledger says is true of the bytes. A last line that is torn was never told to anybody
 * and is cut off.
 */
import {constants, existsSync} from 'node:fs';
import {open, rename, unlink} from 'node:fs/promises';
import path from 'node:path';
import {Lines, missing} from './lines.js';

export class PartFile {
  constructor(where, base) {
    this.where = where;
    this.base = base;
    this.facts = null;
    /** @type {Map<number, string>} blockno → digest */ this.held = new Map();
    /** @type {Map<number, number>} blockno → bytes that are there */ this.prefixes = new Map();
    this.notes = {};
    this.file = null;
    this.ledger = null;
    this.discarded = false;
  }

  /**
   * What is on the disk at `where`, or nothing yet: files are made by `begin`.
   * @param {string} where without `.part`
   * @param {number} [base] the position in the file of the first byte of the part
   */
  static async load(where, base = 0) {
    const part = new PartFile(where, base);
    const {objects, size} = await Lines.read(`${where}.ledger`);
    for (const line of objects) part.apply(line);
    if (part.facts === null) return part;
    if (!existsSync(`${where}.part`)) return new PartFile(where, base);
    await part.openFiles(size);
    return part;
  }

  apply(line) {
    if (line.begin) this.facts = line.begin;
    for (const [blockno, digest] of line.held ?? []) this.held.set(blockno, digest);
    for (const blockno of line.withdrawn ?? []) this.held.delete(blockno);
    if (line.prefixes) this.prefixes = new Map(line.prefixes);
    Object.assign(this.notes, line.note);
  }

  get begun() {
    return this.file !== null;
  }

  async openFiles(ledgerSize) {
    this.file = await open(`${this.where}.part`, constants.O_RDWR | constants.O_CREAT, 0o644);
    this.ledger = await Lines.open(`${this.where}.ledger`, ledgerSize);
  }

  /** Makes the files, once, with the first byte that comes; later calls wait for the first. */
  begin(facts) {
    this.beginning ??= this.begun ? Promise.resolve() : this.makeFiles(facts);
    return this.beginning;
  }

  /** Makes the part alone, for a brief file: nothing is recorded of it, and after a crash it is swept away. */
  beginScratch() {
    this.beginning ??= open(`${this.where}.part`, constants.O_RDWR | constants.O_CREAT, 0o644).then((file) => (this.file = file));
    return this.beginning;
  }

  async makeFiles(facts) {
    this.facts = facts;
    await this.openFiles(0);
    await this.file.truncate(0);
    await this.append({begin: facts, note: this.notes});
    await syncFolder(path.dirname(this.where));
  }

  /** One line, durable when this returns. */
  append(line) {
    return this.ledger.append(line);
  }

  /** Not durable before `hold` or `recordPrefixes`. */
  async write(position, bytes) {
    let done = 0;
    while (done < bytes.length) done += (await this.file.write(bytes, done, bytes.length - done, position - this.base + done)).bytesWritten;
  }

  async read(position, length) {
    return readExactly(this.file, position - this.base, length);
  }

  /** Blocks whose bytes are written become durable, and then held. */
  async hold(entries) {
    await this.file.datasync();
    await this.append({held: entries});
    for (const [blockno, digest] of entries) {
      this.held.set(blockno, digest);
      this.prefixes.delete(blockno);
    }
  }

  /** Blocks that are not what the sender has: forgotten, durably (DIG-007). */
  async withdraw(blocknos) {
    if (blocknos.length === 0) return;
    await this.append({withdrawn: blocknos});
    for (const blockno of blocknos) this.held.delete(blockno);
  }

  /** Facts of the upload that may change: attempt, expiry, name when taken. Durable if the files are there already. */
  async note(values) {
    Object.assign(this.notes, values);
    if (this.begun) await this.append({note: values});
  }

  async recordPrefixes() {
    if (!this.begun) return;
    await this.file.datasync();
    await this.append({prefixes: [...this.prefixes]});
  }

  async close() {
    await this.file?.close();
    await this.ledger?.close();
    this.file = this.ledger = null;
  }

  /**
   * Removes both files; the ledger first, so that nothing is ever found that has no bytes. `durably` false: after a
   * commit, whose receipt outlives what may come back of them.
   */
  async discard(durably = true) {
    if (this.discarded) return;
    this.discarded = true;
    await this.close();
    await unlink(`${this.where}.ledger`).catch(missing());
    await unlink(`${this.where}.part`).catch(missing());
    if (durably) await syncFolder(path.dirname(this.where));
  }

  /** Gives the part its final name (a download's; the server's store does it its own way). The ledger goes first: one
   *  that outlived its bytes would speak of bytes that are not there. */
  async finishAs(target) {
    await this.file.sync();
    await unlink(`${this.where}.ledger`);
    await syncFolder(path.dirname(this.where));
    await rename(`${this.where}.part`, target);
    await syncFolder(path.dirname(target));
    await this.close();
  }
}

/** Names in a folder are durable when this returns. */
export async function syncFolder(folder) {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Exactly `length` bytes, or an error that says the file is shorter. */
export async function readExactly(handle, position, length) {
  const bytes = Buffer.alloc(length);
  let done = 0;
  while (done < length) {
    const {bytesRead} = await handle.read(bytes, done, length - done, position + done);
    if (bytesRead === 0) return bytes.subarray(0, done);
    done += bytesRead;
  }
  return bytes;
}
