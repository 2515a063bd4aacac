/**
 * What the server keeps: finished files in the served folder, and everything else in `.blockproto/node` beside them.
 *
 *   uploads/SOURCEID.part, .ledger     unfinished uploads (partfile.js)
 *   receipts                           one line of JSON for each commit
 *   incarnation                        a number that was drawn when the store was made
 *
 * A commit is: sync the bytes → append the receipt, sync → give the file its name → sync its folder → COMMITTED. The
 * receipt comes before the name, and counts only while the file it names is there as it says (same inode, size, time).
 * So a crash between the two leaves either an upload that is complete, or a file with its receipt; never both, never a
 * second copy.
 */
import {randomBytes} from 'node:crypto';
import {constants, existsSync, readFileSync} from 'node:fs';
import {link, lstat, mkdir, open, readFile, readdir, rename, statfs, unlink, writeFile} from 'node:fs/promises';
import path from 'node:path';
import {FOLDER, ZEROS16} from './blocks.js';
import {Refusal} from './errors.js';
import {Folder, statOf} from './folder.js';
import {InTurn} from './inturn.js';
import {Lines, missing} from './lines.js';
import {PartFile, syncFolder} from './partfile.js';

const EXPIRES_MS = 30 * 24 * 3600 * 1000;
const RECEIPTS_MS = 30 * 24 * 3600 * 1000;

export const randomId = () => randomBytes(16).toString('hex');

export class Store {
  constructor(folder) {
    this.folder = folder;
    this.state = path.join(folder.root, '.blockproto', 'node');
    this.uploadsFolder = path.join(this.state, 'uploads');
    /** @type {Map<string, object>} sourceid → receipt */ this.receipts = new Map();
    /** @type {Map<string, string>} filename → sourceid of the receipt that speaks of it */ this.byName = new Map();
    /** Commits of one name follow each other. */ this.naming = new InTurn();
  }

  /** Opens the store of a folder, making it where there is none. One process at a time. */
  static async open(root) {
    const store = new Store(await Folder.open(root));
    await mkdir(store.uploadsFolder, {recursive: true});
    await store.lock();
    await store.readReceipts();
    store.incarnation = await store.readIncarnation();
    await syncFolder(store.state);
    await syncFolder(root);
    return store;
  }

  /** A file with our process id. One that a dead process left is taken over. */
  async lock() {
    const where = path.join(this.state, 'pid');
    const pid = existsSync(where) ? Number(readFileSync(where, 'utf8')) : 0;
    if (pid > 0 && pid !== process.pid && isAlive(pid)) throw new Error(`the folder is served by process ${pid} already`);
    await writeFile(where, String(process.pid));
  }

  async close() {
    await this.receiptLines.close();
    await this.folder.handle.close();
  }

  async readIncarnation() {
    const where = path.join(this.state, 'incarnation');
    const text = await readFile(where, 'utf8').catch(missing(''));
    if (text.endsWith('\n')) return BigInt(text);
    const drawn = BigInt(Date.now());
    const handle = await open(where, 'w');
    await handle.write(`${drawn}\n`);
    await handle.sync();
    await handle.close();
    return drawn;
  }

  // --- receipts -----------------------------------------------------------------------------------------------------

  /** Reads the receipts, and writes them anew without what is old, replaced or torn. */
  async readReceipts() {
    const where = path.join(this.state, 'receipts');
    for (const receipt of (await Lines.read(where)).objects) this.keepReceipt(receipt);
    const young = [...this.receipts.values()].filter((receipt) => Date.now() - receipt.at < RECEIPTS_MS);
    this.receiptLines = await Lines.open(`${where}.new`, 0);
    await Promise.all(young.map((receipt) => this.receiptLines.append(receipt)));
    await rename(`${where}.new`, where);
  }

  keepReceipt(receipt) {
    this.receipts.set(receipt.sourceid, receipt);
    this.byName.set(receipt.storedAs, receipt.sourceid);
  }

