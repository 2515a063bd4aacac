/**
 * Who dials: upload, download, list, remove; and going on after the line broke.
 *
 * The same call again resumes, because everything that names the transfer is derived from it: an upload's sourceid from
 * the target, and the source's path, size, time and inode (RES-002), a download's from where it goes.
 */
import {constants} from 'node:fs';
import {mkdir, open, readFile, rename, stat as statOfFile, unlink, writeFile} from 'node:fs/promises';
import {randomBytes} from 'node:crypto';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import {BLOCK, ZEROS16, blocknumOf, digestOf, factsOf, keyedId, runsOf} from './blocks.js';
import {Connection} from './connection.js';
import {ConnectionLost, Refusal, asRefusal} from './errors.js';
import {judgeName} from './names.js';
import {missing} from './lines.js';
import {PartFile, readExactly} from './partfile.js';
import {Lane, Receiving} from './receiving.js';
import {Sending} from './sending.js';

/** Where the secret of this installation and the list of what is unfinished live. */
export const STATE = process.env.BLOCKPROTO_NODE_STATE ?? path.join(os.homedir(), '.local', 'state', 'blockproto-node');

/** Connects; resolves when the TCP connection stands (the greeting is on its way then). */
export function connect(host, port, options = {}) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({host, port});
    const failed = (error) => reject(new ConnectionLost(`cannot reach ${host}:${port}: ${error.code}`));
    socket.once('error', failed);
    socket.once('connect', () => {
      socket.off('error', failed);
      resolve(new Client(new Connection(socket, 'client', options), host, port));
    });
  });
}

