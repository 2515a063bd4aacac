/**
 * One TCP connection driven by a session: bytes in and out, whose turn it is, life and death (chapters CRD, END).
 *
 * Incoming messages and payload of one stream are worked on one after another (`stream.work`, a chain of promises), those
 * of different streams side by side. What waits there is bounded by the credit we granted, because payload is granted
 * anew only when its work is done. Outgoing frames without payload go first; of ACK, CREDIT and PING answers at most one
 * of each waits, and is written with what is true at that moment.
 *
 * A stream's `handler` has onMessage(message), onBytes(bytes, last) and onEnd(error|null); each may be async.
 */
import {EventEmitter} from 'node:events';
import {ConnectionLost, Refusal, SCOPE, asRefusal} from './errors.js';
import {Turns} from './priorities.js';
import {OUR_HELLO, Session} from './session.js';
import {PREFACE, encodeMessage} from './wire.js';

const PIECE = 262144;
const SHORT_PIECE = 4096;
const GREETING_MS = 10000;
const HEAD_MS = 10000;
const SILENCE_MS = 600000;
const LINGER_MS = 3000;
/** One frame of the longest kind: the one that is refused may be on its way still. */
const LINGER_BYTES = 2097152;
const KEEPALIVE_S = 15;
const ANSWER_MS = 15000;

/**
 * Emits 'stream' (stream, message) for streams of the other side, 'goaway' (message), 'greeted', 'end' (error); 'mistake'
 * (error) for a mistake of this program and 'storeFailed' (refusal) for a disk that failed, also after the end.
 */
