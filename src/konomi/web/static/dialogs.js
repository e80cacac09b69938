// The ranking page's dialogs: one's earlier answers, the guidelines, why a task is skipped.
import { call } from "./api.js";
import { beginning } from "./cards.js";
import { alarm, find } from "./status.js";
import { plainHtml } from "./markdown.js";
import { make } from "./text.js";
import { language, t } from "./words.js";

/** What was answered last, to be opened again; undefined if there is nothing. */
export async function newest() {
  return (await call("GET", "/api/mine")).answers[0]?.shown;
}

/** Show the earlier answers. @param open is told which one was chosen */
export async function earlier(open) {
  const list = find("earlier-list");
  const add = async (before) => {
    const { answers, more } = await call("GET", `/api/mine${before ? `?before=${encodeURIComponent(before)}` : ""}`);
    list.append(...answers.map((each) => make("li", "", {}, row(each, open))));
    find("earlier-more").hidden = !more;
    find("earlier-more").onclick = () => add(answers.at(-1).shown).catch(({ say }) => alarm(say));
  };
  list.replaceChildren();
  try {
    await add();
    find("earlier-none").hidden = list.children.length > 0;
    find("earlier").showModal();
  } catch ({ say }) {
    alarm(say);
  }
}

function row({ shown, prompt, at, kind }, open) {
  const when = new Date(at * 1000).toLocaleTimeString(language(), { hour: "2-digit", minute: "2-digit" });
  const button = make("button", "row", { type: "button" }, beginning(prompt), make("span", "soft", {}, ` ${t(`kind_${kind}`)} ${when}`));
  button.addEventListener("click", () => {
    find("earlier").close();
    open(shown);
  });
  return button;
}

/** Show the guidelines. */
export async function guidelines() {
  try {
    const { html } = await call("GET", "/api/guidelines");
    find("guidelines-text").replaceChildren(plainHtml(html));
    find("guidelines").showModal();
  } catch ({ say }) {
    alarm(say);
  }
}

/** @param skip is told the reason */
export function skipping(skip) {
  find("skip-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const reason = event.target.elements.reason.value;
    const own = find("skip-other").value.trim();
    if (reason === "other" && !own) return find("skip-other").focus();
    find("skip").close();
    skip(reason === "other" ? own : reason);
    event.target.reset();
  });
}

for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
