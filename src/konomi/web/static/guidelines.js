// The guidelines, and that they have been read.
import { again, call, delay } from "./api.js";
import { alarm } from "./status.js";
import { plainHtml } from "./markdown.js";
import { make } from "./text.js";
import { language, t } from "./words.js";

const seen = document.getElementById("seen");
let version;
let tries = 0;

async function load() {
  const asked = language();
  try {
    const guide = await call("GET", "/api/guidelines");
    if (asked !== language()) return; // it was switched meanwhile, and asked again
    version = guide.version;
    const text = plainHtml(guide.html);
    if (!text.textContent.trim()) text.replaceChildren(make("span", "", { "data-t": "guidelines_empty" }, t("guidelines_empty")));
    document.getElementById("text").replaceChildren(text);
    seen.disabled = false;
    alarm();
  } catch (failure) {
    alarm(failure.say);
    again(load, delay(failure, tries++));
  }
}

document.addEventListener("words", load);
seen.addEventListener("click", async () => {
  try {
    await call("POST", "/api/me", { guidelines_seen: version });
    location.assign("/");
  } catch (failure) {
    alarm(failure.say);
  }
});
load();
