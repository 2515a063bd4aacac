/**
 * What is asked of an upload while something else of it is under way. The step under way is held up at a gate, so each
 * of these meets its moment every time, on any machine.
 */
import assert from 'node:assert/strict';
import {readdir, rm, writeFile} from 'node:fs/promises';
import path from 'node:path';
import {test} from 'node:test';
import {ZEROS16, digestOf, rootOf} from '../src/blocks.js';
import {connect} from '../src/client.js';
import {PartFile} from '../src/partfile.js';
import {Sending} from '../src/sending.js';
import {Server} from '../src/server.js';
import {Store} from '../src/store.js';
import {Peer, scratch} from './peer.js';

const SOURCEID = '11'.repeat(16);
const BYTES = [Buffer.alloc(1048576, 1), Buffer.alloc(5, 2)];
const ROOT = rootOf(BYTES.map(digestOf));
const FILE = {sourceid: SOURCEID, filesize: 1048581n, blocknum: 2, filename: 'sea.jpg', filetype: ''};

const openOf = (attempt, more = {}) => ({...FILE, message: 'OPEN', stream: 1, attempt, priority: 1, if_exists: 0, ...more});
const beginningOf = (more = {}) => ({...FILE, message: 'BLOCK', stream: 1, blockno: 0, position: 0n, ...more});
const COMMIT = {message: 'COMMIT', stream: 1, sourceid: SOURCEID, root: ROOT, filesize: FILE.filesize, blocknum: 2};
const DISCARD = {message: 'CANCEL', stream: 1, flags: ['DISCARD'], reason: 31, text: ''};

/** Holds up every call of a method until `open()`; `reached` resolves when the first has come. */
function gate(t, owner, name) {
  const {[name]: method} = owner;
  const all = {};
  all.reached = new Promise((resolve) => (all.come = resolve));
  all.opened = new Promise((resolve) => (all.open = resolve));
  t.mock.method(owner, name, async function held(...args) {
    all.come();
    await all.opened;
    return method.apply(this, args);
  });
  return all;
}

/** The next call of a method throws; later ones do what they always do. */
function failOnce(t, owner, name, error) {
  const {[name]: method} = owner;
  let failed = false;
  t.mock.method(owner, name, async function failing(...args) {
    if (failed) return method.apply(this, args);
    failed = true;
    throw error;
  });
}

const noRoom = () => Object.assign(new Error('no space left on device'), {code: 'ENOSPC', syscall: 'write'});

/** One test against a server of its own; `dial` gives peers that have greeted. What the server logs is a failure. */
function meanwhile(name, body, {mistakes = 0} = {}) {
  test(name, {timeout: 30000}, async (t) => {
    const root = await scratch();
    const logged = [];
    const peers = [];
    const log = (line) => logged.push(line);
    let server = await Server.start(root, {port: 0, log});
    const dial = async () => {
      const peer = await Peer.dial(server.port);
      peers.push(peer);
      peer.greet();
      return peer;
    };
    const restart = async () => {
      await server.stop(0);
      server = await Server.start(root, {port: 0, log});
    };
    try {
      await body({t, root, dial, restart, port: () => server.port, parts: () => readdir(path.join(root, '.blockproto', 'node', 'uploads'))});
    } finally {
      for (const peer of peers) peer.close();
      await server.stop(0);
      await rm(root, {recursive: true});
    }
    assert.equal(logged.length, mistakes, logged.join('\n'));
  });
}

const said = (peer, message, stream = 1) => peer.next((frame) => frame.message === message && frame.stream === stream, message);

async function refused(peer, code, stream = 1) {
  const error = await said(peer, 'ERROR', stream);
  assert.deepEqual([error.code, error.scope], [code, 2], error.text);
  return error;
}

/** The connection of this peer goes on. */
async function goesOn(peer) {
  peer.say({message: 'PING', stream: 0, opaque: '0102030405060708', next_s: 0});
  await peer.next((frame) => frame.message === 'PING', 'the answer to PING');
}

async function opened(peer, attempt, more = {}) {
  peer.say(openOf(attempt, more));
  return said(peer, 'OPENED', more.stream);
}

function sendAll(peer) {
  BYTES.forEach((bytes, blockno) => peer.say(
    beginningOf({blockno, position: BigInt(blockno * 1048576), flags: ['END'], digest: digestOf(bytes)}), bytes));
}

const held = async (peer) => peer.next((frame) => frame.message === 'ACK' && frame.position === FILE.filesize, 'ACK of everything');

meanwhile('a mistake of this program ends one stream', async ({t, dial}) => {
  const peer = await dial();
  failOnce(t, Store.prototype, 'judgeRoom', new TypeError('nothing has no append'));
  peer.say(openOf(5n));
  await refused(peer, 36);
  await opened(peer, 6n, {stream: 3});
}, {mistakes: 1});

meanwhile('a fetcher that stops is told so, and nothing else', async ({t, dial}) => {
  const peer = await dial();
  peer.say(beginningOf({filesize: 5n, blocknum: 1, flags: ['END', 'COMMIT'], digest: digestOf(BYTES[1])}), BYTES[1]);
  await said(peer, 'COMMITTED');
  const reading = gate(t, Sending.prototype, 'readBlock');
  peer.say({
    message: 'FETCH', stream: 3, file_id: ZEROS16, first: 0n, length: null, version: ZEROS16, priority: 1, held: [], prefixes: [],
    filename: FILE.filename,
  });
  await reading.reached;
  peer.say({message: 'GOAWAY', stream: 0, code: 34, grace_ms: 2000, retry_after_ms: 0, text: ''});
  await goesOn(peer);
  reading.open();
  await refused(peer, 34, 3);
  await peer.end();
});

meanwhile('a download whose rest cannot be recorded ends all the same', async ({t, root, port}) => {
  await writeFile(path.join(root, FILE.filename), Buffer.concat(BYTES));
  const client = await connect('127.0.0.1', port());
  failOnce(t, PartFile.prototype, 'recordPrefixes', noRoom());
  try {
    await assert.rejects(client.download(FILE.filename, path.join(root, 'copy'), {giveUpAfter: 1}), {name: 'STORE_FULL'});
  } finally {
    client.close();
  }
});
