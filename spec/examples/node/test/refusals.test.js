/** Every row of refusals.json against the server (or, where the client judges, against the client) over a socket. */
import assert from 'node:assert/strict';
import net from 'node:net';
import {rm} from 'node:fs/promises';
import {after, test} from 'node:test';
import {Connection} from '../src/connection.js';
import {SCOPE} from '../src/errors.js';
import {Server} from '../src/server.js';
import {Session} from '../src/session.js';
import {PREFACE, decodeHeader, decodeMessage} from '../src/wire.js';
import {Peer, frameBytes, scratch} from './peer.js';
import {bytesOf, read} from './vectors.js';

const isError = (frame) => frame.message === 'ERROR';

function helloOf(limits) {
  const bytes = frameBytes(`hello/${limits}`);
  return decodeMessage(decodeHeader(bytes), bytes.subarray(16));
}

/** What is said before. Its answer is waited for where there is one, because streams do not wait for each other. */
async function sayBefore(peer, vector) {
  for (const parts of vector.before) {
    const bytes = bytesOf(parts);
    peer.send(bytes);
    const header = decodeHeader(bytes);
    const {message, flags} = decodeMessage(header, bytes.subarray(16, 16 + header.headLength));
    if (vector.layer === 'file' && (message === 'OPEN' || flags.includes('COMMIT')))
      await peer.next((frame) => ['OPENED', 'COMMITTED'].includes(frame.message), 'an answer');
  }
}

/** Servers that several rows share: only those of layer file need an empty store. */
const shared = new Map();

async function start(limits) {
  const root = await scratch();
  return {root, server: await Server.start(root, {port: 0, hello: helloOf(limits)})};
}

async function stop({root, server}) {
  await server.stop(0);
  await rm(root, {recursive: true});
}

after(async () => {
  for (const started of shared.values()) await stop(await started);
});

async function againstServer(vector) {
  const {layer, limits} = vector;
  if (layer !== 'file' && !shared.has(limits)) shared.set(limits, start(limits));
  const started = await (layer === 'file' ? start(limits) : shared.get(limits));
  const {server} = started;
  const peer = await Peer.dial(server.port);
  try {
    if (vector.layer !== 'greeting') peer.greet();
    await sayBefore(peer, vector);
    peer.send(bytesOf(vector.bytes));
    if (vector.expect.name === 'NOT_BLOCKPROTO') {
      await peer.end();
      assert.equal(peer.frames.length, 0);
      assert.notDeepEqual(peer.start, PREFACE);
      return;
    }
    const error = await peer.next(isError, vector.expect.name);
    assert.deepEqual([error.code, error.scope], [vector.expect.code, SCOPE[vector.expect.scope]], error.text);
    if (vector.expect.scope === 'connection') return;
    peer.say({message: 'PING', stream: 0, opaque: '0102030405060708', next_s: 0});
    await peer.next((frame) => frame.message === 'PING', 'the answer to PING');
  } finally {
    peer.close();
    if (layer === 'file') await stop(started);
  }
}

async function againstClient(vector) {
  let peer;
  const listener = net.createServer((socket) => (peer = new Peer(socket)));
  await new Promise((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const socket = net.connect(listener.address().port, '127.0.0.1');
  await new Promise((resolve) => socket.once('connect', resolve));
  const client = new Connection(socket, 'client');
  const ended = new Promise((resolve) => client.once('end', resolve));
  try {
    while (peer === undefined) await new Promise((resolve) => setImmediate(resolve));
    await peer.next((frame) => frame.message === 'HELLO');
    if (vector.layer !== 'greeting') peer.greet();
    peer.send(bytesOf(vector.bytes));
    assert.equal((await ended).name, vector.expect.name);
    if (vector.expect.name !== 'NOT_BLOCKPROTO') assert.equal((await peer.next(isError)).code, vector.expect.code);
  } finally {
    peer?.close();
    client.close();
    listener.close();
  }
}

/** Without a disk that could write meanwhile, and so grant credit anew. */
function againstSession(vector) {
  const session = new Session('server', helloOf(vector.limits));
  const receive = (bytes) => [...session.receive(bytes)];
  receive(Buffer.concat([PREFACE, frameBytes('hello/usual'), ...vector.before.map(bytesOf)]));
  assert.throws(() => receive(bytesOf(vector.bytes)), {name: vector.expect.name});
}

function against(vector) {
  if (vector.name === 'credit/stream-exceeded') return againstSession(vector);
  return vector.judge === 'server' ? againstServer(vector) : againstClient(vector);
}

for (const vector of read('refusals').vectors) test(`refusal ${vector.name}`, {timeout: 30000}, () => against(vector));
