/**
 * Who answers: streams to their handlers; LIST, REMOVE and FETCH (chapters LST and FET).
 */
import {createServer} from 'node:net';
import {ZEROS16, blocknumOf, hasher} from './blocks.js';
import {Connection} from './connection.js';
import {ConnectionLost, Refusal} from './errors.js';
import {OUR_HELLO} from './session.js';
import {Folder, versionOf} from './folder.js';
import {judgeName} from './names.js';
import {readExactly} from './partfile.js';
import {Sending} from './sending.js';
import {Store} from './store.js';
import {BriefLane, Uploads} from './uploads.js';
import {encodeItem} from './wire.js';

const GRACE_MS = 2000;
const EXPIRE_EVERY_MS = 3600000;

export class Server {
  constructor(store, log, hello) {
    this.store = store;
    this.hello = hello;
    this.uploads = new Uploads(store);
    this.log = log;
    /** @type {Set<Connection>} */ this.connections = new Set();
    this.stopped = new Promise((resolve) => (this.resolveStopped = resolve));
  }

  /**
   * Serves a folder until `stop`.
   * @param {string} root
   * @param {{host?: string, port?: number, log?: (line: string) => void, hello?: object}} [options] port 0: any free one
   */
  static async start(root, {host = '127.0.0.1', port = 7878, log = () => {}, hello = OUR_HELLO} = {}) {
    const server = new Server(await Store.open(root), log, hello);
    await server.uploads.load();
    server.listener = createServer((socket) => server.accept(socket));
    await new Promise((resolve, reject) => server.listener.once('error', reject).listen(port, host, resolve));
    server.expiring = setInterval(() => server.uploads.expire().catch((error) => server.storeFailed(error)), EXPIRE_EVERY_MS).unref();
    return server;
  }

  get port() {
    return this.listener.address().port;
  }

  accept(socket) {
    const connection = new Connection(socket, 'server', {hello: this.hello});
    this.connections.add(connection);
    connection.on('stream', (stream, message) => this.onStream(connection, stream, message));
    connection.on('mistake', (error) => this.log(`a mistake of this program: ${error.stack}`));
    connection.on('storeFailed', (refusal) => this.storeFailed(refusal));
    connection.on('end', () => connection.quiet().then(() => this.connections.delete(connection)));
  }

  /** ERR-008: after its disk failed, this server promises nothing to anybody any more. */
  storeFailed(error) {
    if (this.failed) return;
    this.failed = true;
    this.log(`the disk failed, stopping: ${error.message}`);
    for (const connection of [...this.connections]) connection.fail(new Refusal('STORE_FAILED', error.message));
    this.listener.close();
    setTimeout(() => this.resolveStopped(1), 100);
  }

