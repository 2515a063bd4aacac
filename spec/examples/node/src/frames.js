/**
 * Frames out of a byte stream, however it was cut (chapter FRM, first half).
 *
 * TCP keeps no boundaries: a read may bring half a header or three frames and a half. The reader keeps what is not whole
 * (never more than one header and head), and hands payload on as it comes, without gathering it.
 *
 * Between two calls either fewer than `wanted` bytes are kept, or `payloadLeft` bytes of payload are to come.
 */
import {Refusal} from './errors.js';
import {HEADER, UNKNOWN_LENGTH_MAX, crc32, decodeHeader, messageName} from './wire.js';

export class FrameReader {
  /** @param {{head_length_max: number, piece_length_max: number}} limits those of our own HELLO */
  constructor(limits) {
    this.limits = limits;
    this.kept = Buffer.alloc(0);
    this.header = null;
    this.payloadLeft = 0;
  }

  /** Whether a header or head was begun and is not whole (END-007). */
  get unfinished() {
    return this.kept.length > 0;
  }

  /**
   * Yields {header, head} for every frame whose check is right, then {bytes, last} as its payload comes.
   * @param {Buffer} chunk
   */
  *feed(chunk) {
    let at = 0;
    while (at < chunk.length || this.header?.headLength === 0) {
      if (this.payloadLeft > 0) {
        const bytes = chunk.subarray(at, at + this.payloadLeft);
        at += bytes.length;
        this.payloadLeft -= bytes.length;
        yield {bytes, last: this.payloadLeft === 0};
        continue;
      }
      const wanted = this.header === null ? HEADER : HEADER + this.header.headLength;
      const more = chunk.subarray(at, at + wanted - this.kept.length);
      at += more.length;
      this.kept = this.kept.length === 0 ? more : Buffer.concat([this.kept, more]);
      if (this.kept.length < wanted) return;
      if (this.header === null) {
        this.header = decodeHeader(this.kept);
        this.judgeLengths(this.header);
        continue;
      }
      yield this.wholeHead();
    }
  }

  wholeHead() {
    const {header, kept} = this;
    const head = kept.subarray(HEADER);
    if (crc32(kept.subarray(0, 12), head) !== header.check) throw new Refusal('BAD_CHECK', 'a frame was damaged on its way');
    this.header = null;
    this.kept = Buffer.alloc(0);
    this.payloadLeft = header.length - header.headLength;
    return {header, head};
  }

  /** FRM-005 to FRM-008, before anything is kept for the head. */
  judgeLengths(header) {
    const payload = header.length - header.headLength;
    if (payload < 0) throw new Refusal('MALFORMED', 'head_length is greater than length');
    if (header.headLength > this.limits.head_length_max) throw new Refusal('TOO_LARGE', `a head of ${header.headLength} bytes`);
    const name = messageName(header.type);
    if (name === null) {
      if (header.length > UNKNOWN_LENGTH_MAX) throw new Refusal('TOO_LARGE', `an unknown frame of ${header.length} bytes`);
    } else if (name === 'BLOCK' || name === 'PIECE') {
      if (payload > this.limits.piece_length_max) throw new Refusal('TOO_LARGE', `a payload of ${payload} bytes`);
    } else if (payload > 0) throw new Refusal('MALFORMED', `${name} has no payload`);
  }
}
