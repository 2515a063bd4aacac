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
 *
 * Several streams use one part at once, and one of them may end it meanwhile. Whoever ends it (`close`, `discard`,
 * `finishAs`) waits for what has begun, and nothing begins afterwards: it is refused with CANCELLED, for a stream that has
 * nobody to tell by then.
 */
import {constants, existsSync} from 'node:fs';
import {open, rename, unlink} from 'node:fs/promises';
import path from 'node:path';
import {Refusal} from './errors.js';
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
    /** @type {Set<Promise<any>>} what runs on the files now */ this.working = new Set();
    this.beginning = null;
    this.closed = false;
    this.discarding = null;
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
    Object.assign(part, await openBoth(where, size));
    return part;
  }

  apply(line) {
    if (line.begin) this.facts = line.begin;
    for (const [blockno, digest] of line.held ?? []) this.held.set(blockno, digest);
    for (const blockno of line.withdrawn ?? []) this.held.delete(blockno);
    if (line.prefixes) this.prefixes = new Map(line.prefixes);
    Object.assign(this.notes, line.note);
  }

  /** Whether the files are there. Both are from the same moment on: who sees the one may append to the other. */
  get begun() {
    return this.file !== null;
  }

  /** Everything that touches the files runs in here, but for what ends them. */
  async use(work) {
    if (this.closed) throw new Refusal('CANCELLED', 'the transfer has ended');
    const done = work();
    this.working.add(done);
    try {
      return await done;
    } finally {
      this.working.delete(done);
    }
  }

  /** Makes the files, once, with the first byte that comes; later calls wait for the first, or try again if it failed. */
  begin(facts) {
    return this.beginBy(() => this.makeFiles(facts));
  }

  /** Makes the part alone, for a brief file: nothing is recorded of it, and after a crash it is swept away. */
  beginScratch() {
    return this.beginBy(async () => (this.file = await openPart(this.where)));
  }

  beginBy(work) {
    this.beginning ??= this.begun ? Promise.resolve() : this.use(work).catch((error) => {
      this.beginning = null;
      throw error;
    });
    return this.beginning;
  }

  async makeFiles(facts) {
    Object.assign(this, {facts, ...await openBoth(this.where, 0)});
    try {
      await this.ledger.append({begin: facts, note: this.notes});
      await syncFolder(path.dirname(this.where));
    } catch (error) {
      await this.letGo();
      throw error;
    }
  }

  /** Not durable before `hold` or `recordPrefixes`. */
  write(position, bytes) {
    return this.use(async () => {
      let done = 0;
      while (done < bytes.length) done += (await this.file.write(bytes, done, bytes.length - done, position - this.base + done)).bytesWritten;
    });
  }

  read(position, length) {
    return this.use(() => readExactly(this.file, position - this.base, length));
  }

  /** Blocks whose bytes are written become durable, and then held. */
  hold(entries) {
    return this.use(async () => {
      await this.file.datasync();
      await this.ledger.append({held: entries});
      for (const [blockno, digest] of entries) {
        this.held.set(blockno, digest);
        this.prefixes.delete(blockno);
      }
    });
  }

  /** Blocks that are not what the sender has: forgotten, durably (DIG-007). */
  async withdraw(blocknos) {
    if (blocknos.length === 0) return;
    await this.use(() => this.ledger.append({withdrawn: blocknos}));
    for (const blockno of blocknos) this.held.delete(blockno);
  }

  /** Facts of the upload that may change: attempt, expiry, name when taken. Durable if the files are there already; else
   *  they are in the first line of the ledger. */
  note(values) {
    Object.assign(this.notes, values);
    return this.use(async () => this.begun && this.ledger.append({note: values}));
  }

  recordPrefixes() {
    return this.use(async () => {
      if (!this.begun) return;
      await this.file.datasync();
      await this.ledger.append({prefixes: [...this.prefixes]});
    });
  }

  /** Lets go of the files and leaves them where they are. */
  async close() {
    this.closed = true;
    await Promise.allSettled(this.working);
    await this.letGo();
  }

  async letGo() {
    const {file, ledger} = this;
    this.file = this.ledger = null;
    await file?.close();
    await ledger?.close();
  }

  /**
   * Removes both files; the ledger first, so that nothing is ever found that has no bytes. `durably` false: after a
   * commit, whose receipt outlives what may come back of them.
   */
  discard(durably = true) {
    this.discarding ??= this.remove(durably);
    return this.discarding;
  }

  async remove(durably) {
    await this.close();
    await unlink(`${this.where}.ledger`).catch(missing());
    await unlink(`${this.where}.part`).catch(missing());
    if (durably) await syncFolder(path.dirname(this.where));
  }

  /** Gives the part its final name (a download's; the server's store does it its own way). The ledger goes first: one
   *  that outlived its bytes would speak of bytes that are not there. */
  async finishAs(target) {
    await this.use(async () => {
      await this.file.sync();
      await unlink(`${this.where}.ledger`);
      await syncFolder(path.dirname(this.where));
      await rename(`${this.where}.part`, target);
      await syncFolder(path.dirname(target));
    });
    await this.close();
  }
}

const openPart = (where) => open(`${where}.part`, constants.O_RDWR | constants.O_CREAT, 0o644);

/** Both files of a part; the ledger's whole lines are its first `ledgerSize` bytes, and where there are none, no byte counts. */
async function openBoth(where, ledgerSize) {
  const file = await openPart(where);
  try {
    if (ledgerSize === 0) await file.truncate(0);
    return {file, ledger: await Lines.open(`${where}.ledger`, ledgerSize)};
  } catch (error) {
    await file.close();
    throw error;
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
