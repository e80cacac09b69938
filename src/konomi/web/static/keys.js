// Keys and buttons, and what they ask for. Arrow keys and Enter work on a focused card; single keys can be switched off.
import { call } from "./api.js";
import { alarm } from "./status.js";

const box = document.getElementById("shortcuts");
let shortcuts = true;
const LETTERS = { U: "undo", X: "all_bad", S: "skip", E: "earlier", G: "guidelines", M: "strength", W: "rewrite" };

/** Whether single keys do something. */
export function allow(on) {
  shortcuts = on;
  if (box) box.checked = on;
}

/** Do what keys and buttons ask for. @param acts by name, told what was asked; @param able whether a key may do that now */
export function obey(acts, able) {
  document.addEventListener("keydown", (event) => {
    const asked = meaning(event);
    if (!asked || !(asked.do in acts) || !able(asked)) return;
    event.preventDefault();
    acts[asked.do](asked);
  });
  for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]({}));
  box?.addEventListener("change", () => {
    shortcuts = box.checked;
    call("POST", "/api/me", { shortcuts }).catch(({ say }) => alarm(say));
  });
}

/**
 * What a key press asks for, or null: {do: "rank", rank}, 0 for none, and others by name.
 * Nothing while an input method composes (Enter and digits choose among its proposals), while somebody writes, or in a dialog.
 */
function meaning(event) {
  if (event.isComposing || event.keyCode === 229) return null;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return null;
  const at = event.target;
  if (at.closest?.("textarea, select, input:not([type=checkbox])")) return null;
  const card = at.classList?.contains("card");
  if (card && !event.shiftKey) {
    if (event.key === "Enter") return event.repeat ? null : { do: "submit" };
    const step = { ArrowUp: "better", ArrowDown: "worse" }[event.key];
    if (step) return { do: step };
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way) return { do: "select", way };
    if (event.key === "Backspace" || event.key === "Delete") return { do: "clear" };
  }
  if (!shortcuts || event.shiftKey || event.repeat) return null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  if (digit) return { do: "rank", rank: Number(digit[1]) };
  // the letter that is written on the key; where there is none, as on a Russian keyboard, where it would be
  const letter = /^[a-z]$/i.exec(event.key.normalize("NFKC"))?.[0] ?? /^Key(.)$/.exec(event.code)?.[1] ?? "";
  return letter.toUpperCase() in LETTERS ? { do: LETTERS[letter.toUpperCase()] } : null;
}
