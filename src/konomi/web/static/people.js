// Who may answer: invite links, and taking them back.
import { call } from "./api.js";
import { announce, attempt, find, percent } from "./status.js";
import { make } from "./text.js";
import { t } from "./words.js";

let people = [];
let invited = null;
let frozen = false;

function draw() {
  const rows = people.map((person) => {
    const name = make("bdi", "", {}, person.name);
    const marks = [person.admin && t("admin"), !person.active && t("revoked")].filter(Boolean).join(", ");
    const row = make("li", "person", {}, name, make("span", "soft", {}, marks), make("span", "soft figures", {}, agreement(person.figures)));
    if (!person.admin) row.append(make("span", "acts", {}, inviter(person), person.active ? revoker(person) : ""));
    return row;
  });
  find("people").replaceChildren(...(rows.length ? rows : [make("li", "soft", {}, t("people_none"))]));
  find("frozen").textContent = t(frozen ? "frozen_now" : "frozen_not");
  find("freeze").textContent = t(frozen ? "thaw" : "freeze");
  find("invited").hidden = !invited;
  if (invited) {
    document.querySelector('label[for="address"]').textContent = t("invite_text", { name: invited.name });
    find("address").value = invited.address;
  }
}

/** How much somebody has ranked, and how far they agree with others and with themselves. */
function agreement(figures) {
  if (!figures) return "";
  const parts = [t("person_records", { count: figures.records })];
  if (figures.others != null) parts.push(t("person_others", { share: percent(figures.others) }));
  if (figures.oneself != null) parts.push(t("person_oneself", { share: percent(figures.oneself) }));
  return parts.join(" · ");
}

/** A button for one more link, for who has lost theirs. */
function inviter(person) {
  const button = make("button", "", { type: "button" }, t("invite_again"));
  button.setAttribute("aria-label", t("invite_again_label", { name: person.name }));
  button.addEventListener("click", () => attempt(() => invite(person.name, `/api/people/${encodeURIComponent(person.id)}/invite`, {})));
  return button;
}

/** A button that takes somebody's access away. */
function revoker(person) {
  const button = make("button", "", { type: "button" }, t("revoke"));
  button.setAttribute("aria-label", t("revoke_label", { name: person.name }));
  button.addEventListener("click", async () => {
    if (!(await sure(t("revoke_label", { name: person.name }), t("revoke")))) return;
    await attempt(async () => {
      await call("DELETE", `/api/people/${encodeURIComponent(person.id)}`);
      await load();
      announce(t("revoke_done", { name: person.name }));
    });
  });
  return button;
}

/** Ask before something is done; whether it is to be. */
function sure(question, act) {
  const dialog = find("sure");
  find("sure-question").textContent = question;
  find("sure-do").textContent = act;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}

async function load() {
  ({ people, frozen } = await call("GET", "/api/people"));
  draw();
}

async function invite(name, path, body) {
  invited = null;
  draw();
  invited = { name, address: (await call("POST", path, body)).invite };
  await load();
  find("address").focus();
  find("address").select();
}

find("invite").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = find("person").value.trim();
  attempt(async () => {
    await invite(name, "/api/people", { name });
    event.target.reset();
  });
});
find("freeze").addEventListener("click", async () => {
  if (!frozen && !(await sure(t("freeze_sure"), t("freeze")))) return;
  await attempt(async () => {
    await call("POST", "/api/freeze", { frozen: !frozen });
    await load();
    announce(find("frozen").textContent);
  });
});
find("copy").addEventListener("click", async () => {
  find("address").select();
  try {
    await navigator.clipboard.writeText(find("address").value);
    announce(t("copied"));
  } catch {
    find("address").focus(); // it is selected: the keyboard copies it
  }
});
document.addEventListener("words", draw);
attempt(load);
