/**
 * Block arithmetic, runs of blocks, digests (chapters BLK and DIG).
 *
 * Sizes and positions are JavaScript numbers here: a file has at most 2^32 − 2 blocks, so at most 2^52 bytes, and numbers
 * are exact up to 2^53. On the wire they are BigInt (wire.js); `factsOf` is the border between the two.
 */
import {blake3} from '@noble/hashes/blake3';
import {Refusal} from './errors.js';

export const BLOCK = 1048576;
export const FOLDER = 'inode/directory';
export const ZEROS16 = '0'.repeat(32);

/** How many blocks a file of `filesize` bytes has. */
export const blocknumOf = (filesize) => Math.ceil(filesize / BLOCK);

/** A hash that takes bytes piece by piece: `update(bytes)`, then `digest()` as hex. */
export function hasher() {
  const state = blake3.create({});
  return {
    update: (bytes) => state.update(bytes),
    digest: () => Buffer.from(state.digest()).toString('hex'),
  };
}

/** The digest of some bytes, as hex. */
export const digestOf = (bytes) => Buffer.from(blake3(bytes)).toString('hex');

/** Keyed BLAKE3, cut to 16 bytes: what sourceids are derived with (RES-002). */
export const keyedId = (key, text) => Buffer.from(blake3(Buffer.from(text), {key})).subarray(0, 16).toString('hex');

/**
 * The root of a file (DIG-001) from its blocks' digests in the order of blockno.
 * @param {string[]} digests
 */
export function rootOf(digests) {
  if (digests.length === 1) return digests[0];
  return digestOf(Buffer.from(digests.join(''), 'hex'));
}

/** HELD_ROOT (DIG-004): the hash of the held blocks' digests, also when it is one. */
export const heldRootOf = (digests) => digestOf(Buffer.from(digests.join(''), 'hex'));

/**
 * Runs [first, count] of some blocknos, in rising order.
 * @param {Iterable<number>} blocknos
 * @param {number} [runsMax] so many runs at most; what does not fit is left out
 */
export function runsOf(blocknos, runsMax = Infinity) {
  const runs = [];
  for (const blockno of [...blocknos].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && last[0] + last[1] === blockno) last[1] += 1;
    else if (runs.length < runsMax) runs.push([blockno, 1]);
    else break;
  }
  return runs;
}

/** The bytes of one block: [start, end), cut to the range of a transfer (BLK-001, FET-005). */
export function blockSpan(blockno, first, end) {
  return [Math.max(blockno * BLOCK, first), Math.min((blockno + 1) * BLOCK, end)];
}

/** The blocknos of a range [first, end). */
export function blocknosOf(first, end) {
  if (first >= end) return [];
  const from = Math.floor(first / BLOCK);
  return Array.from({length: blocknumOf(end) - from}, (_, i) => from + i);
}

/**
 * filesize and blocknum of a message as numbers, judged (BLK-002, BLK-003, BLK-004, BLK-016, BLK-021).
 * Both are null while they are unknown.
 */
export function factsOf(message) {
  const {filename, filetype} = message;
  const blocknum = message.blocknum;
  if ((message.filesize === null) !== (blocknum === null))
    throw new Refusal('BAD_FACTS', 'filesize and blocknum are known or unknown together');
  if (message.filesize !== null && message.filesize > BigInt(BLOCK) * (2n ** 32n - 2n))
    throw new Refusal('BAD_FACTS', `a file has at most 2^32 - 2 blocks, not ${message.filesize} bytes`);
  const filesize = message.filesize === null ? null : Number(message.filesize);
  if (filesize !== null && blocknum !== blocknumOf(filesize))
    throw new Refusal('BAD_FACTS', `${filesize} bytes are ${blocknumOf(filesize)} blocks, not ${blocknum}`);
  if (filetype.length > 255 || !/^[\x20-\x7e]*$/.test(filetype))
    throw new Refusal('BAD_FACTS', 'a filetype is at most 255 bytes of printable ASCII');
  if (filetype === FOLDER && filesize !== 0) throw new Refusal('BAD_FACTS', 'a folder has the filesize 0');
  return {sourceid: message.sourceid, filename, filetype, filesize, blocknum};
}
