/**
 * Who dials: upload, download, list, remove; and going on after the line broke.
 *
 * The same call again resumes, because everything that names the transfer is derived from it: an upload's sourceid from
 * the server, the target, and the source's path, size, time and inode (RES-002), a download's from where it goes.
 */
import {constants} from 'node:fs';
import {mkdir, open, readFile, rename, writeFile} from 'node:fs/promises';
import {randomBytes} from 'node:crypto';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import {BLOCK, ZEROS16, blocknumOf, digestOf, factsOf, keyedId, runsOf} from './blocks.js';
import {Connection} from './connection.js';
import {ConnectionLost, Refusal} from './errors.js';
import {brokenRule} from './names.js';
import {PartFile, missing, readExactly} from './partfile.js';
import {Lane, Receiving} from './receiving.js';
import {Sending} from './sending.js';

/** Where the secret of this installation and the list of what is unfinished live. */
export const STATE = process.env.BLOCKPROTO_NODE_STATE ?? path.join(os.homedir(), '.local', 'state', 'blockproto-node');

/** Connects; resolves when the TCP connection stands (the greeting is on its way then). */
export function connect(host, port) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({host, port});
    const failed = (error) => reject(new ConnectionLost(`cannot reach ${host}:${port}: ${error.code}`));
    socket.once('error', failed);
    socket.once('connect', () => {
      socket.off('error', failed);
      resolve(new Client(new Connection(socket, 'client'), host, port));
    });
  });
}

export class Client {
  constructor(connection, host, port) {
    Object.assign(this, {connection, host, port});
    this.failure = null;
    connection.once('end', (error) => (this.failure = error));
  }

  close() {
    this.connection.close();
  }

  openStream(role) {
    if (this.failure !== null) throw this.failure;
    return this.connection.session.open(role);
  }

  /** One question on a stream of its own; resolves to its RESULT. */
  ask(message) {
    return new Promise((resolve, reject) => {
      const stream = this.openStream('receiver');
      stream.handler = {onMessage: resolve, onBytes: () => {}, onEnd: (error) => error && reject(error)};
      this.connection.say(stream, {tlvs: {}, flags: [], ...message});
    });
  }

  // --- lists and removing -------------------------------------------------------------------------------------------

  /** Every entry below a folder of the server, page after page. */
  async *list(name = '', {recursive = false, kind = 1} = {}) {
    let cursor = '';
    do {
      const result = await this.ask({message: 'LIST', kind, limit: 1000, name, cursor, flags: recursive ? ['RECURSIVE'] : []});
      yield* result.items;
      cursor = result.cursor;
    } while (cursor !== '');
  }

  /** One entry, with its b3sum if that is wanted. */
  async stat(name, {b3sum = false} = {}) {
    const result = await this.ask({message: 'LIST', kind: 1, limit: 1, name, cursor: '', flags: b3sum ? ['EXACT', 'B3SUM'] : ['EXACT']});
    return result.items[0];
  }

  remove(filename, {recursive = false} = {}) {
    return this.ask({message: 'REMOVE', kind: 1, id: ZEROS16, filename, flags: recursive ? ['RECURSIVE'] : []});
  }

  /** Throws an unfinished upload away. */
  cancelUpload(sourceid) {
    return this.ask({message: 'REMOVE', kind: 2, id: sourceid, filename: ''});
  }

  // --- upload -------------------------------------------------------------------------------------------------------

  /**
   * Uploads one file; the same again resumes. Resolves to COMMITTED.
   * @param {string} source
   * @param {string} filename its name on the server
   * @param {{ifExists?: number, attempt?: bigint, filetype?: string, onSent?: Function}} [options]
   */
  async upload(source, filename, options = {}) {
    const handle = await open(source, constants.O_RDONLY);
    try {
      const stat = await handle.stat({bigint: true});
      if (!stat.isFile()) throw new Error(`${source} is not a file`);
      const sourceid = options.sourceid ?? await this.sourceidOf(source, filename, stat);
      const filesize = Number(stat.size);
      const facts = {sourceid, filename, filetype: options.filetype ?? 'application/octet-stream', filesize, blocknum: blocknumOf(filesize)};
      const about = {stat, source: sourceOf(handle, stat), ...options};
      return filesize <= BLOCK ? await this.uploadBrief(facts, about) : await this.uploadOpened(facts, about);
    } finally {
      await handle.close();
    }
  }

