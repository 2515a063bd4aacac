/**
 * Whose turn it is to send payload (STR-012): interactive, normal and bulk in the ratio 16 : 4 : 1.
 *
 * Each class has a clock that runs by bytes ÷ weight; the class whose clock is behind goes next, and streams of one class
 * take turns. A class that comes back after a pause starts at the others' time, so it cannot make up for its silence.
 */
const WEIGHTS = [16, 4, 1];

export class Turns {
  constructor() {
    this.waiting = new Set();
    this.clocks = [0, 0, 0];
    this.busy = [false, false, false];
  }

  /** @param {{stream: {priority: number}}} turn anything that wants to send for a stream */
  add(turn) {
    this.waiting.add(turn);
  }

  remove(turn) {
    this.waiting.delete(turn);
  }

  /** The next turn that `canSend`, or null. */
  next(canSend) {
    const first = [null, null, null];
    for (const turn of this.waiting) if (first[turn.stream.priority] === null && canSend(turn)) first[turn.stream.priority] = turn;
    this.wake(first);
    let best = null;
    for (let priority = 0; priority < 3; priority++)
      if (first[priority] !== null && (best === null || this.clocks[priority] < this.clocks[best])) best = priority;
    return best === null ? null : first[best];
  }

  wake(first) {
    const running = this.clocks.filter((_, priority) => this.busy[priority] && first[priority] !== null);
    const now = running.length > 0 ? Math.min(...running) : Math.max(...this.clocks);
    for (let priority = 0; priority < 3; priority++) {
      if (first[priority] !== null && !this.busy[priority]) this.clocks[priority] = Math.max(this.clocks[priority], now);
      this.busy[priority] = first[priority] !== null;
    }
  }

  /** `turn` has sent so many bytes; it goes behind the others of its class. */
  sent(turn, count) {
    this.clocks[turn.stream.priority] += count / WEIGHTS[turn.stream.priority];
    this.waiting.delete(turn);
    this.waiting.add(turn);
  }
}
