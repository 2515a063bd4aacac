/**
 * Who may say what in which state (STR-005): the table of chapter STR, row by row.
 *
 * `ERROR (block)` is any ERROR of scope block but DIGESTS_DIFFER, which is `ERROR (differ)`; `… with COMMIT` has the flag.
 */
import {ERRORS, SCOPE} from './errors.js';

/** [speaker, messages, in these states, next state] */
export const TRANSITIONS = [
  ['sender', ['OPEN'], ['new', 'wanted'], 'open'],
  ['sender', ['BLOCK'], ['new'], 'brief'],
  ['sender', ['BLOCK', 'PIECE'], ['brief', 'open', 'committing'], 'same'],
  ['sender', ['BLOCK with COMMIT'], ['new', 'brief'], 'committing'],
  ['sender', ['PIECE with COMMIT'], ['brief'], 'committing'],
  ['sender', ['HAVE'], ['open', 'committing'], 'same'],
  ['sender', ['COMMIT'], ['open'], 'committing'],
  ['sender', ['CANCEL'], ['open', 'brief', 'committing'], 'cancelling'],
  ['sender', ['RESULT'], ['asked'], 'closed'],
  ['receiver', ['FETCH'], ['new'], 'wanted'],
  ['receiver', ['LIST', 'REMOVE'], ['new'], 'asked'],
  ['receiver', ['CREDIT'], ['wanted', 'open', 'brief', 'committing', 'cancelling'], 'same'],
  ['receiver', ['OPENED', 'ACK', 'ERROR (block)'], ['open', 'brief', 'committing', 'cancelling'], 'same'],
  ['receiver', ['ERROR (differ)'], ['committing'], 'open'],
  ['receiver', ['ERROR (differ)'], ['cancelling'], 'same'],
  ['receiver', ['COMMITTED'], ['open', 'brief', 'committing', 'cancelling'], 'closed'],
  ['both', ['ERROR (stream)'], ['asked', 'wanted', 'open', 'brief', 'committing', 'cancelling'], 'closed'],
];

const TABLE = new Map();
for (const [speaker, messages, states, next] of TRANSITIONS)
  for (const role of speaker === 'both' ? ['sender', 'receiver'] : [speaker])
    for (const message of messages)
      for (const state of states) TABLE.set(`${role}/${message}/${state}`, next === 'same' ? state : next);

/** What a message is called in the table. */
function tableName(message) {
  const {message: name, flags = []} = message;
  if ((name === 'BLOCK' || name === 'PIECE') && flags.includes('COMMIT')) return `${name} with COMMIT`;
  if (name !== 'ERROR') return name;
  if (message.scope === SCOPE.stream) return 'ERROR (stream)';
  return message.code === ERRORS.DIGESTS_DIFFER[0] ? 'ERROR (differ)' : 'ERROR (block)';
}

/** The state after `role` said `message` in `state`, or undefined if it may not. */
export const nextState = (role, message, state) => TABLE.get(`${role}/${tableName(message)}/${state}`);
