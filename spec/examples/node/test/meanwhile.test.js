/**
 * What is asked of an upload while something else of it is under way. The step under way is held up at a gate, so each
 * of these meets its moment every time, on any machine.
 */
import assert from 'node:assert/strict';
import {readFile, readdir, rm, writeFile} from 'node:fs/promises';
import path from 'node:path';
import {test} from 'node:test';
import {ZEROS16, digestOf, rootOf} from '../src/blocks.js';
import {connect} from '../src/client.js';
import {Lines} from '../src/lines.js';
import {PartFile} from '../src/partfile.js';
import {Receiving} from '../src/receiving.js';
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

meanwhile('a takeover while the first byte makes the files', async ({t, dial, restart}) => {
  const [old, young] = [await dial(), await dial()];
  await opened(old, 5n);
  const making = gate(t, Lines, 'open');
  old.say(beginningOf(), BYTES[0].subarray(0, 100));
  await making.reached;
  await opened(young, 6n);
  assert.equal((await refused(old, 24)).current, 6n);
  making.open();
  sendAll(young);
  await held(young);
  await restart();
  const late = await dial();
  late.say(openOf(5n));
  assert.equal((await refused(late, 24)).current, 6n);
});

meanwhile('the server stops while the first byte makes the files', async ({t, dial, restart, parts}) => {
  const peer = await dial();
  await opened(peer, 5n);
  const making = gate(t, Lines, 'open');
  peer.say(beginningOf(), BYTES[0].subarray(0, 100));
  await making.reached;
  const stopped = restart();
  await peer.end();
  making.open();
  await stopped;
  assert.deepEqual((await parts()).sort(), [`${SOURCEID}.ledger`, `${SOURCEID}.part`]);
  assert.deepEqual((await opened(await dial(), 6n)).prefixes, [[0, 100]]);
});

meanwhile('an upload is discarded while the first byte makes the files', async ({t, dial, parts}) => {
  const [one, other] = [await dial(), await dial()];
  await opened(one, 5n);
  await opened(other, 5n);
  const making = gate(t, Lines, 'open');
  one.say(beginningOf(), BYTES[0].subarray(0, 100));
  await making.reached;
  other.say(DISCARD);
  await refused(one, 31);
  making.open();
  await refused(other, 31);
  assert.deepEqual(await parts(), []);
  await Promise.all([one, other].map(goesOn));
});

for (const step of ['write', 'hold'])
  meanwhile(`an upload is discarded while blocks are on their way to the disk (${step})`, async ({t, dial, parts}) => {
    const [one, other] = [await dial(), await dial()];
    await opened(one, 5n);
    await opened(other, 5n);
    const working = gate(t, PartFile.prototype, step);
    sendAll(one);
    await working.reached;
    other.say(DISCARD);
    await refused(one, 31);
    working.open();
    await refused(other, 31);
    assert.deepEqual(await parts(), []);
    await Promise.all([one, other].map(goesOn));
  });

meanwhile('an upload begins anew while it is discarded', async ({t, dial, root}) => {
  const [one, other] = [await dial(), await dial()];
  await opened(one, 5n);
  sendAll(one);
  await held(one);
  const removing = gate(t, PartFile.prototype, 'discard');
  one.say(DISCARD);
  await removing.reached;
  other.say(openOf(4n));
  sendAll(other);
  other.say(COMMIT);
  await goesOn(other);
  removing.open();
  await refused(one, 31);
  assert.equal((await said(other, 'OPENED')).position, 0n);
  await said(other, 'COMMITTED');
  assert.ok(Buffer.concat(BYTES).equals(await readFile(path.join(root, FILE.filename))));
});

meanwhile('a takeover comes before a DISCARD that waits', async ({t, dial}) => {
  const [old, young] = [await dial(), await dial()];
  await opened(old, 5n);
  sendAll(old);
  await held(old);
  const judging = gate(t, Store.prototype, 'judgeRoom');
  young.say(openOf(6n));
  await judging.reached;
  old.say(DISCARD);
  await goesOn(old);
  judging.open();
  assert.equal((await said(young, 'OPENED')).position, FILE.filesize);
  await refused(old, 24);
  young.say(COMMIT);
  await said(young, 'COMMITTED');
});

for (const step of ['record', 'judgeRoom'])
  meanwhile(`OPEN while the commit runs (${step} is held up)`, async ({t, dial, root}) => {
    const [one, other] = [await dial(), await dial()];
    await opened(one, 5n);
    sendAll(one);
    await held(one);
    const working = gate(t, Store.prototype, step);
    if (step === 'record') one.say(COMMIT);
    else other.say(openOf(6n));
    await working.reached;
    if (step === 'record') other.say(openOf(6n));
    else one.say(COMMIT);
    if (step === 'judgeRoom') await said(one, 'COMMITTED');
    else await goesOn(other);
    working.open();
    await said(other, 'COMMITTED');
    assert.deepEqual((await readdir(root)).sort(), ['.blockproto', FILE.filename]);
  });