  async sourceidOf(source, filename, stat) {
    const words = [this.host, this.port, filename, path.resolve(source), stat.size, stat.mtimeNs, stat.ino];
    return keyedId(await installationSecret(), JSON.stringify(words.map(String)));
  }

  /** A file of at most one block: one BLOCK frame, or a few when credit is short (BLK-014). */
  async uploadBrief(facts, {stat, source, ifExists = 0}) {
    const bytes = await source.read(0, facts.filesize);
    await source.check();
    const stream = this.openStream('sender');
    const digest = digestOf(bytes);
    const head = {...facts, filesize: BigInt(facts.filesize), blockno: 0, tlvs: {...sourceTlvs(stat), IF_EXISTS: ifExists}};
    const committed = await new Promise((resolve, reject) => {
      const onMessage = (message) => message.message === 'COMMITTED' && resolve(message);
      stream.handler = {onMessage, onBytes: () => {}, onEnd: (error) => error && reject(error)};
      this.connection.sendBlock(stream, {head, position: 0, bytes, digest, flags: ['COMMIT']}).catch(() => {});
    });
    if (committed.root !== digest) throw new Refusal('SOURCE_CHANGED', 'the server has another file under this sourceid');
    return committed;
  }

  async uploadOpened(facts, {stat, source, ifExists = 0, attempt = BigInt(Date.now()), onSent}) {
    const stream = this.openStream('sender');
    const sending = new Sending(this.connection, stream, facts, {first: 0, end: facts.filesize}, source, onSent);
    stream.handler = sending;
    this.connection.say(stream, {message: 'OPEN', ...sending.head(), attempt, priority: 1, if_exists: ifExists, tlvs: sourceTlvs(stat)});
    await sending.untilOpened();
    return sending.run();
  }

  // --- download -----------------------------------------------------------------------------------------------------

  /**
   * Downloads one file, or a range of it; the same again resumes. `target` gets its bytes only when they are complete.
   * @param {string} filename
   * @param {string} target
   * @param {{first?: number, length?: number|null}} [range]
   */
  async download(filename, target, {first = 0, length = null} = {}) {
    const where = `${target}.blockproto-node`;
    let part = await PartFile.load(where, first);
    const wanted = JSON.stringify([this.host, this.port, filename, first, length]);
    if (part.facts !== null && part.facts.wanted !== wanted) {
      await part.discard();
      part = new PartFile(where, first);
    }
    try {
      return await this.fetch(filename, target, part, {first, length, wanted});
    } catch (error) {
      if (!(error instanceof Refusal) || error.name !== 'SOURCE_CHANGED' || part.facts === null) throw error;
      await part.discard();
      return this.fetch(filename, target, new PartFile(where, first), {first, length, wanted});
    }
  }

  async fetch(filename, target, part, {first, length, wanted}) {
    const stream = this.openStream('receiver');
    const fetched = new Fetched(this.connection, stream, part, {target, first, length, wanted});
    stream.handler = fetched;
    const runsMax = Math.floor((this.connection.session.peer.head_length_max - 2000) / 16);
    this.connection.say(stream, {
      message: 'FETCH', file_id: ZEROS16, first: BigInt(first), length: length === null ? null : BigInt(length),
      version: part.facts?.version ?? ZEROS16, priority: 1, held: runsOf(part.held.keys(), runsMax),
      prefixes: [...part.prefixes].sort((a, b) => a[0] - b[0]).slice(0, runsMax), filename,
    });
    return fetched.done;
  }
}

/** The stream of a download: OPEN says what the file is, then a Lane receives it. */
class Fetched {
  constructor(connection, stream, part, wish) {
    Object.assign(this, {connection, stream, part, wish});
    this.lane = null;
    this.done = new Promise((resolve, reject) => Object.assign(this, {resolve, reject}));
  }

