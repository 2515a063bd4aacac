/**
 * Every conversation of conversations.json, the client's side played against the server. The conditions are met: this
 * server's commit cannot be stopped once COMMIT of a complete file came, and it is stopped where GOAWAY is due.
 */
import assert from 'node:assert/strict';
import {rm} from 'node:fs/promises';
import {test} from 'node:test';
import {digestOf} from '../src/blocks.js';
import {Server} from '../src/server.js';
import {Peer, scratch} from './peer.js';
import {bytesOf, read, valuesOf} from './vectors.js';

const ALL = new Map(read('conversations').vectors.map((vector) => [vector.name, vector]));

const stepBytes = (step) => (step.message === 'PREFACE'
  ? Buffer.from(step.bytes, 'hex') : Buffer.concat([Buffer.from(step.head, 'hex'), bytesOf(step.payload)]));

/** Of what a server may do and this one does not: it hands out no unfinished uploads, and has not the feature FILES. */
const LEFT_OUT = {
  follow: 'BP1-FET-015 is a MAY', 'many-files': 'FILES is a feature', 'many-files-damaged': 'FILES is a feature',
  'many-files-fetched': 'FILES is a feature',
};

/** Plays the client's side of one conversation; every connection has ended when this returns. */
async function play(conversation, server) {
  const peers = new Map();
  for (const step of conversation.steps) {
    if (!peers.has(step.connection)) {
      const peer = await Peer.dial(server.port);
      if (conversation.greeted) peer.greet();
      peers.set(step.connection, peer);
    }
    const peer = peers.get(step.connection);
    if (step.from === 'client') peer.send(stepBytes(step));
    else if (step.message === 'GOAWAY') server.stop();
    if (step.from === 'server' && step.message !== 'PREFACE') await expect(peer, step);
  }
  for (const peer of peers.values()) peer.close();
  while (server.connections.size > 0) await new Promise((resolve) => setImmediate(resolve));
}

/** What the server says next on that stream is what the step says; ACKs may be merged or left out. */
async function expect(peer, step) {
  const passedOver = ['CREDIT', 'PING', ...(step.message === 'HELLO' ? [] : ['HELLO'])];
  const onStream = (frame) => frame.stream === step.stream && !passedOver.includes(frame.message);
  const values = {tlvs: {}, ...valuesOf(step.values)};
  if (step.message === 'ACK') {
    const reached = (frame) => onStream(frame) && (frame.message === 'COMMITTED' || (frame.message === 'ACK' && frame.position >= values.position));
    const frame = await peer.next(reached, `ACK ${values.position}`);
    if (frame.message === 'COMMITTED') peer.frames.unshift(frame);
    return;
  }
  const frame = await peer.next((each) => onStream(each) && each.message !== 'ACK', step.message);
  assert.equal(frame.message, step.message, step.says);
  if (step.message === 'BLOCK') await joinPieces(peer, step, frame);
  const chosen = new Set([...step.chosen, 'text', 'B3SUM', 'agent']);
  if (step.message === 'HELLO') return;
  for (const [key, value] of Object.entries(values))
    if (key === 'tlvs') compareTlvs(frame.tlvs, value, chosen);
    else if (!chosen.has(key)) assert.deepEqual(frame[key], value, `${step.message}.${key}`);
}

function compareTlvs(got, wanted, chosen) {
  for (const [name, value] of Object.entries(wanted)) if (!chosen.has(name)) assert.deepEqual(got[name], value, name);
}

/** A block may come in other pieces than in the vector: its bytes and digest are compared. */
async function joinPieces(peer, step, frame) {
  let last = frame;
  const payload = [...frame.payload];
  while (!last.flags.includes('END')) {
    last = await peer.next((each) => each.stream === step.stream && each.message === 'PIECE', 'PIECE');
    payload.push(...last.payload);
  }
  frame.digest = last.digest;
  assert.equal(digestOf(Buffer.concat(payload)), step.values.digest);
  assert.equal(frame.digest, step.values.digest);
}

for (const conversation of ALL.values()) {
  test(`conversation ${conversation.name}`, {timeout: 60000, skip: LEFT_OUT[conversation.name]}, async () => {
    const root = await scratch();
    const server = await Server.start(root, {port: 0});
    try {
      const before = (names) => names.flatMap((name) => [...before(ALL.get(name).after), ALL.get(name)]);
      for (const each of before(conversation.after)) await play(each, server);
      await play(conversation, server);
    } finally {
      await server.stop(0);
      await rm(root, {recursive: true});
    }
  });
}
