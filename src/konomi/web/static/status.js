// What the page says of itself: whether answers are saved, how far it is, and what just happened, to eyes and screen readers.
import { t } from "./words.js";

export const find = (id) => document.getElementById(id);
let soon, wrong;
let spoken = [];

// Nothing can be pressed before the scripts that answer have run.
document.addEventListener("DOMContentLoaded", () => (document.body.inert = false));

/** Say something to screen readers alone; what is said at once is said together. */
export function announce(text) {
  const place = find("announce");
  place.textContent = "";
  clearTimeout(soon);
  spoken.push(text);
  soon = setTimeout(() => {
    place.textContent = spoken.join(" "); // a text that is said again is said again
    spoken = [];
  }, 50);
}

/** An error that stays until something works again, in the language of the page: `say` gives its text. Without it: none. */
export function alarm(say = null) {
  wrong = say;
  const text = say?.() ?? "";
  if (find("alarm").textContent !== text) find("alarm").textContent = text;
  find("alarm").hidden = !text;
}
document.addEventListener("words", () => alarm(wrong));

/** Say what went wrong with a rater's request. */
export const trouble = ({ status, say }) => alarm(status === 401 ? () => t("signed_out") : say);

/** Do something that may fail: the error is shown until something works again. */
export async function attempt(act) {
  try {
    await act();
    alarm();
  } catch (failure) {
    alarm(failure.say);
  }
}

/** Whether answers are saved: the state of the outbox. What is wrong is said aloud too, unless it is an alarm. */
export function state({ state, waiting, kept }) {
  const place = find("state");
  const text = t(`state_${state}`, { waiting }) + (kept ? "" : ` ${t("state_not_kept")}`);
  place.dataset.state = state;
  if (place.textContent === text) return;
  place.textContent = text;
  if (state === "offline" || !kept) announce(text);
}

const grouped = (count) => count.toLocaleString("en");
const round = (value) => (value >= 10 ? Math.round(value) : Math.round(value * 10) / 10);
export const percent = (share) => `${Math.round(100 * share)} %`;

function agreement({ share, low, high, couples }) {
  if (low == null || high == null) return t("agreement_value_alone", { share: percent(share), couples });
  return t("agreement_value", { share: percent(share), low: percent(low), high: percent(high), couples });
}

function enough(data) {
  if (!data) return t("not_yet");
  return t(data.words, { comparisons: grouped(data.comparisons), needed: grouped(data.needed) });
}

/** The progress of the person and of the team, in words and as a bar. */
export function progress(counts) {
  if (!counts) return;
  const left = counts.minutes_left;
  const rows = {
    mine: t(counts.skipped ? "progress_mine_skipped" : "progress_mine_value", { count: counts.mine, skipped: counts.skipped }),
    team: counts.target ? t("progress_team_value", { team: counts.team, target: counts.target }) : String(counts.team),
    per_hour: counts.per_hour == null ? t("not_yet") : t("per_hour_value", { count: round(counts.per_hour) }),
    left: left == null ? t("not_yet") : left >= 90 ? t("hours", { count: round(left / 60) }) : t("minutes", { count: Math.ceil(left) }),
    agreement: counts.agreement ? agreement(counts.agreement) : t("agreement_none"),
    enough: enough(counts.enough),
  };
  for (const [name, text] of Object.entries(rows)) find(`progress-${name}`).textContent = text;
  const bar = find("progress-bar");
  bar.max = counts.target || 1;
  bar.value = Math.min(counts.team, bar.max);
  find("progress-short").textContent = `${t("progress_mine")} ${rows.mine} · ${t("progress_team")} ${rows.team}`;
}