  /** The receipt of an upload while it counts (COM-011), else null. */
  async receiptOf(sourceid) {
    const receipt = this.receipts.get(sourceid);
    if (receipt === undefined) return null;
    return isAsCommitted(receipt, await this.folder.stat(receipt.storedAs)) ? receipt : null;
  }

  /** The receipt of the file called `filename`, which has this stat; null if it did not come by blockproto as it is. */
  receiptFor(filename, stat) {
    const receipt = this.receipts.get(this.byName.get(filename));
    return receipt !== undefined && isAsCommitted(receipt, stat) ? receipt : null;
  }

  /** The name of the file with this id, or UNKNOWN_FILE. */
  async nameOf(fileId) {
    for (const receipt of this.receipts.values())
      if (receipt.fileId === fileId && (await this.receiptOf(receipt.sourceid)) !== null) return receipt.storedAs;
    throw new Refusal('UNKNOWN_FILE', 'there is no file of that id');
  }

  // --- unfinished uploads -------------------------------------------------------------------------------------------

  /** The parts of all unfinished uploads on the disk; what has expired or was committed is removed. */
  async loadParts() {
    const parts = [];
    for (const name of await readdir(this.uploadsFolder)) {
      const sourceid = name.split('.')[0];
      if (name.endsWith('.part') && !existsSync(path.join(this.uploadsFolder, `${sourceid}.ledger`)))
        await unlink(path.join(this.uploadsFolder, name));
      if (!name.endsWith('.ledger')) continue;
      const part = await PartFile.load(path.join(this.uploadsFolder, sourceid));
      if (part.facts === null || part.notes.expiresMs < Date.now() || (await this.receiptOf(sourceid)) !== null) await part.discard();
      else parts.push(part);
    }
    return parts;
  }

  newPart(sourceid) {
    return new PartFile(path.join(this.uploadsFolder, sourceid), 0);
  }

  static expiry() {
    return Date.now() + EXPIRES_MS;
  }

  async judgeRoom(bytes) {
    const {bavail, bsize} = await statfs(this.state);
    if (bytes > bavail * bsize) throw new Refusal('STORE_FULL', `there is no room for ${bytes} bytes`);
  }

  /** What OPEN can be told about its name before any byte (RES-005, COM-012, COM-020). */
  async judgePlace(filename, filetype, ifExists) {
    const above = filename.split('/').slice(0, -1);
    for (let depth = 1; depth <= above.length; depth++) {
      const stat = await this.folder.stat(above.slice(0, depth).join('/'));
      if (stat !== null && !stat.isDirectory()) throw notPermitted('a folder above the name is a file');
    }
    const stat = await this.folder.stat(filename);
    if (stat !== null) judgeTaken(stat, filetype, ifExists);
  }

  // --- commit -------------------------------------------------------------------------------------------------------

  /**
   * Gives a complete file its name (COM-005, COM-006, COM-012 to COM-014).
   * @param {object} upload sourceid, fileId, filename, filetype, root, filesize, ifExists, mtime (ns or null), mode
   * @param {import('./partfile.js').PartFile} part
   * @returns {Promise<object>} its receipt
   */
  commit(upload, part) {
    return this.naming.run(upload.filename, () => (upload.filetype === FOLDER ? this.makeFolder(upload) : this.nameFile(upload, part)));
  }

  async nameFile(upload, part) {
    await setFacts(part.file, upload);
    await part.file.sync();
    const stat = await part.file.stat({bigint: true});
    const {filename, filetype, ifExists} = upload;
    return this.folder.reach(filename, notPermitted('a folder above the name is a file'), async (where, name, handle) => {
      const folder = path.dirname(where);
      for (let turn = 0; ; turn++) {
        const wanted = turn === 0 ? name : numbered(name, turn);
        const taken = await statOf(path.join(folder, wanted));
        if (taken !== null) {
          judgeTaken(taken, filetype, ifExists);
          if (ifExists === 0) continue;
        }
        const storedAs = filename.slice(0, filename.length - name.length) + wanted;
        const receipt = await this.record(upload, storedAs, stat);
        if (taken !== null) await rename(`${part.where}.part`, path.join(folder, wanted));
        else if (!(await linkIfFree(`${part.where}.part`, path.join(folder, wanted)))) continue;
        await handle.sync();
        this.keepReceipt(receipt);
        await part.discard(false);
        return receipt;
      }
    }, true);
  }

