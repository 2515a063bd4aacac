/** The vectors of spec/vectors, read as its README says: long bytes joined, 64-bit numbers as BigInt. */
import {readFileSync} from 'node:fs';

const FOLDER = new URL('../../../vectors/', import.meta.url);
const BIG = new Set([
  'connection_allowance', 'stream_allowance', 'undurable_max', 'features', 'attempt', 'filesize', 'position', 'incarnation',
  'expires_ms', 'allowance', 'received', 'first', 'length', 'mtime_ns', 'current', 'MTIME',
]);

/** The messages of the feature FILES (chapter FIL), which this example does not have: types that nobody knows (FIL-001). */
export const NOT_HERE = ['FILES', 'STORED'];

/** One file of vectors. */
export const read = (name) => JSON.parse(readFileSync(new URL(`${name}.json`, FOLDER), 'utf8'));

/** Long bytes: hex, or a run of the pattern whose byte i is i mod 251. */
export const bytesOf = (parts) => Buffer.concat(parts.map((part) => (typeof part === 'string'
  ? Buffer.from(part, 'hex') : pattern(part.pattern_from, part.length))));

/** `length` bytes of the pattern from `from` on. */
export const pattern = (from, length) => Buffer.alloc(length, Buffer.from(Array.from({length: 251}, (_, i) => (from + i) % 251)));

/** `values` of a vector as the codec has them. */
export function valuesOf(values) {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [key, valueOf(key, value)]));
}

function valueOf(key, value) {
  if (key === 'tlvs') return valuesOf(value);
  if (key === 'items') return value.map((item) => ({tlvs: {}, ...valuesOf(item)}));
  return BIG.has(key) && typeof value === 'string' ? BigInt(value) : value;
}
