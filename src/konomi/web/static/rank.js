// The ranking page: one task at a time. Ranks are in ranking.js, cards in cards.js, what is not sent yet in outbox.js.
import { again, call, delay } from "./api.js";
import { Cards, rankWords } from "./cards.js";
import { earlier, guidelines, newest, skipping } from "./dialogs.js";
import { Clock, Past, kept, uuid } from "./draft.js";
import { dragging } from "./drag.js";
import { drawStrength, said as formSaid, say, strength, stronger } from "./form.js";
import { meaning } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Ranking } from "./ranking.js";
import { alarm, announce, progress, state } from "./status.js";
import { write } from "./text.js";
import { drawSlots, slots } from "./tray.js";
import { t } from "./words.js";

const POLL = 30000; // milliseconds between two looks whether there is something to do again
const find = (id) => document.getElementById(id);
const form = find("form");
let me, outbox, task, ranking, cards, selected, clock, past, pristine, editing, lastProgress, lastState, after, stop;
let shortcuts = true;
let tries = 0;
let asking = false;
let outdated = false; // an answer was saved while it was asked what is next
let told = "";

document.addEventListener("visibilitychange", () => clock?.turn());

const place = (shown) => `draft.${me.person}.${shown}`;

/** What can be undone step by step. */
const chosen = () => ({ ranks: ranking.ranks, flags: cards.flags(), ...formSaid() });

const said = () => ({ ...chosen(), comment: find("comment").value, edits: cards.edits() });

function choose({ ranks = {}, flags, ...more }) {
  ranking.ranks = ranks;
  if (flags) cards.setFlags(flags);
  say(more);
}

/** Something was chosen or written: it can be undone, and outlives a reload. */
function changed() {
  past.add(chosen());
  draw();
  kept.set(place(task.id), { ...said(), revision: task.revision });
}

/** Show a task, with what was begun (`mine`), or else answered, before. */
function show(next, answer = null, mine = null) {
  task = next;
  find("task").dataset.shown = task.id;
  form.reset();
  ranking = new Ranking(task.texts.map(({ key }) => key));
  const flags = Object.fromEntries(task.texts.map(({ key, flags }) => [key, flags ?? []]));
  const on = { select, move, clear: (key) => change(key, () => ranking.set(key, null)) };
  cards = new Cards(find("cards"), task, flags, me.asked.edit ? { ...on, rewrite: changed } : on);
  pristine = JSON.stringify(said());
  const begun = kept.get(place(task.id));
  const restored = mine ?? (begun?.revision === task.revision ? begun : null) ?? (answer && { ...answer, all_bad: answer.kind === "all_bad" });
  if (restored) choose(restored);
  find("comment").value = restored?.comment ?? "";
  cards.setEdits(restored?.edits ?? {});
  past = new Past(chosen());
  selected = ranking.missing[0] ?? ranking.keys[0];
  clock = new Clock();
  write(find("prompt"), task.prompt, task.lang, t("empty_text"));
  slots(task.texts.length, (rank) => rate(selected, rank, false));
  view("task");
  draw();
  scrollTo(0, 0);
  cards.focus(selected);
  announce(t(editing ? "announce_edit" : "announce_task", { count: ranking.keys.length }));
}

function view(name, words = "loading") {
  for (const part of ["task", "done", "loading"]) find(part).hidden = part !== name;
  for (const part of ["tools", "whom", "missing"]) find(part).hidden = name !== "task";
  find("loading-text").dataset.t = words;
  find("loading-text").textContent = t(words);
}

function draw() {
  if (lastState) state(lastState);
  progress(lastProgress);
  if (!task) return;
  cards.draw(ranking, selected);
  drawSlots(ranking, cards, selected);
  drawStrength(ranking, me.asked.strength);
  const allBad = find("all-bad").checked;
  const missing = ranking.missing.length;
  find("submit").disabled = !(ranking.complete || allBad);
  find("submit").textContent = t(editing ? "save_change" : "submit");
  find("missing").textContent = told || (allBad ? t("all_bad_chosen") : missing ? t("missing", { count: missing }) : t("ready"));
  told = "";
  find("editing").hidden = !editing;
  find("hint").hidden = kept.get("hinted") !== null;
}

/** Say something once, to eyes and ears. */
function tell(text) {
  told = text;
  draw();
  announce(text);
}

function select(key) {
  if (selected === key) return;
  selected = key;
  draw();
}

function change(key, act) {
  if (!act()) return;
  selected = key;
  changed();
  announce(t("card_label", { name: cards.name(key), rank: rankWords(ranking, key) }) + (ranking.complete ? ` ${t("ready")}` : ""));
}

function move(key, way) {
  change(key, () => ranking[way](key));
}

/** Give a rank and go on to the next card that has none. */
function rate(key, rank, focus) {
  if (rank > ranking.keys.length) return tell(t("no_such_rank", { count: ranking.keys.length }));
  change(key, () => ranking.set(key, rank));
  const order = ranking.keys;
  const from = order.indexOf(key);
  const next = [...order.slice(from + 1), ...order.slice(0, from)].find((other) => !(other in ranking.ranks));
  if (next) selected = next;
  draw();
  if (focus) cards.focus(selected);
  cards.reveal(selected);
}

/** A step back. On a task that nothing was done to: the last answer, to be changed; never away from what was typed. */
async function undo() {
  const before = task && past.back();
  if (before) {
    choose(before);
    changed();
    return tell(t("undone"));
  }
  if (task && (editing || JSON.stringify(said()) !== pristine)) return tell(t("nothing_to_undo"));
  try {
    const shown = await newest();
    if (shown) open(shown);
    else tell(t("nothing_to_undo"));
  } catch (failure) {
    alarm(failure.say);
  }
}

