/**
 * Who may say what, when, on one connection: greeting, streams, credit (chapters HEL, STR, CRD, EXT). No IO, no clock.
 *
 * Bytes go in by `receive`, which yields what they meant; messages go out by `say`, which returns bytes to write. Both
 * directions pass the same table, so a mistake of our own is found here and not by the other side.
 *
 * Of every stream and of the connection: received ≤ granted (else CREDIT_EXCEEDED), consumed ≤ received, and what we sent
 * ≤ allowance. Payload that is dropped is consumed at once.
 */
import {FrameReader} from './frames.js';
import {Refusal, SCOPE} from './errors.js';
import {nextState} from './transitions.js';
import {PREFACE, decodeMessage, encodeMessage, messageName} from './wire.js';

/** What we say in HELLO: what this program takes. */
export const OUR_HELLO = Object.freeze({
  message: 'HELLO', stream: 0, version_lowest: 1, version_highest: 1, head_length_max: 65535, piece_length_max: 1048576,
  streams_max: 256, connection_allowance: 16777216n, stream_allowance: 4194304n, undurable_max: 67108864n, features: 0n,
  agent: 'blockproto-node/0.1',
});

/** What may be used before the other side's HELLO came (chapter LIM). */
const EARLY = Object.freeze({
  head_length_max: 4096, piece_length_max: 65536, streams_max: 256, connection_allowance: 1048576n,
  stream_allowance: 262144n, undurable_max: 67108864n,
});

/** So much of a connection's payload is early, and of that it is told after so much at least, and at most. */
const EARLY_LENGTH = 8 << 20;
const EARLY_STEP = 16 << 10;
const EARLY_STEP_MOST = 64 << 10;

const OPENERS = {OPEN: 'sender', BLOCK: 'sender', FETCH: 'receiver', LIST: 'receiver', REMOVE: 'receiver'};

/** One transfer or one question. `ours` says who opened it, `ourRole` whether we are its sender or its receiver. */
export class Stream {
  constructor(id, ours, ourRole, granted, allowance) {
    Object.assign(this, {id, ours, ourRole, state: 'new', priority: 1});
    Object.assign(this, {received: 0, granted, consumed: 0, sent: 0, allowance, creditReceived: 0n});
  }

  get peerRole() {
    return this.ourRole === 'sender' ? 'receiver' : 'sender';
  }
}

export class Session {
  /** @param {'client'|'server'} side @param {object} [hello] */
  constructor(side, hello = OUR_HELLO) {
    this.side = side;
    this.hello = hello;
    this.reader = new FrameReader(hello);
    this.preface = Buffer.alloc(0);
    this.peer = EARLY;
    this.greeted = false;
    /** @type {Map<number, Stream>} */
    this.streams = new Map();
    this.lastOurs = 0;
    this.lastPeers = 0;
    this.peersOpen = 0;
    this.window = Number(hello.connection_allowance);
    Object.assign(this, {received: 0, granted: this.window, consumed: 0, sent: 0, allowance: Number(EARLY.connection_allowance)});
  }

  // --- what comes ---------------------------------------------------------------------------------------------------

  /**
   * Takes bytes; yields {preface}, {message, stream}, {bytes, last, stream}, {dropped: count} and
   * {refused: Refusal, id, stream}. Throws a Refusal of scope connection; nothing may be received after that.
   */
  *receive(chunk) {
    let rest = chunk;
    if (this.preface.length < PREFACE.length) {
      rest = this.takePreface(chunk);
      if (this.preface.length < PREFACE.length) return;
      yield {preface: true};
    }
    for (const part of this.reader.feed(rest)) {
      if (part.bytes !== undefined) yield* this.takePayload(part);
      else yield* this.takeHead(part.header, part.head);
    }
  }

  takePreface(chunk) {
    const missing = PREFACE.length - this.preface.length;
    this.preface = Buffer.concat([this.preface, chunk.subarray(0, missing)]);
    if (!PREFACE.subarray(0, this.preface.length).equals(this.preface))
      throw new Refusal('NOT_BLOCKPROTO', 'the first bytes are not the preface of blockproto');
    return chunk.subarray(missing);
  }

  /** Where the payload of the frame goes is decided with its head; the bytes themselves may come much later. */
  *takePayload({bytes, last}) {
    if (this.payloadTo === 'skipped') return;
    this.received += bytes.length;
    if (this.payloadTo !== null && this.streams.has(this.payloadTo.id)) {
      this.payloadTo.received += bytes.length;
      yield {bytes, last, stream: this.payloadTo};
    } else yield {dropped: bytes.length};
  }

