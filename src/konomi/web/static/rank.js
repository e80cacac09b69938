// The ranking page: one task at a time. How it is ranked is in board.js, what is not sent yet in outbox.js.
import { again, call, delay } from "./api.js";
import { Board } from "./board.js";
import { earlier, guidelines, newest, skipping } from "./dialogs.js";
import { Clock, Past, kept, uuid } from "./draft.js";
import { drawStrength, fillForm, readForm, strength, stronger } from "./form.js";
import { obey } from "./keys.js";
import { enter } from "./outbox.js";
import { alarm, announce, find, progress, state, trouble } from "./status.js";
import { t } from "./words.js";

const POLL = 30000; // milliseconds between two looks whether there is something to do again
const form = find("form");
const board = new Board({ changed, draw, tell });
let me, outbox, task, ranking, cards, clock, past, pristine, editing, lastProgress, lastState, after, stop;
let tries = 0;
let asking = false;
let outdated = false; // an answer was saved while it was asked what is next
let notice = "";

document.addEventListener("visibilitychange", () => clock?.turn());

const place = (shown) => `draft.${me.person}.${shown}`;

/** What can be undone step by step. */
const chosen = () => ({ ranks: ranking.ranks, flags: cards.flags(), ...readForm() });

const entered = () => ({ ...chosen(), comment: find("comment").value, edits: cards.edits() });

function choose({ ranks = {}, flags, ...more }) {
  ranking.ranks = ranks;
  if (flags) cards.setFlags(flags);
  fillForm(more);
}

/** Something was chosen or written: it can be undone, and outlives a reload. */
function changed() {
  past.add(chosen());
  draw();
  kept.set(place(task.id), { ...entered(), revision: task.revision });
}

/** Show a task, with what was begun (`mine`), or else answered, before. */
function show(next, answer = null, mine = null) {
  task = next;
  find("task").dataset.shown = task.id;
  form.reset();
  const flags = Object.fromEntries(task.texts.map(({ key, flags }) => [key, flags ?? []]));
  board.lay(task, flags, me.asked.edit ? changed : null);
  ({ ranking, cards } = board);
  pristine = JSON.stringify(entered());
  const begun = kept.get(place(task.id));
  const restored = mine ?? (begun?.revision === task.revision ? begun : null) ?? (answer && { ...answer, all_bad: answer.kind === "all_bad" });
  if (restored) choose(restored);
  find("comment").value = restored?.comment ?? "";
  cards.setEdits(restored?.edits ?? {});
  past = new Past(chosen());
  clock = new Clock();
  view("task");
  board.begin(editing ? "announce_edit" : "announce_task");
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
  board.draw();
  drawStrength(ranking, me.asked.strength);
  const allBad = find("all-bad").checked;
  const missing = ranking.missing.length;
  find("submit").disabled = !(ranking.complete || allBad);
  find("submit").textContent = t(editing ? "save_change" : "submit");
  find("missing").textContent = notice || (allBad ? t("all_bad_chosen") : missing ? t("missing", { count: missing }) : t("ready"));
  notice = "";
  find("editing").hidden = !editing;
  find("hint").hidden = kept.get("hinted") !== null;
}

/** Say something once, to eyes and ears. */
function tell(text) {
  notice = text;
  draw();
  announce(text);
}

/** A step back. On a task that nothing was done to: the last answer, to be changed; never away from what was typed. */
async function undo() {
  const before = task && past.back();
  if (before) {
    choose(before);
    changed();
    return tell(t("undone"));
  }
  if (task && (editing || JSON.stringify(entered()) !== pristine)) return tell(t("nothing_to_undo"));
  try {
    const shown = await newest();
    if (shown) open(shown);
    else tell(t("nothing_to_undo"));
  } catch (failure) {
    alarm(failure.say);
  }
}

function send(kind, reason = null) {
  const { comment, confidence, flags } = entered();
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
  trouble(failure);
  stop?.();
  stop = again(act, delay(failure, tries++));
}

/** Open what was shown before, to change the answer; `mine`: with this content, which was refused. */
async function open(shown, mine = null) {
  try {
    const opened = await call("GET", `/api/shown/${encodeURIComponent(shown)}`);
    stop?.();
    editing = opened.answer !== null;
    if (!mine) alarm();
    show(opened.task, opened.answer, mine);
    if (mine) changed();
  } catch (failure) {
    if (mine) later(failure, () => open(shown, mine));
    else alarm(failure.say);
  }
}

function onOutbox({ detail }) {
  const { state: now, failure, answer } = detail;
  lastState = detail;
  if (now === "refused") refused(answer, failure);
  else if (failure?.status) {
    trouble(failure);
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
  ...board.acts,
  all_bad: () => find("all-bad").click(),
  strength: () => {
    if (!stronger()) return;
    changed();
    announce(t("strength_now", { strength: t(`strength_${readForm().strength ?? "none"}`) }));
  },
  rewrite: () => cards.rewrite(board.selected),
  skip: () => find("skip").showModal(),
  submit,
  undo,
  earlier: () => earlier(open),
  guidelines,
};

obey(acts, (asked) => task || ["earlier", "guidelines", "undo"].includes(asked.do));
find("task").addEventListener("input", changed);
find("leave").addEventListener("click", () => {
  kept.drop(place(task.id));
  task = null;
  next();
});
skipping((reason) => send("skipped", reason));
document.addEventListener("words", draw);

async function start() {
  ({ me, outbox } = await enter(onOutbox));
  if (outbox.waiting().length) await outbox.flush();
  if (!outbox.waiting().length) next();
}
start();
