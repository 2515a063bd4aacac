/**
 * What the bytes mean: every message's layout, and how it becomes an object and back (chapter FRM).
 *
 * A message is a plain object: `message` (its name), `stream`, `flags` (names), the fields by their names in the
 * specification, `tlvs`. Integers of 64 bits are BigInt, because a JavaScript number is exact only up to 2^53; "unknown"
 * (all ones) is null; raw bytes are lower-case hex. `invalid` has the bytes of strings that were not UTF-8.
 */
import {isUtf8} from 'node:buffer';
import {Refusal, SCOPE} from './errors.js';

export const PREFACE = Buffer.from('ff424b500d0a1a0a', 'hex');
export const HEADER = 16;
export const UNKNOWN_LENGTH_MAX = 65536;

const MTIME = 1, MODE = 2, B3SUM = 3, ROOT = 4, HELD_ROOT = 5, IDS = 6, VERSION = 7, FILE_ID = 8, PRIORITY = 9, IF_EXISTS = 10;
const LEFT_OUT = 12;

/** TLV type → its name and the kind of its value. */
const TLVS = {
  [MTIME]: ['MTIME', 'i64'], [MODE]: ['MODE', 'u32'], [B3SUM]: ['B3SUM', 'raw32'], [ROOT]: ['ROOT', 'raw32'],
  [HELD_ROOT]: ['HELD_ROOT', 'raw32'], [IDS]: ['IDS', 'ids'], [VERSION]: ['VERSION', 'raw16'],
  [FILE_ID]: ['FILE_ID', 'raw16'], [PRIORITY]: ['PRIORITY', 'u8'], [IF_EXISTS]: ['IF_EXISTS', 'u8'],
  [LEFT_OUT]: ['LEFT_OUT', 'left_out'],
};

/** fields: [name, kind]; a kind with ? knows "all ones". flags: name → bit. tlvs: the types known in this message. */
const LAYOUTS = {
  HELLO: {
    type: 0x81, fields: [
      ['version_lowest', 'u16'], ['version_highest', 'u16'], ['head_length_max', 'u16'], ['piece_length_max', 'u32'],
      ['streams_max', 'u32'], ['connection_allowance', 'u64'], ['stream_allowance', 'u64'], ['undurable_max', 'u64'],
      ['features', 'u64'], ['agent', 'string']],
  },
  OPEN: {
    type: 0x83, fields: [
      ['sourceid', 'raw16'], ['attempt', 'u64'], ['filesize', 'u64?'], ['blocknum', 'u32?'], ['priority', 'u8'],
      ['if_exists', 'u8'], ['filename', 'string'], ['filetype', 'string']],
    tlvs: [MTIME, MODE, B3SUM, ROOT, VERSION, FILE_ID],
  },
  OPENED: {
    type: 0x84, fields: [
      ['sourceid', 'raw16'], ['file_id', 'raw16'], ['attempt', 'u64'], ['position', 'u64'], ['incarnation', 'u64'],
      ['expires_ms', 'u64?'], ['held', 'runs'], ['prefixes', 'prefixes']],
    tlvs: [HELD_ROOT],
  },
  BLOCK: {
    type: 0x85, fields: [
      ['sourceid', 'raw16'], ['filesize', 'u64?'], ['blocknum', 'u32?'], ['blockno', 'u32'], ['position', 'u64'],
      ['filename', 'string'], ['filetype', 'string'], ['digest', 'digest']],
    flags: {END: 1, COMMIT: 2}, tlvs: [MTIME, MODE, PRIORITY, IF_EXISTS],
  },
  PIECE: {type: 0x86, fields: [['position', 'u64'], ['digest', 'digest']], flags: {END: 1, COMMIT: 2}},
  ACK: {type: 0x87, fields: [['position', 'u64'], ['held', 'runs']]},
  CREDIT: {type: 0x88, fields: [['allowance', 'u64'], ['received', 'u64']], tlvs: [PRIORITY]},
  HAVE: {type: 0x89, fields: [['digests', 'digests']], flags: {MORE: 1}},
  COMMIT: {
    type: 0x8a, fields: [['sourceid', 'raw16'], ['root', 'raw32'], ['filesize', 'u64'], ['blocknum', 'u32']],
    tlvs: [MTIME, MODE, B3SUM],
  },
  COMMITTED: {
    type: 0x8b, fields: [
      ['sourceid', 'raw16'], ['file_id', 'raw16'], ['root', 'raw32'], ['filesize', 'u64'], ['stored_as', 'string']],
    flags: {LEFT: 1, THERE: 2}, tlvs: [B3SUM],
  },
  FETCH: {
    type: 0x8c, fields: [
      ['file_id', 'raw16'], ['first', 'u64'], ['length', 'u64?'], ['version', 'raw16'], ['priority', 'u8'],
      ['held', 'runs'], ['prefixes', 'prefixes'], ['filename', 'string']],
  },
  LIST: {
    type: 0x8d, fields: [['kind', 'u8'], ['limit', 'u16'], ['name', 'string'], ['cursor', 'string']],
    flags: {RECURSIVE: 1, EXACT: 2, FOLLOW: 4, B3SUM: 8}, tlvs: [IDS, IF_EXISTS],
  },
  REMOVE: {type: 0x8e, fields: [['kind', 'u8'], ['id', 'raw16'], ['filename', 'string']], flags: {RECURSIVE: 1}},
  RESULT: {type: 0x8f, fields: [['kind', 'u8'], ['items', 'items'], ['cursor', 'string']], tlvs: [LEFT_OUT]},
  CANCEL: {type: 0x90, fields: [['reason', 'u16'], ['text', 'string']], flags: {DISCARD: 1}},
  PING: {type: 0x91, fields: [['opaque', 'raw8'], ['next_s', 'u32']], flags: {ANSWER: 1}},
  ERROR: {
    type: 0x92, fields: [
      ['code', 'u16'], ['scope', 'u8'], ['retryable', 'u8'], ['retry_after_ms', 'u32'], ['blockno', 'u32?'],
      ['current', 'u64?'], ['text', 'string']],
  },
  GOAWAY: {type: 0x13, fields: [['code', 'u16'], ['grace_ms', 'u32'], ['retry_after_ms', 'u32'], ['text', 'string']]},
};

