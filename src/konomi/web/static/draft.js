// What belongs to one answer before it is one: the time spent, what was begun, the steps back, its id.

/** Seconds that the page was looked at. */
export class Clock {
  constructor() {
    this.spent = 0;
    this.since = document.hidden ? null : performance.now();
  }

  turn() {
    if (this.since !== null) this.spent += performance.now() - this.since;
    this.since = document.hidden ? null : performance.now();
    return Math.round(this.spent / 100) / 10;
  }
}

/** The states of one answer, to go back through. */
export class Past {
  constructor(state) {
    this.states = [JSON.stringify(state)];
  }

  /** Keep a state, if it is another one than the last. */
  add(state) {
    const text = JSON.stringify(state);
    if (text !== this.states.at(-1)) this.states.push(text);
  }

  /** Forget the last state; the one before it, or null if there is none. */
  back() {
    if (this.states.length < 2) return null;
    this.states.pop();
    return JSON.parse(this.states.at(-1));
  }
}

/** Small things that outlive a reload, in this browser alone. */
export const kept = {
  get(name) {
    try {
      return JSON.parse(localStorage.getItem(`konomi.${name}`));
    } catch {
      return null; // a browser that keeps nothing: a reload begins the task again
    }
  },
  set(name, content) {
    try {
      localStorage.setItem(`konomi.${name}`, JSON.stringify(content));
    } catch {
      // as above
    }
  },
  drop(name) {
    try {
      localStorage.removeItem(`konomi.${name}`);
    } catch {
      // as above
    }
  },
};

/** A random UUID; crypto.randomUUID is there on safe addresses only. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}
