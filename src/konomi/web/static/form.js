// What an answer holds besides ranks, flags and rewritten texts: read from the form and written into it.
import { find } from "./status.js";

const form = find("form");

const number = (name) => Number(form.elements[name].value) || null;
const check = (name, value) => {
  for (const each of form.elements[name]) each.checked = each.value === String(value);
};

/** What can be undone step by step: not what is typed, where the browser does that. */
export const readForm = () => ({ all_bad: find("all-bad").checked, confidence: number("confidence"), strength: number("strength") });

export function fillForm({ all_bad = false, confidence = null, strength = null }) {
  find("all-bad").checked = all_bad;
  check("confidence", confidence);
  check("strength", strength);
}

/** Show whether it can be said how much better one text is: of two, of which one is. `asked`: whether the project asks for it. */
export function drawStrength(ranking, asked) {
  find("strength").hidden = !asked || ranking.keys.length !== 2;
  find("strength").disabled = !strong(ranking);
}

const strong = (ranking) => ranking.complete && !ranking.keys.some((key) => ranking.tied(key)) && !find("all-bad").checked;

/** The strength that is sent. */
export const strength = (ranking) => (strong(ranking) && !find("strength").hidden ? number("strength") : null);

/** One more: slightly, clearly, much, not said. Whether that was possible. */
export function stronger() {
  if (find("strength").hidden || find("strength").disabled) return false;
  check("strength", ((number("strength") ?? 0) + 1) % 4 || null);
  return true;
}
