// What belongs to one answer before it is one: the time spent, what was begun, its id.

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

/** What was begun outlives a reload, in this browser alone. */
export const draft = {
  keep(person, content) {
    try {
      localStorage.setItem(`konomi.draft.${person}`, JSON.stringify(content));
    } catch {
      // a browser that keeps nothing: a reload begins the task again
    }
  },
  of(person, shown) {
    try {
      const kept = JSON.parse(localStorage.getItem(`konomi.draft.${person}`));
      return kept?.shown === shown ? kept : null;
    } catch {
      return null;
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