  async makeFolder(upload) {
    const {filename} = upload;
    return this.folder.reach(filename, notPermitted('a folder above the name is a file'), async (where, _name, handle) => {
      await mkdir(where).catch((error) => { if (error.code !== 'EEXIST') throw error; });
      if (!(await lstat(where)).isDirectory()) throw new Refusal('FILE_EXISTS', 'the name is taken by a file');
      const folder = await open(where, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
      try {
        await setFacts(folder, upload);
        await folder.sync();
        await handle.sync();
        const receipt = await this.record(upload, filename, await folder.stat({bigint: true}));
        this.keepReceipt(receipt);
        return receipt;
      } finally {
        await folder.close();
      }
    }, true);
  }

  /** One receipt, durable. */
  async record(upload, storedAs, stat) {
    const receipt = {
      sourceid: upload.sourceid, fileId: upload.fileId, root: upload.root, filesize: upload.filesize, filetype: upload.filetype,
      storedAs, at: Date.now(), ino: String(stat.ino), mtimeNs: String(stat.mtimeNs), mtime: upload.mtime === null ? null : String(upload.mtime),
    };
    await this.receiptLines.append(receipt);
    return receipt;
  }

  /** An upload answered from its receipt: its name is durable only now, if a crash came between name and folder. */
  async confirm(receipt) {
    await this.folder.within(receipt.storedAs, (_where, _name, handle) => handle.sync());
    return receipt;
  }
}

/** A second name for a file, unless that name is taken; whether it was free. */
async function linkIfFree(where, wanted) {
  try {
    await link(where, wanted);
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
    return false;
  }
}

/** Whether a receipt's file is there as it was committed (COM-011). A folder's time changes with its entries. */
function isAsCommitted(receipt, stat) {
  if (stat === null || String(stat.ino) !== receipt.ino) return false;
  if (receipt.filetype === FOLDER) return stat.isDirectory();
  return stat.isFile() && stat.size === BigInt(receipt.filesize) && String(stat.mtimeNs) === receipt.mtimeNs;
}

/** COM-013, for a name that is taken by an entry with this stat. */
function judgeTaken(stat, filetype, ifExists) {
  if (filetype === FOLDER) {
    if (!stat.isDirectory()) throw new Refusal('FILE_EXISTS', 'the name is taken by a file');
  } else if (ifExists === 1) throw new Refusal('FILE_EXISTS', 'the name is taken');
  else if (ifExists === 2 && stat.isDirectory()) throw notPermitted('the name is taken by a folder');
}

const notPermitted = (text) => new Refusal('NOT_PERMITTED', text);

/** Node sets times as floating point seconds, some 200 ns coarse; the receipt keeps the exact one for listings. */
async function setFacts(handle, {mtime, mode}) {
  if (mode !== null) await handle.chmod(mode & 0o777);
  if (mtime !== null) await handle.utimes(Date.now() / 1000, Number(mtime) / 1e9);
}

/** The wanted name with ` (n)` before its ending, cut so that it stays a component (COM-014). */
function numbered(name, n) {
  const ending = /^.+?(\.[^.]{1,16})$/u.exec(name)?.[1] ?? '';
  let stem = name.slice(0, name.length - ending.length);
  while (Buffer.byteLength(`${stem} (${n})${ending}`) > 255) stem = [...stem].slice(0, -1).join('');
  return `${stem} (${n})${ending}`;
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** A committed upload as a message. */
export const committedMessage = (receipt) => ({
  message: 'COMMITTED', sourceid: receipt.sourceid ?? ZEROS16, file_id: receipt.fileId, root: receipt.root,
  filesize: BigInt(receipt.filesize), stored_as: receipt.storedAs, tlvs: receipt.b3sum ? {B3SUM: receipt.b3sum} : {},
});
