/**
 * The command line: what is typed becomes calls of the client or the server, what comes back becomes lines and exit codes.
 */
import {mkdir, readFile, readdir, stat, unlink, writeFile} from 'node:fs/promises';
import path from 'node:path';
import {parseArgs} from 'node:util';
import {digestOf} from './blocks.js';
import {STATE, persistently} from './client.js';
import {ConnectionLost, escapeText} from './errors.js';
import {missing} from './lines.js';
import {Server} from './server.js';

const USAGE = `usage:
  blockproto.js serve DIR [--host HOST] [--port PORT]
  blockproto.js upload FILE bp://HOST[:PORT]/[FOLDER/] [--as NAME] [--if-exists keep|refuse|replace]
  blockproto.js download bp://HOST[:PORT]/NAME [TARGET] [--range FIRST-LAST]
  blockproto.js list bp://HOST[:PORT]/[FOLDER] [-r]
  blockproto.js uploads bp://HOST[:PORT]/
  blockproto.js remove bp://HOST[:PORT]/NAME [-r]
  blockproto.js resume             every upload and download of this user that did not end
  (--json prints one object a line)`;

const OPTIONS = {
  host: {type: 'string', default: '127.0.0.1'}, port: {type: 'string', default: '7878'}, as: {type: 'string'},
  'if-exists': {type: 'string', default: 'keep'}, range: {type: 'string'}, recursive: {type: 'boolean', short: 'r'},
  json: {type: 'boolean'}, tries: {type: 'string', default: '8'},
};
const IF_EXISTS = {keep: 0, refuse: 1, replace: 2};

class UsageError extends Error {}

/** Runs one command; returns its exit code. */
export async function main(args) {
  try {
    const {values, positionals} = parseArgs({args, options: OPTIONS, allowPositionals: true});
    const [command, ...rest] = positionals;
    const run = {serve, upload, download, list, uploads, remove, resume}[command];
    if (run === undefined) throw new UsageError(`there is no command '${command ?? ''}'`);
    return (await run(values, ...rest)) ?? 0;
  } catch (error) {
    if (error instanceof UsageError || String(error.code).startsWith('ERR_PARSE_ARGS')) {
      process.stderr.write(`${error.message}\n${USAGE}\n`);
      return 2;
    }
    if (error.retryable === undefined && error.code === undefined) throw error;
    process.stderr.write(`blockproto: ${error.name}: ${error.message}\n`);
    return error instanceof ConnectionLost ? 3 : 1;
  }
}

/** bp://HOST[:PORT]/NAME; %20 and the like are decoded. */
function parseUrl(text) {
  const match = /^bp:\/\/(\[[^\]]+\]|[^/:]+)(?::(\d+))?(?:\/(.*))?$/su.exec(text ?? '');
  if (match === null) throw new UsageError(`'${text ?? ''}' is not bp://HOST[:PORT]/NAME`);
  const [, host, port = '7878', name = ''] = match;
  return {host: host.replace(/^\[|\]$/g, ''), port: Number(port), name: name.replace(/(%[0-9a-f]{2})+/gi, decodeURIComponent)};
}

function show(values, object, line) {
  const plain = (key, value) => (typeof value === 'bigint' ? Number(value) : value);
  process.stdout.write(values.json ? `${JSON.stringify(object, plain)}\n` : `${line}\n`);
}

const tell = (error, waitMs) => process.stderr.write(`${error.message}; trying again in ${Math.round(waitMs)} ms\n`);

const dial = (values, {host, port}, use) => persistently(host, port, use, {triesMax: Number(values.tries), onRetry: tell});

async function serve(values, root) {
  if (root === undefined) throw new UsageError('serve which folder?');
  const server = await Server.start(root, {host: values.host, port: Number(values.port), log: (line) => process.stderr.write(`${line}\n`)});
  process.stdout.write(`listening on ${values.host}:${server.port}\n`);
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => server.stop());
  const code = await server.stopped;
  setTimeout(() => process.exit(code), 100).unref();
  return code;
}