/** The items of RESULT, by its kind. */
const ITEMS = {
  1: {
    fields: [
      ['kind', 'u8'], ['filesize', 'u64'], ['mtime_ns', 'i64'], ['mode', 'u32'], ['file_id', 'raw16'],
      ['version', 'raw16'], ['filename', 'string'], ['filetype', 'string']],
    tlvs: [B3SUM, ROOT],
  },
  2: {
    fields: [
      ['sourceid', 'raw16'], ['file_id', 'raw16'], ['filesize', 'u64?'], ['blocknum', 'u32?'], ['position', 'u64'],
      ['held_count', 'u32'], ['expires_ms', 'u64?'], ['filename', 'string'], ['filetype', 'string']],
  },
  3: {
    fields: [
      ['sourceid', 'raw16'], ['file_id', 'raw16'], ['root', 'raw32'], ['filesize', 'u64'], ['stored_as', 'string']],
    tlvs: [B3SUM],
  },
};

const BY_TYPE = new Map(Object.entries(LAYOUTS).map(([name, layout]) => [layout.type, name]));

/** The name of a message type, or null if this version does not define it. */
export const messageName = (type) => BY_TYPE.get(type) ?? null;

const malformed = (text) => new Refusal('MALFORMED', text);
const ALL_ONES = 2n ** 64n - 1n;

// --- check ------------------------------------------------------------------------------------------------------------

