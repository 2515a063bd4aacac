/**
 * The jobs of spec/conformance.md as calls of the client.
 */
import {createReadStream} from 'node:fs';
import {mkdir} from 'node:fs/promises';
import {STATE, persistently} from './client.js';
import {ConnectionLost, Refusal} from './errors.js';

const UNTIL_MS = 10000;

const JOBS = {
  upload: async (client, {filename, path, if_exists: ifExists, give_up_after: giveUpAfter}) =>
    stored(await client.upload(path, filename, {ifExists, giveUpAfter})),
  'upload-stream': async (client, {filename, path, if_exists: ifExists}) =>
    stored(await client.uploadStream(createReadStream(path), filename, path, {ifExists})),
  'upload-many': async (client, {files}) => ({files: await client.uploadMany(files.map(({path, filename}) => ({source: path, filename})))}),
  download: async (client, {filename, path, first, length, give_up_after: giveUpAfter}) => {
    const {filesize, root} = await client.download(filename, path, {first, length, giveUpAfter});
    return {filesize: Number(filesize), root};
  },
  list: async (client, {folder, recursive}) => ({
    entries: await collect(client.list(folder, {recursive}),
      (item) => ({filename: item.filename, filesize: Number(item.filesize), folder: item.kind === 2})),
  }),
  stat: async (client, {filename}) => {
    const item = await client.stat(filename, {b3sum: true});
    return {filename: item.filename, filesize: Number(item.filesize), b3sum: item.tlvs.B3SUM};
  },
  uploads: async (client) => ({
    uploads: await collect(client.list('', {kind: 2}),
      (item) => ({sourceid: item.sourceid, filename: item.filename, position: Number(item.position)})),
  }),
  remove: async (client, {filename, recursive}) => (await client.remove(filename, {recursive}), {}),
  cancel: async (client, {sourceid}) => (await client.cancelUpload(sourceid), {}),
};

const stored = (committed) => ({stored_as: committed.stored_as, filesize: Number(committed.filesize), root: committed.root});

async function collect(items, shown) {
  const all = [];
  for await (const item of items) all.push(shown(item));
  return all;
}

/** Does one job, prints its line; returns the exit code. */
export async function runJob(wish) {
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(wish.server);
  await mkdir(STATE, {recursive: true});
  const options = {
    triesMax: wish.tries === undefined ? Infinity : Math.max(1, wish.tries), untilMs: UNTIL_MS, keepaliveS: wish.keepalive_s,
    onRetry: (error) => process.stderr.write(`${error.message}; again\n`),
  };
  try {
    const done = await persistently(host, Number(port), (client) => JOBS[wish.job](client, wish), options);
    process.stdout.write(`${JSON.stringify(done)}\n`);
    return 0;
  } catch (error) {
    const known = error instanceof Refusal || error instanceof ConnectionLost;
    if (!known && error.syscall === undefined) throw error;
    process.stderr.write(`${error.message}\n`);
    const lost = error instanceof ConnectionLost;
    process.stdout.write(`${JSON.stringify({error: error instanceof Refusal ? error.name : 'CONNECTION_LOST'})}\n`);
    return lost || (error instanceof Refusal && error.retryable) ? 3 : 1;
  }
}