async function upload(values, source, url) {
  if (source === undefined) throw new UsageError('upload which file?');
  const ifExists = IF_EXISTS[values['if-exists']];
  if (ifExists === undefined) throw new UsageError(`--if-exists keep, refuse or replace, not '${values['if-exists']}'`);
  const target = parseUrl(url);
  const filename = values.as ?? (target.name === '' || target.name.endsWith('/') ? target.name + path.basename(source) : target.name);
  return remembered(['upload', path.resolve(source), url, '--as', filename, '--if-exists', values['if-exists']], async () => {
    let sent = 0;
    const onSent = ({bytes}) => (sent += bytes);
    const committed = await dial(values, target, (client) => client.upload(source, filename, {ifExists, onSent}));
    const {stored_as: storedAs, root, filesize} = committed;
    show(values, {filename, stored_as: storedAs, root, filesize, payload_bytes_sent: sent}, `${escapeText(storedAs)}  ${root}`);
  });
}

async function download(values, url, given) {
  const source = parseUrl(url);
  const name = source.name.split('/').at(-1);
  if (name === '') throw new UsageError('download which file?');
  const folder = given !== undefined && (await stat(given).catch(missing(null)))?.isDirectory();
  const target = path.resolve(folder ? path.join(given, name) : given ?? name);
  const range = parseRange(values.range);
  const again = values.range === undefined ? [] : ['--range', values.range];
  return remembered(['download', url, target, ...again], async () => {
    const committed = await dial(values, source, (client) => client.download(source.name, target, range));
    show(values, {filename: source.name, target, root: committed.root, filesize: committed.filesize}, escapeText(target));
  });
}

function parseRange(text) {
  if (text === undefined) return {};
  const [, first, last] = /^(\d+)-(\d*)$/.exec(text) ?? [];
  if (first === undefined) throw new UsageError(`--range FIRST-LAST, not '${text}'`);
  return {first: Number(first), length: last === '' ? null : Number(last) - Number(first) + 1};
}

async function list(values, url) {
  const place = parseUrl(url);
  await dial(values, place, async (client) => {
    for await (const item of client.list(place.name.replace(/\/$/, ''), {recursive: values.recursive}))
      show(values, item, lineOf(item));
  });
}

const lineOf = ({kind, filesize, filename}) => (kind === 2
  ? `${'-'.padStart(14)}  ${escapeText(filename)}/` : `${String(filesize).padStart(14)}  ${escapeText(filename)}`);

async function uploads(values, url) {
  await dial(values, parseUrl(url), async (client) => {
    for await (const item of client.list('', {kind: 2}))
      show(values, item, `${item.sourceid}  ${item.held_count}/${item.blocknum ?? '?'} blocks  ${escapeText(item.filename)}`);
  });
}

async function remove(values, url) {
  const place = parseUrl(url);
  await dial(values, place, (client) => client.remove(place.name.replace(/\/$/, ''), {recursive: values.recursive}));
}

// --- what is unfinished -----------------------------------------------------------------------------------------------

const PENDING = path.join(STATE, 'pending');

/** Runs a transfer; until it has ended its command line is kept, for `resume`. */
async function remembered(args, run) {
  await mkdir(PENDING, {recursive: true});
  const note = path.join(PENDING, digestOf(Buffer.from(JSON.stringify(args))).slice(0, 32));
  await writeFile(note, JSON.stringify(args));
  try {
    await run();
  } catch (error) {
    if (!error.retryable) await unlink(note).catch(missing());
    throw error;
  }
  await unlink(note).catch(missing());
}

async function resume(values) {
  let worst = 0;
  for (const name of await readdir(PENDING).catch(missing([]))) {
    const args = JSON.parse(await readFile(path.join(PENDING, name), 'utf8'));
    worst = Math.max(worst, await main([...args, '--tries', values.tries, ...(values.json ? ['--json'] : [])]));
  }
  return worst;
}