const CRC_TABLE = Uint32Array.from({length: 256}, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

/** CRC-32/ISO-HDLC over some bytes (FRM-003); a Node that has zlib.crc32 could use that. */
export function crc32(...parts) {
  let value = 0xffffffff;
  for (const part of parts) for (const byte of part) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// --- reading ----------------------------------------------------------------------------------------------------------

/** The sixteen bytes before every head. */
export function decodeHeader(bytes) {
  return {
    length: bytes.readUIntBE(0, 3), type: bytes[3], flags: bytes.readUInt16BE(4), headLength: bytes.readUInt16BE(6),
    stream: bytes.readUInt32BE(8), check: bytes.readUInt32BE(12),
  };
}

/** Takes bytes from a head, one field after the other, and never one too many (FRM-012). */
class Taker {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
    this.invalid = {};
  }

  take(count) {
    if (this.at + count > this.bytes.length) throw malformed('the head ends too early');
    return this.bytes.subarray(this.at, (this.at += count));
  }

  u8 = () => this.take(1)[0];
  u16 = () => this.take(2).readUInt16BE();
  u32 = () => this.take(4).readUInt32BE();
  i64 = () => this.take(8).readBigInt64BE();
  hex = (count) => this.take(count).toString('hex');

  u64(orUnknown = false) {
    const value = this.take(8).readBigUInt64BE();
    if (orUnknown && value === ALL_ONES) return null;
    if (value >= 2n ** 63n) throw malformed('an integer of 2^63 or more');
    return value;
  }

  string(field) {
    const bytes = this.take(this.u16());
    if (!isUtf8(bytes)) this.invalid[field] = Buffer.from(bytes);
    return bytes.toString('utf8');
  }

  list(takeOne) {
    return Array.from({length: this.u16()}, takeOne);
  }

  runs() {
    let end = -1;
    return this.list(() => {
      const [first, count] = [this.u32(), this.u32()];
      if (count === 0 || first <= end || first + count > 0xffffffff) throw malformed('runs are out of order');
      end = first + count;
      return [first, count];
    });
  }

  rising(takeValue) {
    let last = -1;
    return this.list(() => {
      const blockno = this.u32();
      if (blockno <= last) throw malformed('the blocknos of a list do not rise');
      last = blockno;
      return [blockno, takeValue()];
    });
  }

  prefixes() {
    return this.rising(() => {
      const bytes = this.u32();
      if (bytes < 1 || bytes > 1048576) throw malformed('a prefix has from 1 to 1,048,576 bytes');
      return bytes;
    });
  }

  /** The groups of LEFT_OUT, to the last byte. */
  left_out() {
    const groups = [];
    while (this.at < this.bytes.length)
      groups.push({reason: this.u8(), count: this.u32(), names: this.list(() => this.string('names'))});
    return groups;
  }

  field(name, kind, flags) {
    switch (kind) {
      case 'u64': return this.u64();
      case 'u64?': return this.u64(true);
      case 'u32?': return nullIf(0xffffffff, this.u32());
      case 'raw8': return this.hex(8);
      case 'raw16': return this.hex(16);
      case 'raw32': return this.hex(32);
      case 'digest': return flags.includes('END') ? this.hex(32) : undefined;
      case 'digests': return this.rising(() => this.hex(32));
      default: return this[kind](name);
    }
  }

  fields(layout, flags) {
    const values = {};
    for (const [name, kind] of layout.fields) {
      const value = kind === 'items' ? this.items(values.kind) : this.field(name, kind, flags);
      if (value !== undefined) values[name] = value;
    }
    const tlvs = this.tlvs(layout.tlvs ?? []);
    return {...values, tlvs, invalid: this.invalid};
  }

  items(kind) {
    const layout = ITEMS[kind];
    if (layout === undefined) throw new Refusal('UNSUPPORTED', `there is no RESULT of kind ${kind}`);
    return this.list(() => new Taker(this.take(this.u16())).fields(layout, []));
  }

  /** The rest of the head; unknown types are skipped or, from 0x8000 on, must be understood (FRM-014, EXT-003). */
  tlvs(known) {
    const values = {};
    let last = -1;
    let notUnderstood = null;
    while (this.at < this.bytes.length) {
      const [type, length] = [this.u16(), this.u16()];
      if (type <= last) throw malformed('the types of TLVs do not rise');
      last = type;
      const value = this.take(length);
      if (!known.includes(type)) {
        if (type >= 0x8000) notUnderstood ??= type;
        continue;
      }
      const [name, kind] = TLVS[type];
      values[name] = tlvValue(kind, value);
    }
    if (notUnderstood !== null) throw new Refusal('UNSUPPORTED', `the TLV ${notUnderstood} is not understood`);
    return values;
  }
}

function tlvValue(kind, bytes) {
  const taker = new Taker(bytes);
  const value = kind === 'ids'
    ? Array.from({length: Math.floor(bytes.length / 16)}, () => taker.hex(16))
    : taker.field('', kind, []);
  if (taker.at !== bytes.length) throw malformed('a TLV has not the length of its type');
  return value;
}

const nullIf = (none, value) => (value === none ? null : value);

/**
 * A message from its header and head, as far as one frame can be judged alone (FRM-012 to FRM-019, EXT-003, EXT-004).
 * The type must be a known one.
 */
export function decodeMessage(header, head) {
  const name = messageName(header.type);
  const layout = LAYOUTS[name];
  const scope = header.stream === 0 ? SCOPE.connection : SCOPE.stream;
  try {
    const known = Object.entries(layout.flags ?? {});
    const flags = known.filter(([, bit]) => header.flags & bit).map(([flag]) => flag);
    const knownBits = known.reduce((bits, [, bit]) => bits | bit, 0);
    if (header.flags & ~knownBits & 0xf000) throw new Refusal('UNSUPPORTED', 'a flag is not understood');
    if (flags.includes('COMMIT') && !flags.includes('END')) throw malformed('COMMIT without END');
    const message = {message: name, stream: header.stream, flags, ...new Taker(head).fields(layout, flags)};
    judgeChoices(message);
    return message;
  } catch (error) {
    if (error instanceof Refusal && error.name === 'UNSUPPORTED') error.scope = scope;
    throw error;
  }
}

/** Numbers that choose among a few meanings (FRM-019). */
function judgeChoices(message) {
  const priority = message.priority ?? message.tlvs.PRIORITY ?? 0;
  if (priority > 2) throw malformed(`there is no priority ${priority}`);
  const ifExists = message.if_exists ?? message.tlvs.IF_EXISTS ?? 0;
  if (ifExists > 4) throw new Refusal('UNSUPPORTED', `there is no if_exists ${ifExists}`);
  if (message.message === 'ERROR' && (message.scope < 1 || message.scope > 3)) throw malformed(`there is no scope ${message.scope}`);
  if (message.message === 'LIST' && message.limit === 0) throw malformed('a limit of 0');
  if (message.message === 'LIST' && (message.kind < 1 || message.kind > 3))
    throw new Refusal('UNSUPPORTED', `there is no LIST of kind ${message.kind}`);
  if (message.message === 'REMOVE' && (message.kind < 1 || message.kind > 2))
    throw new Refusal('UNSUPPORTED', `there is no REMOVE of kind ${message.kind}`);
}

// --- writing ----------------------------------------------------------------------------------------------------------

const unsigned = (size) => (value) => {
  const bytes = Buffer.alloc(size);
  bytes.writeUIntBE(value, 0, size);
  return bytes;
};
const u16 = unsigned(2);
const u32 = unsigned(4);

function u64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value === null ? ALL_ONES : BigInt(value));
  return bytes;
}