  /** GOAWAY to everybody, a while to finish, then the end (END-008 to END-010). */
  async stop(graceMs = GRACE_MS) {
    if (this.stopping) return this.stopped;
    this.stopping = true;
    this.listener.close();
    clearInterval(this.expiring);
    for (const connection of this.connections) connection.goAway(graceMs);
    const until = Date.now() + graceMs;
    const busy = () => [...this.connections].some((connection) => connection.session.streams.size > 0);
    while (busy() && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20));
    for (const connection of [...this.connections]) connection.close();
    await Promise.all([...this.connections].map((connection) => connection.quiet()));
    await this.uploads.close();
    await this.store.close();
    this.resolveStopped(0);
    return 0;
  }

  // --- streams ------------------------------------------------------------------------------------------------------

  /** Gives a fresh stream its handler; the message that opened it is its first work. */
  onStream(connection, stream, message) {
    const once = (answer) => ({onMessage: answer, onBytes: () => {}, onEnd: () => {}});
    switch (message.message) {
      case 'OPEN':
        stream.handler = new OpenedStream(this.uploads, connection, stream);
        break;
      case 'BLOCK':
        stream.handler = new BriefLane(this.uploads, connection, stream);
        break;
      case 'FETCH':
        stream.handler = new FetchedStream(this.store, connection, stream);
        break;
      case 'LIST':
        stream.handler = once((list) => this.onList(connection, stream, list));
        break;
      default:
        stream.handler = once((remove) => this.onRemove(connection, stream, remove));
    }
  }

  async onRemove(connection, stream, message) {
    if (message.kind === 2) await this.uploads.remove(message.id);
    else {
      if (message.id === ZEROS16) judgeName(message);
      const filename = message.id === ZEROS16 ? message.filename : await this.store.nameOf(message.id);
      await this.store.folder.remove(filename, message.flags.includes('RECURSIVE'));
    }
    connection.say(stream, {message: 'RESULT', kind: message.kind, items: [], cursor: ''});
  }

  async onList(connection, stream, message) {
    if (message.flags.includes('FOLLOW')) throw new Refusal('UNSUPPORTED', 'FOLLOW is not understood');
    const result = {message: 'RESULT', kind: message.kind, items: [], cursor: ''};
    const headMax = connection.session.peer.head_length_max;
    if (message.kind === 1 && message.flags.includes('EXACT')) result.items = [await this.entry(message, stream)];
    else if (message.kind === 1) await this.fillFiles(result, message, headMax);
    else {
      const items = message.kind === 2 ? this.uploads.items() : await this.receipts(message);
      const left = items.filter((item) => item.sourceid > message.cursor);
      fillPage(result, left, message, headMax, (item) => item.sourceid);
    }
    connection.say(stream, result);
  }

  /** LIST with EXACT: one entry, with its b3sum if that was asked for. */
  async entry(message, stream) {
    judgeName(message, 'name');
    const {folder} = this.store;
    const stat = await folder.stat(message.name);
    if (stat === null || !(stat.isFile() || stat.isDirectory())) throw new Refusal('UNKNOWN_FILE', 'there is no such file');
    const item = Folder.item(message.name, stat, this.store.receiptFor(message.name, stat));
    if (message.flags.includes('B3SUM') && stat.isFile()) item.tlvs.B3SUM = await this.b3sum(message.name, stream);
    return item;
  }

  async b3sum(filename, stream) {
    const {handle, stat} = await this.store.folder.openFile(filename);
    const hash = hasher();
    try {
      for (let at = 0; at < Number(stat.size); at += 262144) {
        if (stream.state === 'closed') throw new ConnectionLost('nobody waits for this digest any more');
        hash.update(await readExactly(handle, at, Math.min(262144, Number(stat.size) - at)));
      }
    } finally {
      await handle.close();
    }
    return hash.digest();
  }

  async fillFiles(result, message, headMax) {
    if (message.name !== '') judgeName(message, 'name');
    const after = Buffer.from(message.cursor);
    const entries = (await this.store.folder.entries(message.name, message.flags.includes('RECURSIVE')))
      .filter((entry) => Buffer.compare(entry.bytes, after) > 0);
    const items = entries.map(({filename, stat}) => Folder.item(filename, stat, this.store.receiptFor(filename, stat)));
    fillPage(result, items, message, headMax, (item) => item.filename);
  }

  /** Kind 3: the receipts among IDS, in the order of their sourceids; a cursor is the last one of its page. */
  async receipts(message) {
    const items = [];
    for (const sourceid of new Set(message.tlvs.IDS ?? [])) {
      const receipt = await this.store.receiptOf(sourceid);
      if (receipt === null) continue;
      const {fileId, root, filesize, storedAs} = receipt;
      items.push({sourceid, file_id: fileId, root, filesize: BigInt(filesize), stored_as: storedAs});
    }
    return items.sort((a, b) => (a.sourceid < b.sourceid ? -1 : 1));
  }
}

/** Fills a page with as many items as the asker and its head limit take (LST-002). */
function fillPage(result, items, {limit}, headMax, cursorOf) {
  let room = headMax - 1 - 2 - 2 - 1100;
  for (const item of items) {
    const length = 2 + encodeItem(result.kind, item).length;
    if (result.items.length === limit || (length > room && result.items.length > 0)) break;
    result.items.push(item);
    room -= length;
  }
  if (result.items.length < items.length) result.cursor = cursorOf(result.items.at(-1));
}

/** A stream that began with OPEN: its lane, once OPEN was judged. */
class OpenedStream {
  constructor(uploads, connection, stream) {
    Object.assign(this, {uploads, connection, stream});
    this.lane = null;
  }

