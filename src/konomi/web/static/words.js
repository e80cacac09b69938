// The page's words, in both languages at once, so that a switch loses nothing that was typed.
const all = JSON.parse(document.querySelector('meta[name="words"]').content);
const root = document.documentElement;

function remembered() {
  const found = /(?:^|;\s*)lang=(\w+)/.exec(document.cookie);
  return found && found[1] in all ? found[1] : root.lang;
}

/** The words of a key in the language of the page; `{name}` is filled in from `values`. */
export function t(key, values = {}) {
  const text = all[root.lang]?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

export const language = () => root.lang;

/** Put words into everything below `part` that names a key in data-t or data-t-label. */
export function fill(part) {
  for (const element of part.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of part.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
}

function speak(lang) {
  root.lang = lang;
  fill(document);
  document.title = `${t(document.body.dataset.title)} · ${document.body.dataset.project}`;
  for (const button of document.querySelectorAll(".languages button")) button.setAttribute("aria-pressed", String(button.value === lang));
  document.dispatchEvent(new CustomEvent("words"));
}

for (const button of document.querySelectorAll(".languages button")) {
  button.addEventListener("click", () => {
    document.cookie = `lang=${button.value}; path=/; max-age=31536000; samesite=strict`;
    speak(button.value);
  });
}
speak(remembered());