  *takeHead(header, head) {
    const name = messageName(header.type);
    this.payloadTo = name === null ? 'skipped' : null;
    if (!this.greeted && name !== 'HELLO') throw new Refusal('UNEXPECTED', 'the first frame is not HELLO');
    if (name === null && header.type < 0x80) return;
    const payloadLength = header.length - header.headLength;
    const place = this.placeOf(header.stream);
    if (name !== null) this.judgeCredit(place.stream, payloadLength);
    if (place.closed) return;
    try {
      if (name === null) throw new Refusal('UNSUPPORTED', `the message type ${header.type} is not understood`,
        {scope: header.stream === 0 ? SCOPE.connection : SCOPE.stream});
      const message = {...decodeMessage(header, head), payloadLength};
      yield* this.act(message, place);
    } catch (error) {
      if (!(error instanceof Refusal) || error.scope === SCOPE.connection) throw error;
      yield this.refuse(error, header.stream, place);
    }
  }

  /** Open, closed, or fresh; a fresh id is the next stream of the other side. */
  placeOf(id) {
    if (id === 0) return {stream: null, closed: false, fresh: false};
    const stream = this.streams.get(id) ?? null;
    if (stream !== null) return {stream, closed: false, fresh: false};
    const ours = (id % 2 === 1) === (this.side === 'client');
    if (ours && id > this.lastOurs) throw new Refusal('UNEXPECTED', `nobody opened the stream ${id}`);
    const closed = ours || id <= this.lastPeers;
    return {stream: null, closed, fresh: !closed};
  }

  judgeCredit(stream, payloadLength) {
    const streamLeft = (stream === null ? Number(this.hello.stream_allowance) : stream.granted - stream.received);
    if (payloadLength > this.granted - this.received || payloadLength > streamLeft)
      throw new Refusal('CREDIT_EXCEEDED', `${payloadLength} bytes are more than was allowed`);
  }

  /** A stream ends with a refusal of ours; a fresh one was opened and closed by it (STR-004). */
  refuse(error, id, place) {
    if (error.scope === SCOPE.block) return {refused: error, id, stream: place.stream};
    const stream = place.stream ?? this.streams.get(id) ?? null;
    if (stream === null) this.countPeers(id);
    else this.close(stream);
    return {refused: error, id, stream};
  }

  /** One more stream of the other side. It counts until our answer was written, so that answers are bounded too. */
  countPeers(id) {
    if (this.peersOpen >= this.hello.streams_max) throw new Refusal('TOO_MANY_STREAMS', `more than ${this.hello.streams_max} streams`);
    this.lastPeers = id;
    this.peersOpen += 1;
  }

  /** The answer that ended a stream of the other side was written. */
  answered() {
    this.peersOpen -= 1;
  }

  *act(message, place) {
    const {message: name, stream: id} = message;
    const onConnection = ['HELLO', 'PING', 'GOAWAY'].includes(name) || (name === 'ERROR' && message.scope === SCOPE.connection);
    if (name !== 'CREDIT' && onConnection !== (id === 0)) throw new Refusal('UNEXPECTED', `${name} on stream ${id}`);
    if (name === 'HELLO') this.takeHello(message);
    if (name === 'CREDIT') this.takeCredit(message, place.stream);
    if (id === 0) {
      yield {message, stream: null};
      return;
    }
    const stream = place.fresh ? this.openedByPeer(message) : place.stream;
    const next = nextState(stream.peerRole, message, stream.state);
    if (next === undefined) throw new Refusal('UNEXPECTED', `${name} from the ${stream.peerRole} in the state ${stream.state}`);
    stream.state = next;
    this.payloadTo = stream;
    if (next === 'closed') {
      this.close(stream);
      if (!stream.ours) this.answered();
    }
    yield {message, stream};
  }

  openedByPeer(message) {
    const senderOrReceiver = OPENERS[message.message];
    if (senderOrReceiver === undefined) throw new Refusal('UNEXPECTED', `${message.message} opens no stream`);
    if (this.side === 'client') throw new Refusal('UNSUPPORTED', 'a server opens no streams');
    this.countPeers(message.stream);
    const stream = new Stream(message.stream, false, senderOrReceiver === 'sender' ? 'receiver' : 'sender',
      Number(this.hello.stream_allowance), Number(this.peer.stream_allowance));
    stream.priority = message.priority ?? message.tlvs.PRIORITY ?? 1;
    this.streams.set(stream.id, stream);
    return stream;
  }