  onMessage(message) {
    if (message.message === 'OPEN') return this.onOpen(message);
    if (message.message === 'CANCEL') throw new Refusal('CANCELLED', 'the server gave up');
    return this.lane.onMessage(message);
  }

  onBytes(bytes, last) {
    return this.lane?.onBytes(bytes, last);
  }

  async onEnd(error) {
    await this.lane?.onEnd();
    if (this.committed === undefined) this.reject(error ?? new ConnectionLost('the download has ended'));
    else this.resolve(this.committed);
    if (this.committed === undefined) await this.part.close();
  }

  async onOpen(message) {
    if (brokenRule(message.filename, !message.invalid.includes('filename')) !== null)
      throw new Refusal('NAME_REFUSED', 'the server names the file by a name that breaks a rule');
    const {first, length, wanted} = this.wish;
    const facts = {...factsOf(message), version: message.tlvs.VERSION, wanted};
    const end = length === null ? facts.filesize : Math.min(first + length, facts.filesize);
    const receiving = new Receiving(facts, this.part, {first, end: Math.max(end, first)}, (commit) => this.finish(receiving, commit));
    this.lane = new Lane(receiving, this.connection, this.stream, () => this.opened(receiving));
    this.lane.saidOpened = true;
    if (this.part.begun && this.part.facts.version !== facts.version) throw new Refusal('SOURCE_CHANGED', 'the server sends another version');
  }

  opened(receiving) {
    const {sourceid} = receiving.facts;
    const headMax = this.connection.session.peer.head_length_max;
    return {message: 'OPENED', sourceid, file_id: ZEROS16, attempt: 0n, incarnation: 0n, expires_ms: null, ...receiving.opened(headMax)};
  }

  /** FET-012: the name last, and only then COMMITTED. */
  async finish(receiving, commit) {
    if (!this.part.begun) await this.part.begin(receiving.facts);
    await this.part.finishAs(this.wish.target);
    const {sourceid, filesize} = receiving.facts;
    this.committed = {message: 'COMMITTED', sourceid, file_id: ZEROS16, root: commit.root, filesize: BigInt(filesize), stored_as: '', tlvs: {}};
    return this.committed;
  }
}

// --- what is under them -----------------------------------------------------------------------------------------------

const sourceTlvs = (stat) => ({MTIME: stat.mtimeNs, MODE: Number(stat.mode & 0o777n)});

/** An open file as a source that notices when it is written to. */
function sourceOf(handle, stat) {
  const changed = new Refusal('SOURCE_CHANGED', 'the file changed while it was sent');
  return {
    read: async (position, length) => {
      const bytes = await readExactly(handle, position, length);
      if (bytes.length < length) throw changed;
      return bytes;
    },
    check: async () => {
      const now = await handle.stat({bigint: true});
      if (now.size !== stat.size || now.mtimeNs !== stat.mtimeNs) throw changed;
    },
  };
}

/** 32 random bytes, drawn once for this installation. */
export async function installationSecret() {
  const where = path.join(STATE, 'secret');
  const there = await readFile(where).catch(missing(null));
  if (there?.length === 32) return there;
  await mkdir(STATE, {recursive: true});
  const draft = `${where}.${process.pid}`;
  await writeFile(draft, randomBytes(32), {mode: 0o600});
  await rename(draft, where);
  return readFile(where);
}

/**
 * Runs `use(client)` on a connection; when it is lost, or what was refused may succeed later, again on a new one.
 * @param {(client: Client) => Promise<any>} use
 * @param {{triesMax?: number, onRetry?: (error: Error, waitMs: number) => void}} [options] tries in a row without success
 */
export async function persistently(host, port, use, {triesMax = 8, onRetry = () => {}} = {}) {
  for (let tries = 1; ; tries++) {
    let client = null;
    try {
      client = await connect(host, port);
      return await use(client);
    } catch (error) {
      if (!error.retryable || tries >= triesMax) throw error;
      const waitMs = Math.max(error.retryAfterMs ?? 0, Math.min(10000, 250 * 2 ** (tries - 1))) * (1 + Math.random() / 4);
      onRetry(error, waitMs);
      await new Promise((resolve) => setTimeout(resolve, waitMs));
    } finally {
      client?.close();
    }
  }
}
