// Answers that the server has not acknowledged yet. They are in localStorage before anything is sent, and leave it when the server
// has said that they are saved. The same answer sent twice is one answer there: its id was made here.
import { call, pause } from "./api.js";

export class Outbox extends EventTarget {
  /** @param {string} person whose answers: another person in the same browser has an outbox of their own. */
  constructor(person) {
    super();
    this.place = `konomi.outbox.${person}`;
    this.memory = []; // in case the browser keeps nothing for us
    this.tries = 0;
    this.sending = false;
    this.state = "saved";
    addEventListener("online", () => this.flush());
    addEventListener("offline", () => this.say("offline"));
    addEventListener("beforeunload", (event) => {
      if (this.waiting().length && !this.kept) event.preventDefault();
    });
  }

  waiting() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.place) ?? "[]");
      return Array.isArray(kept) ? kept : [];
    } catch {
      return this.memory;
    }
  }

  keep(answers) {
    this.memory = answers;
    try {
      localStorage.setItem(this.place, JSON.stringify(answers));
      this.kept = true;
    } catch {
      this.kept = false;
    }
  }

  say(state, detail = {}) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, waiting: this.waiting().length, kept: this.kept !== false, ...detail } }));
  }

  /** Keep an answer, then send it. */
  add(answer) {
    this.keep([...this.waiting(), answer]);
    this.say("pending");
    return this.flush();
  }

  /** Send all that waits, the oldest first; try again later if there is no answer. */
  async flush() {
    if (this.sending) return;
    clearTimeout(this.timer);
    this.sending = true;
    try {
      for (let [answer] = this.waiting(); answer; [answer] = this.waiting()) {
        const remove = () => this.keep(this.waiting().filter((other) => other.id !== answer.id));
        try {
          const said = await call("POST", "/api/answers", answer);
          if (said.saved !== true) throw new TypeError("the server did not say that it is saved");
          remove();
          this.tries = 0;
          this.say(this.waiting().length ? "pending" : "saved", { answer });
        } catch (failure) {
          if (failure.status === 401 || failure.status === 403) return this.say("signed_out", { failure });
          if (failure.passing !== false) {
            this.timer = setTimeout(() => this.flush(), Math.max(pause(this.tries++), 1000 * (failure.wait ?? 0)));
            return this.say(failure.status === 0 ? "offline" : "pending", { failure });
          }
          remove();
          this.say("refused", { answer, failure });
        }
      }
    } finally {
      this.sending = false;
    }
  }
}
