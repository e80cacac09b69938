import { language, t } from "./words.js";

const FINAL = /^(conflict|conflict_revision|too_long|too_large|unknown_task|bad_(id|kind|ranks|reason|flags|confidence|strength|edits|seconds|request))$/;

/** What the server, or the way to it, said no with. `status` 0: there was no answer at all. */
export class Failure extends Error {
  /** @param {() => string} say what it is, in the language of the page, which may change */
  constructor(status, code, say, wait = 0) {
    super(code);
    Object.assign(this, { status, code, say, wait });
  }
  /** Whether it was konomi itself that said no, and will always say so. */
  get final() {
    return FINAL.test(this.code);
  }
}

/** One request; the answer's JSON. Throws Failure and nothing else. */
export async function call(method, path, body) {
  const headers = { accept: "application/json", "accept-language": language() };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response, json;
  try {
    const signal = AbortSignal.timeout(15000);
    const content = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: content, cache: "no-store", credentials: "same-origin", signal });
    json = await response.json();
  } catch {
    if (!response || response.ok) throw new Failure(0, "", () => t("no_answer")); // or it was cut short
    json = null; // a proxy's page
  }
  if (response.ok) return json;
  const { code = "", message, messages } = json?.error ?? {};
  const say = () => messages?.[language()] ?? message ?? t("failed", { status: response.status });
  throw new Failure(response.status, code, say, Number(response.headers.get("retry-after")) || 0);
}

/** Milliseconds before another try: 1, 2, 4 ... 30 seconds, a little off so that many pages do not come at once. Without a session: none. */
export function delay(failure, tries) {
  if (failure.status === 401) return Infinity;
  return Math.max(Math.min(30, 2 ** Math.min(tries, 5)) * (0.75 + Math.random() / 2), failure.wait) * 1000;
}

/** Do something after a while, or as soon as somebody looks at the page again. Returns how to give it up. */
export function again(act, wait) {
  const stop = () => {
    clearTimeout(timer);
    for (const name of ["focus", "visibilitychange"]) removeEventListener(name, run);
  };
  const run = () => {
    if (document.hidden) return;
    stop();
    act();
  };
  const timer = wait < Infinity ? setTimeout(() => (stop(), act()), wait) : 0;
  for (const name of ["focus", "visibilitychange"]) addEventListener(name, run);
  return stop;
}
