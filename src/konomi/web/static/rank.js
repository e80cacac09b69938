// The ranking page: one task at a time. Ranks are in ranking.js, cards in cards.js, what is not sent yet in outbox.js.
import { call, pause } from "./api.js";
import { Cards, rankWords } from "./cards.js";
import { Clock, draft, uuid } from "./draft.js";
import { dragging } from "./drag.js";
import { meaning } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Ranking } from "./ranking.js";
import { alarm, announce, progress, state } from "./status.js";
import { make, plainHtml, write } from "./text.js";
import { t } from "./words.js";

const find = (id) => document.getElementById(id);
const form = find("form");
let me, outbox, task, ranking, cards, selected, clock, editing, lastProgress, lastState, after;
let shortcuts = true;
let tries = 0;
let asking = false;

document.addEventListener("visibilitychange", () => clock?.turn());

function keep() {
  if (!editing) draft.keep(me.person, { shown: task.id, ranks: ranking.ranks, ...said() }); // an edit must not push out what was begun
}

function said() {
  const confidence = form.elements.confidence.value;
  return {
    all_bad: find("all-bad").checked,
    flags: cards.flags(),
    comment: find("comment").value,
    confidence: confidence ? Number(confidence) : null,
  };
}

function show(next, answer = null) {
  task = next;
  find("task").dataset.shown = task.id;
  const kept = answer ?? draft.of(me.person, task.id);
  const flags = kept?.flags ?? Object.fromEntries(task.texts.map(({ key, flags }) => [key, flags ?? []]));
  form.reset();
  ranking = new Ranking(task.texts.map(({ key }) => key), kept?.ranks ?? {});
  cards = new Cards(find("cards"), task, flags, { select, move, clear: (key) => change(key, () => ranking.set(key, null)) });
  selected = ranking.missing[0] ?? ranking.keys[0];
  clock = new Clock();
  write(find("prompt"), task.prompt, task.lang, t("empty_text"));
  find("all-bad").checked = answer ? answer.kind === "all_bad" : (kept?.all_bad ?? false);
  find("comment").value = kept?.comment ?? "";
  form.elements.confidence.value = kept?.confidence ? String(kept.confidence) : "";
  slots();
  view("task");
  draw();
  scrollTo(0, 0);
  cards.focus(selected);
  announce(t(editing ? "announce_edit" : "announce_task", { count: ranking.keys.length }));
}

function view(name) {
  for (const part of ["task", "done", "loading"]) find(part).hidden = part !== name;
  find("tray").hidden = name !== "task";
}

function slots() {
  const made = ranking.keys.map((_, index) => {
    const rank = index + 1;
    const button = make("button", "slot", { type: "button", "data-rank": rank }, make("b", "", {}, String(rank)), make("span", "names"));
    button.addEventListener("click", () => rate(selected, rank, false));
    return button;
  });
  find("slots").replaceChildren(...made);
}

function draw() {
  if (lastState) state(lastState);
  progress(lastProgress);
  if (!task) return;
  cards.draw(ranking, selected);
  for (const slot of find("slots").children) {
    const rank = Number(slot.dataset.rank);
    const names = ranking.keys.filter((key) => ranking.ranks[key] === rank).map((key) => cards.name(key)).join(" ");
    slot.querySelector(".names").textContent = names;
    slot.setAttribute("aria-label", t(names ? "slot_filled" : "slot_empty", { rank, names, selected: cards.name(selected) }));
  }
  const allBad = find("all-bad").checked;
  const missing = ranking.missing.length;
  find("submit").disabled = !(ranking.complete || allBad);
  find("submit").textContent = t(editing ? "save_change" : "submit");
  find("missing").textContent = allBad ? t("all_bad_chosen") : missing ? t("missing", { count: missing }) : t("ready");
  find("editing").hidden = !editing;
}

function select(key) {
  if (selected === key) return;
  selected = key;
  draw();
}

function change(key, act) {
  if (!act()) return;
  selected = key;
  draw();
  keep();
  announce(t("card_label", { name: cards.name(key), rank: rankWords(ranking, key) }) + (ranking.complete ? ` ${t("ready")}` : ""));
}

function move(key, way) {
  change(key, () => ranking[way](key));
}

/** Give a rank and go on to the next card that has none. */
function rate(key, rank, focus) {
  if (rank > ranking.keys.length) return announce(t("no_such_rank", { count: ranking.keys.length }));
  change(key, () => ranking.set(key, rank));
  const order = ranking.keys;
  const from = order.indexOf(key);
  const next = [...order.slice(from + 1), ...order.slice(0, from)].find((other) => !(other in ranking.ranks));
  if (next) selected = next;
  draw();
  if (focus) cards.focus(selected);
}

function undo() {
  if (task && ranking.undo()) {
    draw();
    keep();
    announce(t("undone"));
  } else earlier(true);
}

function send(kind, reason = null) {
  const content = said();
  const ranks = kind === "skipped" || (kind === "all_bad" && !ranking.complete) ? {} : ranking.canonical();
  const answer = { id: uuid(), shown: task.id, kind, ranks, reason, flags: content.flags };
  Object.assign(answer, { comment: content.comment, confidence: content.confidence, seconds: clock.turn() });
  const again = editing;
  editing = false;
  after = again;
  task = null;
  view("loading");
  find("loading-text").textContent = t("sending");
  outbox.add(answer);
}