export class Connection extends EventEmitter {
  /**
   * @param {import('node:net').Socket} socket a socket that is connected
   * @param {'client'|'server'} side
   * @param {{hello?: object, keepaliveS?: number}} [options] keepaliveS: a client's PING after so long a silence of its own
   */
  constructor(socket, side, {hello = OUR_HELLO, keepaliveS = KEEPALIVE_S} = {}) {
    super();
    this.setMaxListeners(0);
    this.socket = socket;
    this.side = side;
    this.keepaliveS = keepaliveS;
    /** Grows when blocks were acknowledged or became durable: whether a lost connection got anything further. */
    this.progress = 0;
    this.session = new Session(side, hello);
    this.turns = new Turns();
    /** What waits to be written, in this order: key → a function that gives its bytes, or null. */
    this.waiting = new Map();
    /** @type {Set<Promise<void>>} the work of streams that is not done yet */ this.working = new Set();
    this.serial = 0;
    this.ended = null;
    this.closing = false;
    this.wentAway = null;
    const now = performance.now();
    Object.assign(this, {startedAt: now, heardAt: now, saidAt: now, pingedAt: null, headSince: null, promisedS: 0});
    this.timer = setInterval(() => this.tick(), 250);
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.onData(chunk));
    socket.on('drain', () => this.pump());
    socket.on('error', (error) => this.finish(new ConnectionLost(`the connection broke: ${error.code ?? error.message}`)));
    socket.on('close', () => this.finish(new ConnectionLost('the connection was closed')));
    if (side === 'client') this.greet();
  }

  greet() {
    this.write(Buffer.concat([PREFACE, this.session.say(null, this.session.hello)]));
  }

  // --- in -----------------------------------------------------------------------------------------------------------

  onData(chunk) {
    this.heardAt = performance.now();
    this.pingedAt = null;
    if (this.closing) return this.linger(chunk.length);
    if (this.ended !== null) return undefined;
    try {
      for (const event of this.session.receive(chunk)) this.onEvent(event);
    } catch (error) {
      this.fail(error);
    }
    this.headSince = this.session.reader.unfinished ? (this.headSince ?? performance.now()) : null;
    this.pump();
    return undefined;
  }

  onEvent(event) {
    if (event.preface) {
      if (this.side === 'server') this.greet();
    } else if (event.refused) this.onRefused(event);
    else if (event.dropped) this.consumed(null, event.dropped);
    else if (event.bytes) this.work(event.stream, () => event.stream.handler.onBytes(event.bytes, event.last), event.bytes.length);
    else if (event.stream === null) this.onConnectionMessage(event.message);
    else this.onStreamMessage(event.stream, event.message);
  }

  onRefused({refused, id, stream}) {
    const bytes = encodeMessage({...refused.toMessage(), stream: id});
    this.post(`answer ${id}`, () => bytes, stream === null || !stream.ours);
    if (stream !== null) this.endStream(stream, refused);
  }

  onStreamMessage(stream, message) {
    if (stream.handler === undefined) {
      if (this.wentAway === 'we') return this.refuse(stream, new Refusal('GOING_AWAY', 'this server is stopping', {retryAfterMs: 1000}));
      this.emit('stream', stream, message);
    } else if (message.message === 'CREDIT') {
      this.pump();
      return undefined;
    }
    if (message.message === 'ERROR' && message.scope === SCOPE.stream) return this.endStream(stream, Refusal.fromMessage(message));
    this.work(stream, () => stream.handler.onMessage(message));
    if (stream.state === 'closed') this.endStream(stream, null);
    return undefined;
  }

  onConnectionMessage(message) {
    switch (message.message) {
      case 'HELLO':
        if (this.side === 'client') this.ping();
        return this.emit('greeted');
      case 'PING':
        if (message.next_s !== 0 || !message.flags.includes('ANSWER')) this.promisedS = message.next_s;
        if (message.flags.includes('ANSWER')) return undefined;
        return this.post('pong', () => this.session.say(null, {message: 'PING', flags: ['ANSWER'], opaque: message.opaque, next_s: 0}));
      case 'GOAWAY':
        this.wentAway ??= 'they';
        this.emit('goaway', message);
        return this.leaveIfQuiet();
      case 'ERROR':
        this.socket.destroySoon();
        return this.finish(Refusal.fromMessage(message));
      default:
        return undefined;
    }
  }

  /**
   * One step of a stream's work, behind the steps before it; `count` bytes of payload are consumed by it. What came
   * before the stream ended is worked on still, whoever ended it; but once a step failed, the others are dropped.
   */
  work(stream, step, count = 0) {
    this.chain(stream, async () => {
      try {
        if (!stream.over) await step();
      } catch (error) {
        stream.over = true;
        this.refuse(stream, error);
      }
      if (count > 0) this.consumed(stream, count);
    });
  }

  /** Does something behind all other work of a stream. What it throws is a mistake, and belongs to no stream any more. */
  chain(stream, something) {
    const work = (stream.work ?? Promise.resolve()).then(something).catch((error) => this.fail(error)).finally(() => this.working.delete(work));
    stream.work = work;
    this.working.add(work);
  }

  /** Resolves when no stream, also of those that have ended, has work left. */
  async quiet() {
    while (this.working.size > 0) await Promise.all(this.working);
  }

  consumed(stream, count) {
    this.session.consume(stream, count);
    this.postCredit(null);
    if (stream !== null) this.postCredit(stream);
  }

  postCredit(stream) {
    const credit = this.session.creditDue(stream);
    if (credit === null) return;
    this.post(`credit ${stream?.id ?? 0}`, () => {
      const of = stream ?? this.session;
      if (of.state === 'closed') return null;
      return this.session.say(stream, {...credit, allowance: BigInt(of.granted), received: BigInt(of.received)});
    });
  }

  // --- out ----------------------------------------------------------------------------------------------------------

  /** A frame without payload, behind those that wait already; one of the same key takes the place of the older. */
  post(key, build, isAnswer = false) {
    this.waiting.set(key, () => {
      if (isAnswer) this.session.answered();
      return build();
    });
    this.pump();
  }

  /** Says a message without payload on a stream (null: the connection); `why` is told to its handler if that ends it. */
  say(stream, message, why = null) {
    if (this.ended !== null || stream?.state === 'closed') return;
    const bytes = this.session.say(stream, message);
    const ends = stream !== null && stream.state === 'closed';
    this.post(`message ${this.serial++}`, () => bytes, ends && !stream.ours);
    if (ends) this.endStream(stream, why);
  }

  /** ACK, at most one waiting for each stream; `build` gives it as it is when its turn has come. */
  acknowledge(stream, build) {
    this.post(`ack ${stream.id}`, () => (stream.state === 'closed' ? null : this.session.say(stream, build())));
  }

  /**
   * Refuses a block, a stream or everything, as the error's scope says. A stream that has ended meanwhile has nobody to
   * tell any more, and of a connection that was lost its streams know already.
   */
  refuse(stream, error) {
    const refusal = asRefusal(error);
    if (refusal.scope === SCOPE.connection) return this.fail(refusal);
    if (refusal.cause !== undefined) this.emit('mistake', refusal.cause);
    if (stream.state !== 'closed' && refusal instanceof Refusal) this.say(stream, refusal.toMessage(), refusal);
    return undefined;
  }

  /**
   * Sends one block, in as many pieces as credit and the other streams want; resolves when its last byte is written.
   * @param {import('./session.js').Stream} stream
   * @param {{head: object, position: number, bytes: Buffer, digest: string, flags?: string[]}} block head: the fields of
   *   BLOCK; position: of the first byte sent; flags: what the last frame has besides END
   */
  sendBlock(stream, block) {
    return new Promise((resolve, reject) => {
      if (this.ended !== null) return reject(this.ended);
      if (stream.state === 'closed') return reject(new ConnectionLost('the stream has ended'));
      const turn = {stream, ...block, sent: 0, begun: false, resolve, reject};
      this.turns.add(turn);
      this.pump();
      return undefined;
    });
  }

  write(bytes) {
    this.saidAt = performance.now();
    this.socket.write(bytes);
  }

  pump() {
    if (this.ended !== null || this.closing) return;
    for (;;) {
      if (this.socket.writableNeedDrain) return;
      const [key, build] = this.waiting.entries().next().value ?? [];
      if (key !== undefined) {
        this.waiting.delete(key);
        const bytes = build();
        if (bytes !== null) this.write(bytes);
        continue;
      }
      const turn = this.turns.next((each) => this.lengthOf(each) !== null);
      if (turn === null) return;
      this.sendPiece(turn, this.lengthOf(turn));
    }
  }

  /** How many bytes of a block may go out now; null if it has to wait. */
  lengthOf(turn) {
    const left = turn.bytes.length - turn.sent;
    const length = Math.min(left, PIECE, this.session.sendable(turn.stream));
    return length >= Math.min(left, SHORT_PIECE) ? length : null;
  }

  sendPiece(turn, length) {
    const {stream, head, bytes, sent} = turn;
    const payload = bytes.subarray(sent, sent + length);
    const ends = sent + length === bytes.length;
    const place = {position: BigInt(turn.position + sent), flags: ends ? ['END', ...(turn.flags ?? [])] : []};
    const message = {...(turn.begun ? {message: 'PIECE'} : {message: 'BLOCK', ...head}), ...place};
    if (ends) message.digest = turn.digest;
    this.write(this.session.say(stream, message, length));
    if (length > 0) this.write(payload);
    turn.begun = true;
    turn.sent += length;
    this.turns.sent(turn, length);
    if (!ends) return;
    this.turns.remove(turn);
    turn.resolve();
  }

  /** Gives up what waits to be sent on a stream (before CANCEL, or because the stream ended). */
  abandon(stream, error) {
    for (const turn of [...this.turns.waiting]) {
      if (turn.stream !== stream) continue;
      this.turns.remove(turn);
      turn.reject(error);
    }
  }

  // --- life and death -----------------------------------------------------------------------------------------------

  ping() {
    if (this.ended !== null || this.closing) return;
    this.post('ping', () => this.session.say(null, {message: 'PING', opaque: '626c6f636b70726f', next_s: this.keepaliveS}));
    this.pingedAt ??= performance.now();
  }

  tick() {
    const now = performance.now();
    if (!this.session.greeted && now - this.startedAt > GREETING_MS) return this.drop('no greeting came in time');
    if (this.headSince !== null && now - this.headSince > HEAD_MS) return this.fail(new Refusal('TIMEOUT', 'a frame did not go on'));
    const silence = now - this.heardAt;
    const patience = this.promisedS > 0 ? 2000 * this.promisedS : SILENCE_MS;
    if (silence > patience) return this.drop('nothing was heard in time');
    if (this.side === 'server') return undefined;
    if (this.pingedAt !== null && now - this.pingedAt > ANSWER_MS) return this.drop('PING brought no answer');
    if (now - this.saidAt >= 1000 * this.keepaliveS) this.ping();
    return undefined;
  }

  drop(text) {
    this.socket.destroy();
    this.finish(new ConnectionLost(text));
  }

  /** ERROR of scope connection: our last frame. Then we read on for a while, so that it is not lost (END-011). */
  fail(error) {
    const refusal = asRefusal(error);
    if (refusal.cause !== undefined) this.emit('mistake', refusal.cause);
    if (refusal.name === 'STORE_FAILED') this.emit('storeFailed', refusal);
    if (this.closing || this.ended !== null) return;
    if (refusal.name === 'NOT_BLOCKPROTO') {
      this.socket.destroySoon();
      this.finish(refusal);
      return;
    }
    this.closing = true;
    this.lingerLeft = Math.max(0, this.session.granted - this.session.received) + LINGER_BYTES;
    this.socket.write(encodeMessage({...refusal.toMessage(), scope: SCOPE.connection, stream: 0}));
    setTimeout(() => this.socket.destroy(), LINGER_MS).unref();
    this.finish(refusal);
  }

  linger(count) {
    this.lingerLeft -= count;
    if (this.lingerLeft < 0) this.socket.destroy();
  }

  /** Says that we stop; streams that are opened from now on are refused (END-008, END-009). */
  goAway(graceMs) {
    this.wentAway = 'we';
    this.say(null, {message: 'GOAWAY', code: 34, grace_ms: graceMs, retry_after_ms: 1000, text: 'the server is stopping'});
  }

  endStream(stream, error) {
    this.abandon(stream, error ?? new ConnectionLost('the stream has ended'));
    this.waiting.delete(`ack ${stream.id}`);
    this.waiting.delete(`credit ${stream.id}`);
    if (stream.handler === undefined) return;
    this.chain(stream, async () => {
      try {
        await stream.handler.onEnd(error);
      } catch (failure) {
        this.refuse(stream, failure);
      }
      this.leaveIfQuiet();
    });
  }

  /** Who was told that the other side stops closes when nothing is open any more (END-008). */
  leaveIfQuiet() {
    if (this.wentAway === 'they' && this.ended === null && this.session.streams.size === 0) this.close();
  }

  finish(error) {
    if (this.ended !== null) return;
    this.ended = error;
    clearInterval(this.timer);
    this.waiting.clear();
    for (const stream of [...this.session.streams.values()]) {
      this.session.close(stream);
      this.endStream(stream, error);
    }
    this.emit('end', error);
  }

  /** Ends the connection when what was written is gone; the client's ordinary end. */
  close() {
    this.socket.destroySoon();
    this.finish(new ConnectionLost('we closed the connection'));
  }
}