meanwhile('of two attempts that are judged at once the greater has the upload', async ({t, dial}) => {
  const [greater, smaller] = [await dial(), await dial()];
  const judging = gate(t, Store.prototype, 'judgeRoom');
  greater.say(openOf(6n));
  await judging.reached;
  smaller.say(openOf(5n));
  await goesOn(smaller);
  judging.open();
  await said(greater, 'OPENED');
  assert.equal((await refused(smaller, 24)).current, 6n);
});

meanwhile('the same brief file twice at once is stored once', async ({t, dial, root}) => {
  const [one, other] = [await dial(), await dial()];
  const brief = beginningOf({filesize: 5n, blocknum: 1, flags: ['END', 'COMMIT'], digest: digestOf(BYTES[1])});
  const recording = gate(t, Store.prototype, 'record');
  one.say(brief, BYTES[1]);
  await recording.reached;
  other.say(brief, BYTES[1]);
  await goesOn(other);
  recording.open();
  const [first, second] = await Promise.all([one, other].map((peer) => said(peer, 'COMMITTED')));
  assert.deepEqual(second, first);
  assert.deepEqual((await readdir(root)).sort(), ['.blockproto', FILE.filename]);
});

meanwhile('a brief file that is refused lets the unfinished upload be committed', async ({t, dial}) => {
  const [one, other] = [await dial(), await dial()];
  await opened(one, 5n);
  sendAll(one);
  await held(one);
  const naming = gate(t, Store.prototype, 'nameFile');
  other.say(beginningOf({filesize: 5n, blocknum: 1, flags: ['END', 'COMMIT'], digest: digestOf(BYTES[1])}), BYTES[1]);
  await naming.reached;
  one.say(COMMIT);
  await goesOn(one);
  failOnce(t, Store.prototype, 'record', noRoom());
  naming.open();
  await refused(other, 29);
  await said(one, 'COMMITTED');
});

meanwhile('a commit that is refused ends every stream of the upload, one with CANCEL too', async ({t, dial}) => {
  const peers = [await dial(), await dial(), await dial()];
  for (const peer of peers) await opened(peer, 5n);
  sendAll(peers[0]);
  await held(peers[0]);
  const recording = gate(t, Store.prototype, 'nameFile');
  failOnce(t, Store.prototype, 'record', noRoom());
  peers[0].say(COMMIT);
  await recording.reached;
  peers[1].say(COMMIT);
  peers[2].say({...DISCARD, flags: []});
  await Promise.all(peers.map(goesOn));
  recording.open();
  await Promise.all([refused(peers[0], 29), refused(peers[1], 29), refused(peers[2], 31)]);
});

meanwhile('there is room again after the files could not be made', async ({t, dial}) => {
  const peer = await dial();
  await opened(peer, 5n);
  failOnce(t, Lines.prototype, 'append', noRoom());
  peer.say(beginningOf(), BYTES[0].subarray(0, 100));
  await refused(peer, 29);
  await opened(peer, 6n, {stream: 3});
  BYTES.forEach((bytes, blockno) => peer.say(
    beginningOf({stream: 3, blockno, position: BigInt(blockno * 1048576), flags: ['END'], digest: digestOf(bytes)}), bytes));
  peer.say({...COMMIT, stream: 3});
  await said(peer, 'COMMITTED', 3);
});

meanwhile('no room for what a stream leaves behind does not end its connection', async ({t, dial}) => {
  const peer = await dial();
  await opened(peer, 5n);
  peer.say(beginningOf(), BYTES[0].subarray(0, 100));
  failOnce(t, PartFile.prototype, 'recordPrefixes', noRoom());
  peer.say({...DISCARD, flags: []});
  await refused(peer, 31);
  assert.deepEqual((await opened(peer, 6n, {stream: 3})).prefixes, [[0, 100]]);
});

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

test('what comes while settling ends is settled too', async () => {
  const later = (turns, then) => (turns === 0 ? then() : queueMicrotask(() => later(turns - 1, then)));
  for (let turns = 0; turns < 10; turns++) {
    const receiving = new Receiving({}, {held: new Map()}, {first: 0, end: 0}, null);
    let looks = 0;
    receiving.commitIfComplete = async () => {
      looks += 1;
      if (looks === 1) later(turns, () => receiving.settle());
    };
    receiving.settle();
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(looks, 2, `after ${turns} turns`);
  }
});
