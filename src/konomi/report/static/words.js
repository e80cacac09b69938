// The page's words in both languages, so that switching loses nothing that was typed.
const all = JSON.parse(document.querySelector('meta[name="words"]').content);
const root = document.documentElement;

/** The language chosen before, else the page's, else the browser's. */
function remembered() {
  const wishes = [/(?:^|;\s*)lang=(\w+)/.exec(cookie())?.[1], root.lang, ...navigator.languages.map((tag) => tag.slice(0, 2))];
  return wishes.find((wish) => wish in all) ?? "en";
}

/** Read or set the cookie; a sandbox in which programs show a saved page has none. */
function cookie(value) {
  try {
    if (value) document.cookie = value;
    return document.cookie;
  } catch {
    return "";
  }
}

/** The words of a key in the language of the page; `{name}` is filled in from `values`. */
export function t(key, values = {}) {
  const text = all[root.lang]?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

export const language = () => root.lang;

/** Fill all elements below `part` that have a key in data-t or data-t-label. */
export function fill(part) {
  for (const element of part.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of part.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
}

function speak(lang) {
  root.lang = lang;
  fill(document);
  const { title, project } = document.body.dataset;
  if (title) document.title = `${t(title)} · ${project}`;
  for (const button of document.querySelectorAll(".languages button")) button.setAttribute("aria-pressed", String(button.value === lang));
  document.dispatchEvent(new CustomEvent("words"));
}

for (const button of document.querySelectorAll(".languages button")) {
  button.addEventListener("click", () => {
    cookie(`lang=${button.value}; path=/; max-age=31536000; samesite=strict`);
    speak(button.value);
  });
}
speak(remembered());
