/** A bare peer for tests: sends bytes as they are, and collects the frames that come back. */
import net from 'node:net';
import {mkdtemp} from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import {FrameReader} from '../src/frames.js';
import {OUR_HELLO} from '../src/session.js';
import {PREFACE, decodeMessage, encodeMessage, messageName} from '../src/wire.js';
import {bytesOf, read} from './vectors.js';

const FRAMES = new Map(read('frames').vectors.map((vector) => [vector.name, vector]));

/** The bytes of one of the frame vectors. */
export const frameBytes = (name) => Buffer.concat([Buffer.from(FRAMES.get(name).head, 'hex'), bytesOf(FRAMES.get(name).payload)]);

/** A folder for one test. */
export const scratch = () => mkdtemp(path.join(os.tmpdir(), 'blockproto-node-'));

export class Peer {
  constructor(socket) {
    Object.assign(this, {socket, frames: [], greeted: false, ended: false});
    this.start = Buffer.alloc(0);
    this.reader = new FrameReader(OUR_HELLO);
    this.changed = () => {};
    socket.on('data', (chunk) => this.take(chunk));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.ended = true;
      this.changed();
    });
  }

  static dial(port) {
    return new Promise((resolve, reject) => {
      const socket = net.connect(port, '127.0.0.1', () => resolve(new Peer(socket)));
      socket.once('error', reject);
    });
  }

  take(chunk) {
    const missing = Math.max(0, 8 - this.start.length);
    this.start = Buffer.concat([this.start, chunk.subarray(0, missing)]);
    for (const part of this.reader.feed(chunk.subarray(missing))) {
      if (part.bytes === undefined) this.coming = this.frameOf(part);
      else this.coming.payload.push(part.bytes);
      if (part.last ?? part.header.length === part.header.headLength) this.frames.push(this.coming);
    }
    this.changed();
  }

  frameOf({header, head}) {
    return {...(messageName(header.type) === null ? {message: 'UNKNOWN'} : decodeMessage(header, head)), payload: []};
  }

  send(...bytes) {
    this.socket.write(Buffer.concat(bytes));
  }

  say(message, payload = Buffer.alloc(0)) {
    this.send(encodeMessage({flags: [], tlvs: {}, ...message}, payload.length), payload);
  }

  greet(hello = 'hello/usual') {
    this.send(PREFACE, frameBytes(hello));
  }

  /** The first frame that `wanted` takes, removed; or an error when the connection ended without it. */
  async next(wanted = () => true, what = 'a frame') {
    for (;;) {
      const at = this.frames.findIndex(wanted);
      if (at >= 0) return this.frames.splice(at, 1)[0];
      if (this.ended) throw new Error(`the connection ended before ${what} came`);
      await new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`${what} did not come; there were ${this.frames.map((f) => f.message)}`)), 20000);
        this.changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Resolves when the other side has closed. */
  async end() {
    while (!this.ended) await new Promise((resolve) => (this.changed = resolve));
  }

  close() {
    this.socket.destroy();
  }
}
