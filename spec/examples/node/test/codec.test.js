/** The codec against spec/vectors: frames, digests, names, the transition table. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {blockSpan, blocknosOf, blocknumOf, digestOf, hasher, heldRootOf, rootOf} from '../src/blocks.js';
import {FrameReader} from '../src/frames.js';
import {brokenPortableRule, brokenRule} from '../src/names.js';
import {OUR_HELLO} from '../src/session.js';
import {TRANSITIONS} from '../src/transitions.js';
import {crc32, decodeHeader, decodeMessage, encodeMessage, messageName} from '../src/wire.js';
import {NOT_HERE, bytesOf, pattern, read, valuesOf} from './vectors.js';

const withoutInvalid = ({invalid: _, ...values}) => (
  {...values, ...(values.items ? {items: values.items.map(withoutInvalid)} : {})});

for (const vector of read('frames').vectors) {
  test(`frame ${vector.name}`, () => {
    const bytes = Buffer.from(vector.head, 'hex');
    const header = decodeHeader(bytes);
    const payload = bytesOf(vector.payload);
    assert.equal(crc32(bytes.subarray(0, 12), bytes.subarray(16)), header.check);
    assert.equal(header.length - header.headLength, payload.length);
    if (vector.message === 'UNKNOWN' || NOT_HERE.includes(vector.message)) {
      assert.equal(messageName(header.type), null);
      return;
    }
    const expected = {tlvs: {}, ...valuesOf(vector.values), message: vector.message, stream: vector.stream, flags: vector.flags};
    assert.deepEqual(withoutInvalid(decodeMessage(header, bytes.subarray(16))), expected);
    if (vector.canonical) assert.equal(encodeMessage(expected, payload.length).toString('hex'), vector.head);
  });
}

test('frames come out whole, however the bytes were cut', () => {
  const frames = read('frames').vectors.filter((vector) => messageName(decodeHeader(Buffer.from(vector.head, 'hex')).type) !== null);
  const stream = Buffer.concat(frames.flatMap((vector) => [Buffer.from(vector.head, 'hex'), bytesOf(vector.payload)]));
  for (const size of [1, 7, 16, 1000, 65536]) {
    const reader = new FrameReader(OUR_HELLO);
    let heads = 0;
    let payload = 0;
    for (let at = 0; at < stream.length; at += size)
      for (const part of reader.feed(stream.subarray(at, at + size))) {
        if (part.bytes === undefined) heads += 1;
        else payload += part.bytes.length;
      }
    assert.equal(heads, frames.length);
    assert.equal(payload, frames.reduce((sum, vector) => sum + bytesOf(vector.payload).length, 0));
    assert.equal(reader.unfinished, false);
  }
});

for (const vector of read('digests').vectors) {
  test(`digests of ${vector.filesize} bytes from ${vector.first}, ${vector.length} long`, () => {
    assert.equal(blocknumOf(vector.filesize), vector.blocknum);
    const end = Math.min(vector.first + vector.length, vector.filesize);
    const blocks = blocknosOf(vector.first, end).map((blockno) => {
      const [start, stop] = blockSpan(blockno, vector.first, end);
      return {blockno, position: start, length: stop - start, digest: digestOf(pattern(start, stop - start))};
    });
    assert.deepEqual(blocks, vector.blocks);
    const digests = blocks.map((block) => block.digest);
    assert.equal(rootOf(digests), vector.root);
    assert.equal(digests.length > 0 ? heldRootOf(digests) : null, vector.held_root);
    const whole = hasher();
    whole.update(pattern(vector.first, end - vector.first));
    assert.equal(whole.digest(), vector.b3sum);
  });
}

test('checks', () => {
  for (const {hex, check} of read('digests').checks) assert.equal(crc32(Buffer.from(hex, 'hex')).toString(16).padStart(8, '0'), check);
});

test('names', () => {
  for (const {hex, text, profile, refused} of read('names').vectors) {
    const bytes = Buffer.from(hex, 'hex');
    const name = text ?? bytes.toString();
    const broken = brokenRule(name, text !== null) ?? (profile === 'portable' ? brokenPortableRule(name) : null);
    assert.equal(broken, refused, `${hex} ${profile}`);
  }
});

test('the transition table', () => {
  const here = (state) => !['files', 'filed', 'listed'].includes(state);
  const rows = read('transitions').vectors.filter((row) => !NOT_HERE.includes(row.messages[0].split(' ')[0]))
    .map((row) => [row.speaker, row.messages, row.in.filter(here), row.next]);
  assert.deepEqual(TRANSITIONS, rows);
});
