/** Work on one thing, one after another; work on different things runs side by side. */
export class InTurn {
  constructor() {
    /** @type {Map<string, Promise<void>>} what was begun last, of each thing */ this.last = new Map();
  }

  /**
   * Does `work` when everything before it on the same thing has ended, well or not.
   * @template T
   * @param {string} thing
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async run(thing, work) {
    const done = (this.last.get(thing) ?? Promise.resolve()).then(work);
    const turn = done.then(() => {}, () => {});
    this.last.set(thing, turn);
    try {
      return await done;
    } finally {
      if (this.last.get(thing) === turn) this.last.delete(thing);
    }
  }
}