export class Client {
  constructor(connection, host, port) {
    Object.assign(this, {connection, host, port});
    this.failure = null;
    connection.once('end', (error) => (this.failure = error));
    connection.on('mistake', (error) => process.stderr.write(`a mistake of this program: ${error.stack}\n`));
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
  async *list(name = '', {recursive = false, kind = 1, ids = undefined} = {}) {
    let cursor = '';
    const tlvs = ids === undefined ? {} : {IDS: ids};
    do {
      const result = await this.ask({message: 'LIST', kind, limit: 1000, name, cursor, flags: recursive ? ['RECURSIVE'] : [], tlvs});
      yield* result.items;
      cursor = result.invalid.cursor ?? result.cursor;
    } while (cursor.length > 0);
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
   * @param {{ifExists?: number, filetype?: string, onSent?: Function, giveUpAfter?: number}} [options] giveUpAfter:
   *   cancel when so many bytes were sent; what the server holds stays there
   */
  async upload(source, filename, options = {}) {
    judgeOwnName(filename);
    const handle = await open(source, constants.O_RDONLY);
    try {
      const stat = await handle.stat({bigint: true});
      if (!stat.isFile()) throw new Error(`${source} is not a file`);
      const sourceid = options.sourceid ?? await this.sourceidOf(source, filename, stat);
      const filesize = Number(stat.size);
      const facts = {sourceid, filename, filetype: options.filetype ?? 'application/octet-stream', filesize, blocknum: blocknumOf(filesize)};
      const about = {tlvs: sourceTlvs(stat), source: sourceOf(handle, stat), ...options};
      return filesize <= BLOCK ? await this.uploadBrief(facts, about) : await this.uploadOpened(facts, about);
    } finally {
      await handle.close();
    }
  }

  /**
   * Uploads what a readable stream gives, whose end is not known before it comes. It is kept in a file beside the state
   * until the server has it, because a block may have to be sent again (RES-020).
   * @param {AsyncIterable<Buffer>} readable
   */
  async uploadStream(readable, filename, identity, options = {}) {
    judgeOwnName(filename);
    const sourceid = keyedId(await installationSecret(), JSON.stringify([filename, identity].map(String)));
    const where = path.join(STATE, `stream-${sourceid}`);
    const handle = await open(where, 'w+');
    try {
      const facts = {sourceid, filename, filetype: options.filetype ?? 'application/octet-stream', filesize: null, blocknum: null};
      return await this.uploadOpened(facts, {tlvs: {}, source: growingSource(handle, readable), ...options});
    } finally {
      await handle.close();
      await unlink(where);
    }
  }

  /**
   * Uploads many files, eight at a time; which of them are there already is asked for first, hundreds at once (LST-014).
   * @param {{source: string, filename: string}[]} files
   * @returns {Promise<number>} how many were there or were stored
   */
  async uploadMany(files) {
    const wanted = [];
    for (const file of files) {
      const stat = await statOfFile(file.source, {bigint: true});
      wanted.push({...file, filesize: stat.size, sourceid: await this.sourceidOf(file.source, file.filename, stat)});
    }
    const there = new Set();
    const idsMax = Math.floor((this.connection.session.peer.head_length_max - 32) / 16);
    for (let at = 0; at < wanted.length; at += idsMax) {
      const ids = wanted.slice(at, at + idsMax).map((file) => file.sourceid);
      for await (const item of this.list('', {kind: 3, ids})) there.add(`${item.sourceid}/${item.filesize}`);
    }
    const todo = wanted.filter((file) => !there.has(`${file.sourceid}/${file.filesize}`));
    const one = async () => {
      for (let file = todo.shift(); file !== undefined; file = todo.shift()) await this.upload(file.source, file.filename, {sourceid: file.sourceid});
    };
    await Promise.all(Array.from({length: 8}, one));
    return wanted.length;
  }

  async sourceidOf(source, filename, stat) {
    const words = [filename, path.resolve(source), stat.size, stat.mtimeNs, stat.ino];
    return keyedId(await installationSecret(), JSON.stringify(words.map(String)));
  }

  /** A file of at most one block: one BLOCK frame, or a few when credit is short (BLK-014). */
  async uploadBrief(facts, {tlvs, source, ifExists = 0, onSent = () => {}}) {
    const bytes = await source.read(0, facts.filesize);
    await source.check();
    const stream = this.openStream('sender');
    const digest = digestOf(bytes);
    const head = {...facts, filesize: BigInt(facts.filesize), blockno: 0, tlvs: {...tlvs, IF_EXISTS: ifExists}};
    const committed = await new Promise((resolve, reject) => {
      const onMessage = (message) => message.message === 'COMMITTED' && resolve(message);
      stream.handler = {onMessage, onBytes: () => {}, onEnd: (error) => error && reject(error)};
      this.connection.sendBlock(stream, {head, position: 0, bytes, digest, flags: ['COMMIT']})
        .then(() => onSent({blockno: 0, bytes: bytes.length}), reject);
    });
    if (committed.root !== digest) throw new Refusal('SOURCE_CHANGED', 'the server has another file under this sourceid');
    return committed;
  }

  async uploadOpened(facts, {tlvs, source, ifExists = 0, onSent = () => {}, giveUpAfter = Infinity}) {
    const attempt = await nextAttempt(facts.sourceid);
    const stream = this.openStream('sender');
    let sent = 0;
    const sending = new Sending(this.connection, stream, facts, {first: 0, end: facts.filesize ?? 0}, source, (event) => {
      sent += event.bytes;
      onSent(event);
      if (sent >= giveUpAfter) sending.giveUp(new Refusal('CANCELLED', 'given up'));
    });
    stream.handler = sending;
    this.connection.say(stream, {message: 'OPEN', ...sending.head(), attempt, priority: 1, if_exists: ifExists, tlvs});
    await sending.untilOpened();
    return sending.run();
  }

  // --- download -----------------------------------------------------------------------------------------------------

  /**
   * Downloads one file, or a range of it; the same again resumes. `target` gets its bytes only when they are complete.
   * @param {string} filename
   * @param {string} target
   * @param {{first?: number, length?: number|null, giveUpAfter?: number}} [options] a range; giveUpAfter: cancel when so
   *   many bytes have come
   */
  async download(filename, target, {first = 0, length = null, giveUpAfter = Infinity} = {}) {
    const where = `${target}.blockproto-node`;
    let part = await PartFile.load(where, first);
    const wanted = JSON.stringify([this.host, this.port, filename, first, length]);
    const wish = {target, first, length, wanted, giveUpAfter};
    if (part.facts !== null && (part.facts.wanted !== wanted || !part.facts.version)) {
      await part.discard();
      part = new PartFile(where, first);
    }
    const resumed = part.begun;
    try {
      return await this.fetch(filename, part, wish);
    } catch (error) {
      if (!resumed || error.name !== 'SOURCE_CHANGED') throw error;
      await part.discard();
      return this.fetch(filename, new PartFile(where, first), wish);
    }
  }

  async fetch(filename, part, wish) {
    const {first, length} = wish;
    const stream = this.openStream('receiver');
    const fetched = new Fetched(this.connection, stream, part, wish);
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
    this.came = 0;
    this.done = new Promise((resolve, reject) => Object.assign(this, {resolve, reject}));
  }

  onMessage(message) {
    if (message.message === 'OPEN') return this.onOpen(message);
    if (message.message === 'CANCEL') throw new Refusal('CANCELLED', 'the server gave up');
    return this.lane.onMessage(message);
  }

  async onBytes(bytes, last) {
    await this.lane?.onBytes(bytes, last);
    this.came += bytes.length;
    if (this.came >= this.wish.giveUpAfter) throw new Refusal('CANCELLED', 'given up');
  }

  /** Whatever happens here, somebody waits for `done`. */
  async onEnd(error) {
    let failure = error ?? new ConnectionLost('the download has ended');
    try {
      await this.lane?.onEnd();
      await this.part.close();
    } catch (worse) {
      failure = asRefusal(worse);
    }
    if (this.committed !== undefined) this.resolve(this.committed);
    else this.reject(failure);
  }

  async onOpen(message) {
    judgeName(message);
    const {first, length, wanted} = this.wish;
    if (message.filesize === null) throw new Refusal('BAD_FACTS', 'a finished file has a filesize');
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
    await this.part.begin(receiving.facts);
    await this.part.finishAs(this.wish.target);
    const {sourceid, filesize} = receiving.facts;
    this.committed = {message: 'COMMITTED', sourceid, file_id: ZEROS16, root: commit.root, filesize: BigInt(filesize), stored_as: '', tlvs: {}};
    return this.committed;
  }
}

// --- what is under them -----------------------------------------------------------------------------------------------

const sourceTlvs = (stat) => ({MTIME: stat.mtimeNs, MODE: Number(stat.mode & 0o777n)});

/** A name that breaks a rule would be refused there; it is refused here, before anything is sent. */
const judgeOwnName = (filename) => judgeName({filename, invalid: {}});

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

/** Bytes that come when they come: kept in a file, so that they can be read again. */
function growingSource(handle, readable) {
  const chunks = readable[Symbol.asyncIterator]();
  let size = 0;
  let ended = false;
  return {
    read: (position, length) => readExactly(handle, position, length),
    check: async () => {},
    grow: async (from) => {
      while (!ended && size < from + BLOCK) {
        const {value, done} = await chunks.next();
        ended = done;
        if (done) break;
        await handle.write(value, 0, value.length, size);
        size += value.length;
      }
      return Math.min(BLOCK, size - from);
    },
  };
}

/** RES-011: the time in milliseconds, or one more than the last attempt of this upload, if the clock was set back. */
async function nextAttempt(sourceid) {
  const where = path.join(STATE, 'attempts', sourceid);
  const last = BigInt((await readFile(where, 'utf8').catch(missing(''))) || 0);
  const now = BigInt(Date.now());
  const attempt = now > last ? now : last + 1n;
  await mkdir(path.dirname(where), {recursive: true});
  await writeFile(where, String(attempt));
  return attempt;
}

/** 32 random bytes, drawn once for this installation. */
async function installationSecret() {
  const where = path.join(STATE, 'secret');
  const there = await readFile(where).catch(missing(null));
  if (there?.length === 32) return there;
  await mkdir(STATE, {recursive: true});
  const draft = `${where}.${process.pid}`;
  await writeFile(draft, randomBytes(32), {mode: 0o600});
  await rename(draft, where);
  return readFile(where);
}

/** Bounds of the random waits before coming back, after a connection that had worked (END-017). */
const WAITS_MS = [0, 2000, 8000, 30000];

/** How long to wait before the next try, of which `tries` got nothing further. */
function waitBefore(tries, worked, retryAfterMs) {
  const bound = WAITS_MS[Math.min(tries - (worked ? 1 : 0), WAITS_MS.length - 1)];
  return retryAfterMs > 0 ? retryAfterMs + Math.random() * 2000 : Math.random() * bound;
}

/**
 * Runs `use(client)` on a connection; when it is lost, or what was refused may succeed later, again on a new one.
 * @param {(client: Client) => Promise<any>} use
 * @param {object} [options] triesMax: tries in a row that got nothing further; untilMs: no new try after so long;
 *   onRetry(error, waitMs); keepaliveS
 */
export async function persistently(host, port, use, {triesMax = 8, untilMs = Infinity, onRetry = () => {}, ...options} = {}) {
  const began = performance.now();
  for (let tries = 1; ; tries++) {
    let client = null;
    try {
      client = await connect(host, port, options);
      return await use(client);
    } catch (error) {
      if (client?.connection.progress > 0) tries = 1;
      const waitMs = waitBefore(tries, client !== null, error.retryAfterMs ?? 0);
      if (!error.retryable || tries >= triesMax || performance.now() - began + waitMs > untilMs) throw error;
      onRetry(error, waitMs);
      await new Promise((resolve) => setTimeout(resolve, waitMs));
    } finally {
      client?.close();
    }
  }
}
