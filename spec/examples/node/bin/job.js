#!/usr/bin/env node
/** One job of `blockproto conform client` (spec/conformance.md): a JSON object in, one line of JSON out. */
const MEMBERS = {
  upload: ['filename', 'path', 'if_exists', 'give_up_after'], 'upload-stream': ['filename', 'path', 'if_exists'],
  'upload-many': ['files'], download: ['filename', 'path', 'first', 'length', 'give_up_after'], list: ['folder', 'recursive'],
  stat: ['filename'], uploads: [], remove: ['filename', 'recursive'], cancel: ['sourceid'],
};
const EVERYWHERE = ['job', 'server', 'state', 'tries', 'keepalive_s'];

const wish = JSON.parse(process.argv.at(-1));
const unknown = Object.keys(wish).filter((member) => !EVERYWHERE.includes(member) && !MEMBERS[wish.job]?.includes(member));
if (MEMBERS[wish.job] === undefined || unknown.length > 0) {
  process.stderr.write(`this client does not know: ${MEMBERS[wish.job] === undefined ? wish.job : unknown.join(', ')}\n`);
  process.exit(127);
}
process.env.BLOCKPROTO_NODE_STATE = wish.state;
const {runJob} = await import('../src/jobs.js');
process.exitCode = await runJob(wish);