function i64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(value);
  return bytes;
}

function listed(entries, encodeOne) {
  return Buffer.concat([u16(entries.length), ...entries.map(encodeOne)]);
}

function encodeField(kind, value, message) {
  switch (kind) {
    case 'u8': return unsigned(1)(value);
    case 'u16': return u16(value);
    case 'u32': return u32(value);
    case 'u32?': return u32(value ?? 0xffffffff);
    case 'u64': case 'u64?': return u64(value);
    case 'i64': return i64(value);
    case 'ids': return Buffer.from(value.join(''), 'hex');
    case 'left_out': return Buffer.concat(value.map(({reason, count, names}) => Buffer.concat([
      unsigned(1)(reason), u32(count), listed(names, (name) => withLength(Buffer.from(name)))])));
    case 'string': return withLength(Buffer.from(value));
    case 'runs': case 'prefixes': return listed(value, ([first, count]) => Buffer.concat([u32(first), u32(count)]));
    case 'digests': return listed(value, ([blockno, digest]) => Buffer.concat([u32(blockno), Buffer.from(digest, 'hex')]));
    case 'items': return listed(value, (item) => withLength(encodeItem(message.kind, item)));
    case 'digest': return value === undefined ? Buffer.alloc(0) : Buffer.from(value, 'hex');
    default: return Buffer.from(value, 'hex');
  }
}

const withLength = (bytes) => Buffer.concat([u16(bytes.length), bytes]);

function encodeFields(layout, message) {
  const parts = layout.fields.map(([name, kind]) => encodeField(kind, message[name], message));
  for (const type of layout.tlvs ?? []) {
    const [name, kind] = TLVS[type];
    const value = message.tlvs?.[name];
    if (value !== undefined) parts.push(u16(type), withLength(encodeField(kind, value)));
  }
  return Buffer.concat(parts);
}

/** The bytes of one item of a RESULT; pages are filled by their lengths. */
export const encodeItem = (kind, item) => encodeFields(ITEMS[kind], item);

/**
 * Header and head of a message; `payloadLength` bytes follow them.
 * @param {object} message
 * @param {number} payloadLength
 */
export function encodeMessage(message, payloadLength = 0) {
  const layout = LAYOUTS[message.message];
  const head = encodeFields(layout, message);
  const header = Buffer.alloc(HEADER);
  header.writeUIntBE(head.length + payloadLength, 0, 3);
  header[3] = layout.type;
  header.writeUInt16BE((message.flags ?? []).reduce((bits, flag) => bits | layout.flags[flag], 0), 4);
  header.writeUInt16BE(head.length, 6);
  header.writeUInt32BE(message.stream, 8);
  header.writeUInt32BE(crc32(header.subarray(0, 12), head), 12);
  return Buffer.concat([header, head]);
}
