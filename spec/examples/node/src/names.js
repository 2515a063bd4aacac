/**
 * Which names are refused (chapter NAM): the last thing between a stranger's string and a path.
 *
 * A name is judged, never repaired. The rules of profile wire are demanded of every filename; those of profile portable
 * are there for who wants to know whether a name works everywhere (case-collision needs a folder and is not here).
 */
import {Refusal, escapeText} from './errors.js';

const FORBIDDEN = /[\\:*?"<>|\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]/u;
const DEVICE = /^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\.|$)/i;

/**
 * The rule that a name breaks, or null.
 * @param {string} name
 * @param {boolean} validUtf8 false if the bytes it came from were not UTF-8
 * @returns {string|null}
 */
export function brokenRule(name, validUtf8 = true) {
  if (name === '') return 'empty';
  if (!validUtf8) return 'encoding';
  if (Buffer.byteLength(name) > 1024) return 'name-length';
  if (/[\u0000-\u001f\u007f-\u009f]/.test(name)) return 'control-character';
  if (name.startsWith('/')) return 'absolute';
  const components = name.split('/');
  for (const component of components) {
    if (component === '') return 'empty-component';
    if (component === '.' || component === '..') return 'dot-component';
    if (Buffer.byteLength(component) > 255) return 'component-length';
  }
  return components.some(isReserved) ? 'reserved' : null;
}

/** The rule of profile portable that a name breaks which breaks none of profile wire, or null. */
export function brokenPortableRule(name) {
  if (name.normalize('NFC') !== name) return 'not-nfc';
  if (FORBIDDEN.test(name)) return 'forbidden-character';
  for (const component of name.split('/')) {
    if (/^[ .]|[ .]$/.test(component)) return 'edge';
    if (DEVICE.test(component)) return 'device-name';
  }
  return null;
}

/** Whether some file system could take a component for `.blockproto`. */
function isReserved(component) {
  const visible = component.replace(/\p{Default_Ignorable_Code_Point}/gu, '');
  const folded = visible.normalize('NFKC').toUpperCase().toLowerCase();
  return folded.replace(/[. ]+$/, '') === '.blockproto';
}

/** Refuses a filename of a message that breaks a rule (NAM-004, ERR-007). */
export function judgeName(message, field = 'filename') {
  const name = message[field];
  const rule = brokenRule(name, !(field in message.invalid));
  if (rule !== null)
    throw new Refusal('NAME_REFUSED', `the name '${escapeText(name.slice(0, 200))}' is refused (rule ${rule}, profile wire)`);
}
