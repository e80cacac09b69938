// Answers that the server has not acknowledged yet. They are in localStorage before anything is sent, and leave it when the server
// has said that they are saved, or why they never will be. The same answer sent twice is one answer there: its id was made here.
import { Failure, again, call, delay } from "./api.js";
import { allow } from "./keys.js";
import { trouble } from "./status.js";
import { t } from "./words.js";

/** The person, who has read the guidelines, and their outbox, once the server says who it is. @param listener gets the outbox's state events */
export async function enter(listener) {
  for (let tries = 0; ; tries++) {
    try {
      const [me, guide] = await Promise.all([call("GET", "/api/me"), call("GET", "/api/guidelines")]);
      if (me.guidelines_seen !== guide.version) return await new Promise(() => location.assign("/guidelines"));
      allow(me.shortcuts !== false);
      const outbox = new Outbox(me.person);
      outbox.addEventListener("state", listener);
      return { me, outbox };
    } catch (failure) {
      trouble(failure);
      await new Promise((go) => again(go, delay(failure, tries)));
    }
  }
}

/** One window at a time, where browsers can do that: on safe addresses. */
const alone = (name, act) => (navigator.locks ? navigator.locks.request(name, act) : act());

export class Outbox extends EventTarget {
  /** @param {string} person whose answers: another person in the same browser has an outbox of their own. */
  constructor(person) {
    super();
    this.person = person;
    this.place = `konomi.outbox.${person}`;
    this.memory = []; // in case the browser keeps nothing for us
    this.kept = true;
    this.tries = 0;
    this.sending = false;
    this.state = "saved";
    addEventListener("online", () => this.flush());
    addEventListener("offline", () => this.say("offline"));
    addEventListener("storage", (event) => event.key === this.place && !/^(saved|elsewhere)$/.test(this.state) && this.flush());
    addEventListener("beforeunload", (event) => {
      if (this.waiting().length && !this.kept) event.preventDefault();
    });
  }

  waiting() {
    try {
      const kept = this.kept ? JSON.parse(localStorage.getItem(this.place) ?? "[]") : this.memory;
      return Array.isArray(kept) ? kept : [];
    } catch {
      return this.memory;
    }
  }

  /** @param change is told what waits, and says what shall wait */
  keep(change) {
    return alone(this.place, () => {
      this.memory = change(this.waiting());
      try {
        localStorage.setItem(this.place, JSON.stringify(this.memory));
        this.kept = true;
      } catch {
        this.kept = false;
      }
    });
  }

  say(state, detail = {}) {
    this.state = state;
    this.left = this.waiting().length;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, waiting: this.left, kept: this.kept, ...detail } }));
  }

  /** Keep an answer, then send it. */
  async add(answer) {
    await this.keep((waiting) => [...waiting, answer]);
    this.say("pending");
    return this.flush();
  }

  /** Send all that waits, the oldest first; try again later if that is not possible. */
  async flush() {
    if (this.sending) return;
    this.stop?.();
    this.sending = true;
    try {
      let sent = 0;
      for (let [answer] = this.waiting(); answer; [answer] = this.waiting(), sent++) if (!(await this.send(answer))) return;
      if (!sent && !/^(saved|refused)$/.test(this.state)) this.say(this.left ? "elsewhere" : "saved"); // another window has sent it
    } finally {
      this.sending = false;
    }
  }

  /** Whether the server has decided on an answer, which then waits no more. */
  async send(answer) {
    const remove = () => this.keep((waiting) => waiting.filter((other) => other.id !== answer.id));
    try {
      const result = await call("POST", "/api/answers", { ...answer, person: this.person }); // somebody else may have come in meanwhile
      if (result?.saved !== true) throw new Failure(0, "", () => t("no_answer")); // it was not konomi that answered
    } catch (failure) {
      if (!failure.final) {
        this.stop = again(() => this.flush(), delay(failure, this.tries++));
        this.say({ 0: "offline", 401: "signed_out" }[failure.status] ?? "pending", { failure });
        return false;
      }
      await remove();
      this.say("refused", { answer, failure });
      return true;
    }
    await remove();
    this.tries = 0;
    this.say(this.waiting().length ? "pending" : "saved", { answer });
    return true;
  }
}