  takeHello(hello) {
    if (this.greeted) throw new Refusal('UNEXPECTED', 'a second HELLO');
    if (hello.version_lowest > hello.version_highest) throw new Refusal('MALFORMED', 'version_lowest is above version_highest');
    const version = Math.min(hello.version_highest, this.hello.version_highest);
    if (version < hello.version_lowest || version < this.hello.version_lowest)
      throw new Refusal('UNSUPPORTED_VERSION', `we speak the versions ${this.hello.version_lowest} to ${this.hello.version_highest}`);
    const tooLow = ['head_length_max', 'piece_length_max', 'streams_max', 'connection_allowance', 'stream_allowance']
      .find((name) => BigInt(hello[name]) < BigInt(EARLY[name]));
    if (tooLow !== undefined) throw new Refusal('MALFORMED', `${tooLow} is below its least value`);
    if (hello.piece_length_max > 1048576) throw new Refusal('MALFORMED', 'piece_length_max is above 1,048,576');
    this.greeted = true;
    this.peer = hello;
    this.allowance = Math.max(this.allowance, Number(hello.connection_allowance));
    for (const stream of this.streams.values()) stream.allowance = Math.max(stream.allowance, Number(hello.stream_allowance));
  }

  takeCredit(message, stream) {
    const of = message.stream === 0 ? this : stream;
    if (of === null) return;
    if (message.received > BigInt(of.sent)) throw new Refusal('MALFORMED', 'more was received than was sent');
    of.allowance = Math.max(of.allowance, Number(message.allowance));
    if (stream !== null && message.tlvs.PRIORITY !== undefined) stream.priority = message.tlvs.PRIORITY;
  }

  // --- what goes ----------------------------------------------------------------------------------------------------

  /** A new stream of ours; `ourRole` is 'sender' for an upload and 'receiver' for FETCH, LIST and REMOVE. */
  open(ourRole) {
    const id = this.lastOurs === 0 ? (this.side === 'client' ? 1 : 2) : this.lastOurs + 2;
    this.lastOurs = id;
    const stream = new Stream(id, true, ourRole, Number(this.hello.stream_allowance), Number(this.peer.stream_allowance));
    this.streams.set(id, stream);
    return stream;
  }

  /** How many streams of ours are open; the other side takes `peer.streams_max`. */
  get oursOpen() {
    return [...this.streams.values()].filter((stream) => stream.ours).length;
  }

  /**
   * The bytes of a message of ours, after the table agreed.
   * @param {Stream|null} stream
   */
  say(stream, message, payloadLength = 0) {
    if (stream !== null) {
      const next = nextState(stream.ourRole, message, stream.state);
      if (next === undefined) throw new Error(`our mistake: ${message.message} in the state ${stream.state}`);
      stream.state = next;
      stream.sent += payloadLength;
      this.sent += payloadLength;
      if (next === 'closed') this.close(stream);
    }
    return encodeMessage({...message, stream: stream?.id ?? 0}, payloadLength);
  }

  close(stream) {
    stream.state = 'closed';
    this.streams.delete(stream.id);
  }

  /** How much payload may go out on a stream now. */
  sendable(stream) {
    return Math.min(stream.allowance - stream.sent, this.allowance - this.sent, this.peer.piece_length_max);
  }

  /** Payload was written or dropped (CRD-006). */
  consume(stream, count) {
    this.consumed += count;
    if (stream !== null) stream.consumed += count;
  }

  /** Of the first megabytes a sender hears early how they got through: it begins with little (CRD-007, STR-017). */
  isEarly(due) {
    return this.received < EARLY_LENGTH && due >= Math.min(Math.max(EARLY_STEP, this.received / 4), EARLY_STEP_MOST);
  }

  /** CREDIT for a stream or (null) the connection, if a good part of the window can be granted anew (CRD-007). */
  creditDue(stream) {
    const of = stream ?? this;
    const window = stream === null ? this.window : Number(this.hello.stream_allowance);
    if (stream !== null && stream.state === 'closed') return null;
    const due = of.consumed + window - of.granted;
    if (due < window / 4 && !(stream === null && this.isEarly(due))) return null;
    of.granted = of.consumed + window;
    return {message: 'CREDIT', allowance: BigInt(of.granted), received: BigInt(of.received)};
  }
}
