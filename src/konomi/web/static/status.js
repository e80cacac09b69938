// What the page says of itself: whether answers are saved, how far it is, and what just happened, to eyes and screen readers.
import { t } from "./words.js";

const find = (id) => document.getElementById(id);
let clear;

/** Say something to screen readers alone. */
export function announce(text) {
  const place = find("announce");
  place.textContent = "";
  clearTimeout(clear);
  clear = setTimeout(() => (place.textContent = text), 50); // a text that is said again is said again
}

/** An error that stays until something works again; without a text: none. */
export function alarm(text = "") {
  find("alarm").textContent = text;
  find("alarm").hidden = !text;
}

/** Whether answers are saved: the state of the outbox. */
export function state({ state, waiting, kept }) {
  const place = find("state");
  const text = t(`state_${state}`, { waiting });
  place.dataset.state = state;
  place.textContent = kept ? text : `${text} ${t("state_not_kept")}`;
}

const round = (value) => (value >= 10 ? Math.round(value) : Math.round(value * 10) / 10);
export const percent = (share) => `${Math.round(100 * share)} %`;

function agreement({ share, low, high, couples }) {
  if (low == null || high == null) return t("agreement_value_alone", { share: percent(share), couples });
  return t("agreement_value", { share: percent(share), low: percent(low), high: percent(high), couples });
}

/** The progress of the person and of the team, in words and as a bar. */
export function progress(said) {
  if (!said) return;
  const left = said.minutes_left;
  const rows = {
    mine: t("progress_mine_value", { count: said.mine }),
    team: said.target ? t("progress_team_value", { team: said.team, target: said.target }) : String(said.team),
    per_hour: said.per_hour == null ? t("not_yet") : t("per_hour_value", { count: round(said.per_hour) }),
    left: left == null ? t("not_yet") : left >= 90 ? t("hours", { count: round(left / 60) }) : t("minutes", { count: Math.ceil(left) }),
    agreement: said.agreement ? agreement(said.agreement) : t("agreement_none"),
    enough: said.enough?.sentence ?? t("not_yet"),
  };
  for (const [name, text] of Object.entries(rows)) find(`progress-${name}`).textContent = text;
  const bar = find("progress-bar");
  bar.max = said.target || 1;
  bar.value = Math.min(said.team, bar.max);
  find("progress-short").textContent = `${t("progress_mine")} ${rows.mine} · ${t("progress_team")} ${rows.team}`;
}
