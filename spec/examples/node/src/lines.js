/**
 * A file of JSON lines that is only appended to, durably: the ledger of a part, and the receipts.
 *
 * Lines that wait while one sync runs are written together and share the next. A write that failed (a full disk) is cut
 * off again, so that what comes after it stands on a line of its own; and so is a last line that a crash has torn.
 */
import {constants} from 'node:fs';
import {open, readFile} from 'node:fs/promises';

export class Lines {
  constructor(handle, size) {
    Object.assign(this, {handle, size});
    this.waiting = [];
    this.working = null;
    /** What is behind the last whole line could not be cut off: nothing may follow it. */ this.failed = null;
  }

  /** The whole lines of a file, as objects; none if there is no file. */
  static async read(where) {
    const text = await readFile(where, 'utf8').catch(missing(''));
    const whole = text.slice(0, text.lastIndexOf('\n') + 1);
    return {objects: whole.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line)), size: Buffer.byteLength(whole)};
  }

  /** Opens a file to append behind its first `size` bytes, the length of its whole lines. */
  static async open(where, size) {
    const handle = await open(where, constants.O_RDWR | constants.O_CREAT | constants.O_APPEND, 0o600);
    await handle.truncate(size);
    return new Lines(handle, size);
  }

  /** Resolves when this line is durable. */
  append(object) {
    if (this.failed !== null) return Promise.reject(this.failed);
    return new Promise((resolve, reject) => {
      this.waiting.push({line: `${JSON.stringify(object)}\n`, resolve, reject});
      this.working ??= this.work();
    });
  }

  async work() {
    while (this.waiting.length > 0) {
      const batch = this.waiting.splice(0);
      const bytes = Buffer.from(batch.map((each) => each.line).join(''));
      try {
        await this.handle.appendFile(bytes);
        await this.handle.datasync();
        this.size += bytes.length;
        for (const each of batch) each.resolve();
      } catch (error) {
        for (const each of batch) each.reject(error);
        await this.handle.truncate(this.size).catch((failure) => (this.failed = failure));
      }
    }
    this.working = null;
  }

  /** Closes the file, when what waits is written. */
  async close() {
    await this.working;
    await this.handle.close();
  }
}

/** For `.catch`: what is not there is `value`; any other error goes on. */
export const missing = (value) => (error) => {
  if (error.code !== 'ENOENT') throw error;
  return value;
};