  async onMessage(message) {
    if (message.message === 'OPEN') {
      this.lane = await this.uploads.onOpen(this.connection, this.stream, message);
      if (this.lane !== null) await this.uploads.answer(this.lane);
    } else if (this.lane === null) return;
    else if (message.message === 'CANCEL') await this.uploads.onCancel(this.lane, message);
    else await this.lane.onMessage(message);
  }

  onBytes(bytes, last) {
    return this.lane?.onBytes(bytes, last);
  }

  async onEnd() {
    if (this.lane === null) return;
    await this.lane.onEnd();
    this.uploads.forgetIfEmpty(this.lane.receiving);
  }
}

/** A stream that began with FETCH: we are the sender now. */
class FetchedStream {
  constructor(store, connection, stream) {
    Object.assign(this, {store, connection, stream});
    this.sending = null;
    this.handle = null;
  }

  async onMessage(message) {
    if (message.message !== 'FETCH') return this.sending?.onMessage(message);
    const {sending, facts, tlvs} = await this.prepare(message);
    this.connection.say(this.stream, {
      message: 'OPEN', ...sending.head(), attempt: 0n, priority: message.priority, if_exists: 0, tlvs, filetype: facts.filetype,
    });
    this.sending = sending;
    sending.run().catch((error) => this.giveUp(error)).finally(() => this.close());
    return undefined;
  }

  onBytes() {}

  onEnd(error) {
    this.sending?.onEnd(error ?? new Refusal('CANCELLED', 'the fetcher has what it wanted'));
  }

  /** After CANCEL nothing more is said (COM-019). */
  giveUp(error) {
    if (this.stream.state !== 'cancelling') this.connection.refuse(this.stream, error);
  }

  async prepare(message) {
    if (message.file_id === ZEROS16) judgeName(message);
    const filename = message.file_id === ZEROS16 ? message.filename : await this.store.nameOf(message.file_id);
    const {handle, stat} = await this.store.folder.openFile(filename);
    this.handle = handle;
    try {
      return this.describe(message, filename, stat);
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  describe(message, filename, stat) {
    const version = versionOf(stat);
    const filesize = Number(stat.size);
    if (message.version === ZEROS16 && message.held.length + message.prefixes.length > 0) throw new Refusal('BAD_FACTS', 'held blocks of no version');
    if (message.version !== ZEROS16 && message.version !== version) throw new Refusal('SOURCE_CHANGED', 'the file is another version now');
    if (filesize > 0 && message.first >= stat.size) throw new Refusal('BAD_FACTS', `the file has ${filesize} bytes`);
    const first = filesize === 0 ? 0 : Number(message.first);
    const end = message.length === null || message.first + message.length > stat.size ? filesize : first + Number(message.length);
    const known = this.store.receiptFor(filename, stat);
    const facts = {sourceid: ZEROS16, filename, filetype: known?.filetype ?? '', filesize, blocknum: blocknumOf(filesize)};
    const sending = new Sending(this.connection, this.stream, facts, {first, end}, this.source(version));
    const named = (blockno) => message.held.some(([from, count]) => blockno >= from && blockno < from + count);
    sending.blocknos.filter(named).forEach((blockno) => sending.hold(blockno));
    sending.todo = sending.blocknos.filter((blockno) => !sending.held.has(blockno));
    sending.prefixes = new Map(message.prefixes);
    const tlvs = {MTIME: BigInt(known?.mtime ?? stat.mtimeNs), MODE: Number(stat.mode & 0o777n), VERSION: version};
    return {sending, facts, tlvs: {...tlvs, ...(known ? {ROOT: known.root, FILE_ID: known.fileId} : {})}};
  }

  /** The open file, and that it is still the version that OPEN named (FET-011). */
  source(version) {
    const {handle} = this;
    return {
      read: (position, length) => readExactly(handle, position, length),
      check: async () => {
        if (versionOf(await handle.stat({bigint: true})) !== version) throw new Refusal('SOURCE_CHANGED', 'the file changed while it was sent');
      },
    };
  }

  async close() {
    await this.handle?.close();
    this.handle = null;
  }
}