function submit() {
  if (!task) return;
  if (find("submit").disabled) return announce(t("missing", { count: ranking.missing.length }));
  send(find("all-bad").checked ? "all_bad" : "ranked");
}

async function next() {
  if (asking) return;
  asking = true;
  view("loading");
  find("loading-text").textContent = t("loading");
  let answer;
  try {
    answer = await call("GET", "/api/next");
  } catch (failure) {
    return later(failure, next);
  } finally {
    asking = false;
  }
  tries = 0;
  if (lastState?.state !== "refused") alarm();
  editing = false;
  lastProgress = answer.progress;
  if (answer.task) return show(answer.task);
  task = null;
  view("done");
  find("done-for-now").hidden = answer.progress.frozen;
  find("done-for-good").hidden = !answer.progress.frozen;
  draw();
  find("done").focus();
}

function later(failure, act) {
  if (failure.status === 401 || failure.status === 403) return alarm(t("signed_out"));
  alarm(failure.message);
  if (failure.passing !== false) setTimeout(act, Math.max(pause(tries++), 1000 * (failure.wait ?? 0)));
}

async function earlier(newest = false) {
  try {
    const { answers } = await call("GET", "/api/mine");
    if (newest) return answers.length ? edit(answers[0].shown) : announce(t("nothing_to_undo"));
    const rows = answers.map(({ shown, prompt, at, kind }) => {
      const button = make("button", "row", { type: "button" });
      const when = new Date(at * 1000).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });
      const words = make("span", "start");
      write(words, prompt.slice(0, 120), "", t("empty_text"));
      button.append(words, make("span", "soft", {}, ` ${t(`kind_${kind}`)} ${when}`));
      button.addEventListener("click", () => edit(shown));
      return make("li", "", {}, button);
    });
    find("earlier-list").replaceChildren(...rows);
    find("earlier-none").hidden = rows.length > 0;
    find("earlier").showModal();
  } catch (failure) {
    alarm(failure.message);
  }
}

async function edit(shown) {
  find("earlier").close();
  try {
    const found = await call("GET", `/api/shown/${encodeURIComponent(shown)}`);
    editing = true;
    alarm();
    show(found.task, found.answer ?? {});
  } catch (failure) {
    alarm(failure.message);
  }
}

async function guidelines() {
  try {
    const { html } = await call("GET", "/api/guidelines");
    find("guidelines-text").replaceChildren(plainHtml(html));
    find("guidelines").showModal();
  } catch (failure) {
    alarm(failure.message);
  }
}

function heard({ detail }) {
  lastState = detail;
  draw();
  if (detail.state === "refused") alarm(`${detail.failure.message} ${t("refused")}`);
  else if (detail.state === "saved") alarm();
  if ((detail.state === "saved" || detail.state === "refused") && !task) next();
  if (detail.state === "saved" && after) announce(t("change_saved"));
  after = false;
}

const acts = {
  rank: ({ rank }) => rate(selected, rank, true),
  better: () => move(selected, "better"),
  worse: () => move(selected, "worse"),
  clear: () => change(selected, () => ranking.set(selected, null)),
  select: ({ way }) => cards.focus(ranking.keys[(ranking.keys.indexOf(selected) + way + ranking.keys.length) % ranking.keys.length]),
  all_bad: () => find("all-bad").click(),
  skip: () => find("skip").showModal(),
  submit,
  undo,
  earlier: () => earlier(),
  guidelines,
};

document.addEventListener("keydown", (event) => {
  const asked = meaning(event, shortcuts);
  if (!asked || (!task && !["earlier", "guidelines", "undo"].includes(asked.do))) return;
  event.preventDefault();
  acts[asked.do](asked);
});
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]({}));
for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
form.addEventListener("submit", (event) => event.preventDefault());
find("task").addEventListener("input", () => {
  draw();
  keep();
});
find("leave").addEventListener("click", () => {
  editing = false;
  next();
});
find("skip-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = event.target.elements.reason.value;
  const own = find("skip-other").value.trim();
  if (reason === "other" && !own) return find("skip-other").focus();
  find("skip").close();
  send("skipped", reason === "other" ? own : reason);
  event.target.reset();
});
find("shortcuts").addEventListener("change", (event) => {
  shortcuts = event.target.checked;
  call("POST", "/api/me", { shortcuts }).catch((failure) => alarm(failure.message));
});
document.addEventListener("words", draw);
dragging(find("cards"), (key, rank) => rate(key, rank, false));

async function start() {
  try {
    const [who, guide] = await Promise.all([call("GET", "/api/me"), call("GET", "/api/guidelines")]);
    me = who;
    if (me.guidelines_seen !== guide.version) return location.assign("/guidelines");
  } catch (failure) {
    return later(failure, start);
  }
  shortcuts = find("shortcuts").checked = me.shortcuts !== false;
  outbox = new Outbox(me.person);
  outbox.addEventListener("state", heard);
  if (outbox.waiting().length) await outbox.flush();
  if (!outbox.waiting().length && !task) next();
}
start();
