/**
 * The served folder: names to files without ever leaving it (NAM-006), listings, versions.
 *
 * A path is walked one component at a time from the root's open handle, and no step follows a symbolic link: each folder
 * is opened with O_NOFOLLOW and its children are reached through /proc/self/fd, so swapping a folder for a link meanwhile
 * changes nothing. This needs Linux; elsewhere use the platform's openat.
 */
import {constants} from 'node:fs';
import {lstat, mkdir, open, readdir, rmdir, unlink} from 'node:fs/promises';
import {isUtf8} from 'node:buffer';
import {FOLDER, ZEROS16, digestOf} from './blocks.js';
import {Refusal} from './errors.js';
import {brokenRule} from './names.js';
import {missing} from './lines.js';
import {syncFolder} from './partfile.js';

const FOLDER_FLAGS = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** Where an entry of the folder with this open handle is. */
const inside = (handle, name) => (name === '' ? `/proc/self/fd/${handle.fd}` : `/proc/self/fd/${handle.fd}/${name}`);

/** A stat with whole nanoseconds, never of what a link points to; null if there is nothing. */
export const statOf = (where) => lstat(where, {bigint: true}).catch(missing(null));

/** 16 bytes that differ after every change of the file's bytes (FET-004). */
export const versionOf = (stat) => digestOf(Buffer.from(`${stat.dev}/${stat.ino}/${stat.size}/${stat.mtimeNs}/${stat.ctimeNs}`)).slice(0, 32);

export class Folder {
  constructor(root, handle) {
    this.root = root;
    this.handle = handle;
  }

  static async open(root) {
    return new Folder(root, await open(root, constants.O_RDONLY | constants.O_DIRECTORY));
  }

  /**
   * Calls `use(where, name, handle)` with a path for the entry called `filename` that stays inside; the folder above is
   * open meanwhile.
   * @param {string} filename a name that was judged
   * @param {boolean} [make] make the folders above, durably
   */
  async within(filename, use, make = false) {
    const components = filename.split('/');
    const last = components.pop();
    let handle = this.handle;
    try {
      for (const component of components) {
        const next = await this.step(handle, component, make);
        if (handle !== this.handle) await handle.close();
        handle = next;
      }
      return await use(inside(handle, last), last, handle);
    } finally {
      if (handle !== this.handle) await handle.close();
    }
  }

  async step(handle, component, make) {
    const where = inside(handle, component);
    if (make) {
      const made = await mkdir(where).then(() => true, (error) => { if (error.code !== 'EEXIST') throw error; });
      if (made) await syncFolder(inside(handle, ''));
    }
    return open(where, FOLDER_FLAGS);
  }

  /** Runs `use` as `within` does; what cannot be reached is refused with `otherwise`. */
  async reach(filename, otherwise, use, make = false) {
    try {
      return await this.within(filename, use, make);
    } catch (error) {
      if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(error.code)) throw otherwise;
      if (['EACCES', 'EPERM', 'EROFS'].includes(error.code)) throw new Refusal('NOT_PERMITTED', 'the folder does not allow it');
      throw error;
    }
  }

  /** The stat of an entry; null if it is not there. */
  async stat(filename) {
    const nothing = new Refusal('UNKNOWN_FILE', 'there is no such file');
    return this.reach(filename, nothing, (where) => statOf(where)).catch((error) => {
      if (error !== nothing) throw error;
      return null;
    });
  }

  /** An open file to read, with its stat. */
  async openFile(filename) {
    const unknown = new Refusal('UNKNOWN_FILE', 'there is no such file');
    return this.reach(filename, unknown, async (where) => {
      const before = await lstat(where);
      if (before.isDirectory()) throw new Refusal('NOT_PERMITTED', 'that is a folder');
      if (!before.isFile()) throw unknown;
      const handle = await open(where, constants.O_RDONLY | constants.O_NOFOLLOW);
      return {handle, stat: await handle.stat({bigint: true})};
    });
  }

  /**
   * The entries of a folder, whole paths with their stats, in the byte order of the paths (LST-004).
   * @param {string} name '' for the served folder
   */
  async entries(name, recursive) {
    const unknown = new Refusal('UNKNOWN_FILE', 'there is no such folder');
    const found = [];
    const walk = async (handle, prefix) => {
      for (const bytes of await readdir(inside(handle, ''), {encoding: 'buffer'})) {
        if (!isUtf8(bytes)) continue;
        const filename = prefix + bytes.toString();
        if (brokenRule(filename) !== null) continue;
        const stat = await statOf(inside(handle, bytes.toString()));
        if (stat === null || !(stat.isFile() || stat.isDirectory())) continue;
        found.push({filename, bytes: Buffer.from(filename), stat});
        if (recursive && stat.isDirectory()) await walkInto(handle, bytes.toString(), `${filename}/`).catch(gone);
      }
    };
    const walkInto = async (handle, component, prefix) => {
      const child = await open(inside(handle, component), FOLDER_FLAGS);
      try {
        await walk(child, prefix);
      } finally {
        await child.close();
      }
    };
    if (name === '') await walk(this.handle, '');
    else await this.reach(name, unknown, (_where, last, handle) => walkInto(handle, last, `${name}/`));
    return found.sort((a, b) => Buffer.compare(a.bytes, b.bytes));
  }

  /** Removes a file or folder, durably (LST-010, LST-012). */
  async remove(filename, recursive) {
    const unknown = new Refusal('UNKNOWN_FILE', 'there is no such file');
    await this.reach(filename, unknown, async (where, name, handle) => {
      await removeEntry(where, recursive);
      await syncFolder(inside(handle, ''));
    });
  }

  /** One item of RESULT kind 1; `known` is the receipt of that file, if there is one. */
  static item(filename, stat, known) {
    const folder = stat.isDirectory();
    return {
      kind: folder ? 2 : 1, filesize: folder ? 0n : stat.size, mtime_ns: BigInt(known?.mtime ?? stat.mtimeNs), mode: Number(stat.mode & 0o777n),
      file_id: known?.fileId ?? ZEROS16, version: versionOf(stat), filename, filetype: folder ? FOLDER : known?.filetype ?? '',
      tlvs: {...(known && !folder ? {ROOT: known.root} : {}), ...(known?.b3sum ? {B3SUM: known.b3sum} : {})},
    };
  }
}

/** For `.catch`: a folder that vanished or may not be read has no entries. */
function gone(error) {
  if (!['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES'].includes(error.code)) throw error;
}

async function removeEntry(where, recursive) {
  const stat = await lstat(where);
  if (!stat.isDirectory()) return unlink(where);
  if (recursive) {
    const handle = await open(where, FOLDER_FLAGS);
    try {
      for (const name of await readdir(inside(handle, ''))) await removeEntry(inside(handle, name), true);
    } finally {
      await handle.close();
    }
  }
  return rmdir(where).catch((error) => {
    throw error.code === 'ENOTEMPTY' ? new Refusal('NOT_EMPTY', 'the folder is not empty') : error;
  });
}