function send(kind, reason = null) {
  const { comment, confidence, flags } = said();
  const more = kind === "skipped" ? {} : { strength: kind === "ranked" ? strength(ranking) : null, edits: cards.edits() };
  const ranks = kind === "skipped" || (kind === "all_bad" && !ranking.complete) ? {} : ranking.canonical();
  const { id: shown, revision } = task;
  after = editing;
  editing = false;
  task = null;
  view("loading", "sending");
  outbox.add({ id: uuid(), shown, revision, kind, ranks, reason, flags, comment, confidence, ...more, seconds: clock.turn() });
}

function submit() {
  if (!task) return;
  if (find("submit").disabled) return tell(t("missing", { count: ranking.missing.length }));
  send(find("all-bad").checked ? "all_bad" : "ranked");
}

/** What is to be done next. `quiet`: nothing was there before; say something only if that has changed. */
async function next(quiet = false) {
  if (asking || task) return;
  stop?.();
  asking = true;
  if (!quiet) view("loading");
  let answer;
  try {
    answer = await call("GET", "/api/next");
  } catch (failure) {
    return quiet && failure.status !== 401 ? wait() : later(failure, () => next(quiet));
  } finally {
    asking = false;
  }
  tries = 0;
  if (outdated) {
    outdated = false;
    return next(quiet);
  }
  if (task) return; // an earlier answer was opened meanwhile
  if (lastState?.state !== "refused" && !lastState?.failure) alarm();
  editing = false;
  lastProgress = answer.progress;
  if (answer.task && outbox.waiting().length) return outbox.flush(); // it may be the very task that an answer waits for
  if (answer.task) return show(answer.task);
  view("done");
  find("done-for-now").hidden = answer.progress.frozen;
  find("done-for-good").hidden = !answer.progress.frozen;
  draw();
  if (!quiet) find("done").focus();
  wait();
}

/** Tasks come back: when somebody else leaves one, or the collection is opened again. */
function wait() {
  stop = again(() => next(true), POLL);
}

function later(failure, act) {
  alarm(failure.status === 401 ? () => t("signed_out") : failure.say);
  stop?.();
  stop = again(act, delay(failure, tries++));
}

/** Open what was shown before, to change the answer; `mine`: with this content, which was refused. */
async function open(shown, mine = null) {
  try {
    const found = await call("GET", `/api/shown/${encodeURIComponent(shown)}`);
    stop?.();
    editing = found.answer !== null;
    if (!mine) alarm();
    show(found.task, found.answer, mine);
    if (mine) changed();
  } catch (failure) {
    if (mine) later(failure, () => open(shown, mine));
    else alarm(failure.say);
  }
}

function heard({ detail }) {
  const { state: now, failure, answer } = detail;
  lastState = detail;
  if (now === "refused") refused(answer, failure);
  else if (now === "signed_out") alarm(() => t("signed_out"));
  else if (failure?.status) {
    alarm(failure.say);
    if (failure.code === "frozen" && !task) next(true); // it waits: the collection may be opened again
  } else if (answer) {
    kept.drop(place(answer.shown));
    outdated = asking;
    kept.set("hinted", 1);
    if (after) announce(t("change_saved"));
    after = false;
  }
  draw();
  if (now !== "saved" && now !== "elsewhere") return;
  alarm();
  if (!task) next();
}

/** What was refused comes back to the page, unless nothing can be done about it there. */
function refused(answer, failure) {
  const { shown, kind, revision } = answer;
  const mine = { ...answer, all_bad: kind === "all_bad" };
  after = false;
  alarm(() => `${failure.say()} ${t("refused")}`);
  kept.set(place(shown), { ...mine, revision });
  if (task) return;
  if (failure.code === "unknown_task") next();
  else open(shown, mine);
}

const acts = {
  rank: ({ rank }) => rate(selected, rank, true),
  better: () => move(selected, "better"),
  worse: () => move(selected, "worse"),
  clear: () => change(selected, () => ranking.set(selected, null)),
  select: ({ way }) => {
    cards.focus(ranking.keys[(ranking.keys.indexOf(selected) + way + ranking.keys.length) % ranking.keys.length]);
    cards.reveal(selected);
  },
  all_bad: () => find("all-bad").click(),
  strength: () => {
    if (!stronger()) return;
    changed();
    announce(t("strength_now", { strength: t(`strength_${formSaid().strength ?? "none"}`) }));
  },
  rewrite: () => cards.rewrite(selected),
  skip: () => find("skip").showModal(),
  submit,
  undo,
  earlier: () => earlier(open),
  guidelines,
};

document.addEventListener("keydown", (event) => {
  const asked = meaning(event, shortcuts);
  if (!asked || (!task && !["earlier", "guidelines", "undo"].includes(asked.do))) return;
  event.preventDefault();
  acts[asked.do](asked);
});
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]({}));
form.addEventListener("submit", (event) => event.preventDefault());
find("task").addEventListener("input", changed);
find("leave").addEventListener("click", () => {
  kept.drop(place(task.id));
  task = null;
  next();
});
skipping((reason) => send("skipped", reason));
find("shortcuts").addEventListener("change", (event) => {
  shortcuts = event.target.checked;
  call("POST", "/api/me", { shortcuts }).catch((failure) => alarm(failure.say));
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
  if (!outbox.waiting().length) next();
}
start();
