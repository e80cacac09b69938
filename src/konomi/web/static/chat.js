// Talking with a model: a message, two answers, a choice, and on from the chosen one. What is not sent yet is in outbox.js.
import { again, call, delay } from "./api.js";
import { letter } from "./cards.js";
import { Clock, kept, uuid } from "./draft.js";
import { obey } from "./keys.js";
import { enter } from "./outbox.js";
import { alarm, announce, find, state, trouble } from "./status.js";
import { make, write } from "./text.js";
import { language, t } from "./words.js";

const LOOK = 1000; // milliseconds between two looks how far the model is
let me, outbox, turn, doing, progress, clock, lastState, stop;
let tries = 0;

document.addEventListener("visibilitychange", () => clock?.turn());

const place = () => `message.${me.person}`;
const begun = () => kept.get(`talk.${me.person}`); // the turn after which a new conversation was wished for
const going = () => (turn && begun() !== turn.id ? turn : null);

/** Where the model is, and what waits for this person. */
async function look() {
  stop?.();
  let latest;
  try {
    latest = await call("GET", "/api/chat");
  } catch (failure) {
    trouble(failure);
    return later(failure);
  }
  tries = 0;
  const failed = latest.state === "failed" ? latest.error : null;
  const before = turn?.id;
  if (failed) alarm(() => failed.messages[language()]);
  else if (latest.state === "idle" && lastState?.state !== "refused" && !lastState?.failure) alarm();
  doing = latest.state === "waiting" || latest.state === "writing" ? latest : null;
  progress = latest.progress;
  if (!doing) turn = latest.turn;
  const fresh = !doing && turn?.task && before !== turn.id;
  if (fresh) {
    if (turn.talk.at(-1).text === find("message").value) {
      kept.drop(place()); // it has been answered
      find("message").value = "";
    }
    show(turn.task);
  }
  draw();
  if (fresh) find("answers").firstChild.focus();
  if (doing) stop = again(look, LOOK);
  else if (!turn?.task && !find("ask").hidden) find("message").focus();
}

function later(failure) {
  stop?.();
  stop = again(look, delay(failure, tries++));
}

/** Two answers to choose from. */
function show(task) {
  const cards = task.texts.map(({ key, text, lang }, index) => {
    const name = letter(index);
    const words = make("div", "text", { id: `text-${key}` });
    write(words, text, lang, t("empty_text"));
    const button = make("button", "main", { type: "button", "data-key": key, "aria-describedby": words.id });
    button.addEventListener("click", () => choose({ [key]: 1 }));
    return make("div", "card", { role: "group", tabindex: "-1", "data-name": name }, make("div", "head", {}, make("b", "", {}, name)), words, button);
  });
  find("answers").replaceChildren(...cards);
  clock = new Clock();
  announce(t("chat_answers"));
}

function draw() {
  if (lastState) state(lastState);
  const on = going();
  const waits = Boolean(turn?.task) && !doing;
  const closed = progress?.frozen && !waits && !doing;
  find("closed").hidden = !closed;
  find("choice").hidden = !waits;
  find("ask").hidden = waits || Boolean(doing) || closed || !progress;
  find("fresh").hidden = !on;
  find("send").disabled = !find("message").value.trim() || outbox.waiting().length > 0;
  find("mine").textContent = progress ? t("chat_mine", { count: progress.mine }) : "";
  find("doing").textContent = doing ? t(doing.ahead ? "chat_ahead" : "chat_writing", { ahead: doing.ahead, seconds: doing.seconds ?? 0 }) : "";
  for (const card of find("answers").children) {
    const name = card.dataset.name;
    card.setAttribute("aria-label", t("chat_answer", { name }));
    card.querySelector("button").textContent = t("chat_choose", { name });
  }
  const talk = [...(on?.talk ?? [])];
  if (doing && kept.get(place())) talk.push({ role: "user", text: kept.get(place()) });
  find("talk").replaceChildren(...talk.map(({ role, text }) => {
    const words = make("div", "text");
    write(words, text, "", t("empty_text"));
    return make("div", `turn ${role}`, {}, make("h2", "small", {}, t(`chat_${role}`)), words);
  }));
}

/** @param ranks of some texts; the others come after them */
function choose(ranks, kind = "ranked") {
  if (!turn?.task || doing) return;
  const all = kind === "ranked" ? Object.fromEntries(turn.task.texts.map(({ key }) => [key, ranks[key] ?? 2])) : {};
  const { id: shown, revision } = turn.task;
  turn.task = null;
  find("choice").hidden = true;
  outbox.add({ id: uuid(), shown, revision, kind, ranks: all, reason: null, flags: {}, comment: "", confidence: null, seconds: clock.turn() });
}

async function ask() {
  const text = find("message").value;
  if (!text.trim() || find("send").disabled) return;
  find("send").disabled = true;
  kept.set(place(), text);
  try {
    await call("POST", "/api/chat", { text, after: going()?.id ?? null, person: me.person });
    alarm();
    announce(t("chat_asked"));
    await look();
  } catch (failure) {
    if (/^chat_(busy|open)$/.test(failure.code)) return look(); // another window, or a request whose response was lost
    trouble(failure);
    if (!failure.status) later(failure); // it may have arrived
    draw();
  }
}

function onOutbox({ detail }) {
  const { state: now, failure } = detail;
  lastState = detail;
  if (now === "refused") alarm(() => `${failure.say()} ${t("refused")}`);
  else if (failure?.status) trouble(failure);
  else alarm();
  draw();
  if (["saved", "refused", "elsewhere"].includes(now)) look();
}

const acts = {
  /** The best of the texts, from 1; 0: all of them. */
  rank: ({ rank = 0 }) => {
    const best = turn.task.texts.filter((_, index) => !rank || rank === index + 1);
    if (best.length) choose(Object.fromEntries(best.map(({ key }) => [key, 1])));
  },
  all_bad: () => choose({}, "all_bad"),
  fresh: () => {
    kept.set(`talk.${me.person}`, turn.id);
    draw();
    announce(t("chat_begun"));
    find("message").focus();
  },
};

obey(acts, () => turn?.task);
find("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) ask();
});
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
find("message").addEventListener("input", () => {
  kept.set(place(), find("message").value);
  draw();
});
document.addEventListener("words", () => outbox && draw());

async function start() {
  ({ me, outbox } = await enter(onOutbox));
  find("message").value = kept.get(place()) ?? "";
  if (outbox.waiting().length) outbox.flush();
  else look();
}
start();
