import { language, t } from "./words.js";

/** What the server, or the way to it, said no with. `status` 0: there was no answer at all. */
export class Failure extends Error {
  constructor(status, code, message, wait = 0) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
  /** Whether the same request may well succeed later. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** One request; the answer's JSON. Throws Failure and nothing else. */
export async function call(method, path, body) {
  const headers = { accept: "application/json", "accept-language": language() };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response, said;
  try {
    const signal = AbortSignal.timeout(15000);
    const content = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: content, cache: "no-store", credentials: "same-origin", signal });
    said = await response.json();
  } catch {
    if (!response) throw new Failure(0, "offline", t("no_answer"));
    said = null; // a proxy's page, or an answer cut short
    if (response.ok) throw new Failure(0, "offline", t("no_answer"));
  }
  if (!response.ok) {
    const wait = Number(response.headers.get("retry-after")) || 0;
    throw new Failure(response.status, said?.error?.code ?? "failed", said?.error?.message ?? t("failed", { status: response.status }), wait);
  }
  return said;
}

/** Waits between tries: 1, 2, 4 ... 30 seconds, each a little off so that many pages do not come at once. */
export const pause = (tries) => Math.min(30, 2 ** Math.min(tries, 5)) * 1000 * (0.75 + Math.random() / 2);
