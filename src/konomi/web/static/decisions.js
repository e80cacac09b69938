// Tasks on which raters differ: the owner decides, blind, with what each of them said.
import { call } from "./api.js";
import { Cards, rankWords } from "./cards.js";
import { Past } from "./draft.js";
import { dragging } from "./drag.js";
import { meaning } from "./keys.js";
import { Ranking } from "./ranking.js";
import { announce, attempt, percent } from "./status.js";
import { make, write } from "./text.js";
import { drawSlots, slots } from "./tray.js";
import { t } from "./words.js";

const find = (id) => document.getElementById(id);
const PAGE = 100; // tasks that are listed, and that "more" adds
let most = PAGE;
let listed, task, rankings, ranking, cards, selected, past;
let shortcuts = true;
let saving = false;

async function load() {
  const [me, found] = await Promise.all([call("GET", "/api/me"), call("GET", `/api/disputes?count=${most}`)]);
  shortcuts = me.shortcuts !== false;
  listed = found;
  task = null;
  find("form").hidden = true;
  find("listed").hidden = false;
  draw();
}

function row({ task: number, prompt, raters, share, decided }) {
  const words = make("span", "start");
  write(words, prompt.slice(0, 120), "", t("empty_text"));
  const about = [t("dispute_raters", { count: raters }), t("dispute_share", { share: percent(share) }), ...(decided ? [t("dispute_decided")] : [])];
  const button = make("button", "row", { type: "button", "data-task": number }, words, make("span", "soft", {}, ` ${about.join(" · ")}`));
  button.addEventListener("click", () => attempt(() => open(number)));
  return make("li", "", {}, button);
}

async function open(number) {
  const found = await call("GET", `/api/disputes/${number}`);
  ({ task, rankings } = found);
  ranking = new Ranking(task.texts.map(({ key }) => key), found.answer?.ranks);
  past = new Past(ranking.ranks);
  cards = new Cards(find("cards"), task, null, { select, move, clear: (key) => change(key, () => ranking.set(key, null)) });
  for (const [key, card] of cards.cards) {
    card.append(make("p", "soft votes", { id: `votes-${key}` }));
    card.setAttribute("aria-describedby", `text-${key} votes-${key}`);
  }
  selected = ranking.keys[0];
  write(find("prompt"), task.prompt, task.lang, t("empty_text"));
  find("comment").value = found.answer?.comment ?? "";
  find("decided").hidden = find("withdraw").hidden = !found.answer;
  slots(ranking.keys.length, (rank) => rate(selected, rank));
  find("listed").hidden = true;
  find("form").hidden = false;
  draw();
  scrollTo(0, 0);
  cards.focus(selected);
  announce(t("announce_task", { count: ranking.keys.length }));
}

function draw() {
  if (listed && !task) {
    find("count").textContent = t(listed.all ? "dispute_count" : "dispute_none", { open: listed.open, all: listed.all });
    find("disputes").replaceChildren(...listed.disputes.map(row));
    find("more").hidden = listed.disputes.length === listed.all;
  }
  if (!task) return;
  cards.draw(ranking, selected);
  drawSlots(ranking, cards, selected);
  for (const [key, card] of cards.cards) {
    const votes = rankings.map((ranks, index) => t("dispute_vote", { rater: index + 1, rank: ranks[key] }));
    card.querySelector(".votes").textContent = votes.join(" · ");
  }
  const missing = ranking.missing.length;
  find("submit").disabled = missing > 0;
  find("missing").textContent = missing ? t("missing", { count: missing }) : t("ready");
}

function select(key) {
  if (selected === key) return;
  selected = key;
  draw();
}

function change(key, act) {
  if (!act()) return;
  selected = key;
  past.add(ranking.ranks);
  draw();
  announce(t("card_label", { name: cards.name(key), rank: rankWords(ranking, key) }) + (ranking.complete ? ` ${t("ready")}` : ""));
}

function move(key, way) {
  change(key, () => ranking[way](key));
}

/** Give a rank and go on to the next card that has none. */
function rate(key, rank, focus = false) {
  if (rank > ranking.keys.length) return announce(t("no_such_rank", { count: ranking.keys.length }));
  change(key, () => ranking.set(key, rank));
  selected = ranking.missing[0] ?? key;
  draw();
  if (focus) cards.focus(selected);
  cards.reveal(selected);
}

function undo() {
  const before = past.back();
  if (!before) return announce(t("nothing_to_undo"));
  ranking.ranks = before;
  draw();
  announce(t("undone"));
}

/** Save the decision; without ranks: take it back. Then the list again, at the next that is open. */
async function save(ranks, words) {
  if (saving) return; // pressed twice
  saving = true;
  await attempt(async () => {
    const body = { ranks, comment: find("comment").value, revision: task.revision };
    await call("POST", `/api/disputes/${task.id}`, body);
    announce(t(words));
    await load();
    goTo(listed.disputes.find(({ decided }) => !decided));
  });
  saving = false;
}

/** Go on, in the list, at a task; where it is not there, at the list's beginning. */
function goTo(dispute) {
  (find("disputes").querySelector(`[data-task="${dispute?.task}"]`) ?? find("count")).focus();
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
  submit: () => ranking.complete && save(ranking.canonical(), "decision_saved"),
  withdraw: () => save({}, "decision_withdrawn"),
  undo,
  more: () => attempt(async () => {
    const before = most;
    most += PAGE;
    await load();
    goTo(listed.disputes[before]);
  }),
  leave: () => {
    const number = task.id;
    attempt(async () => {
      await load();
      goTo({ task: number });
    });
  },
};

document.addEventListener("keydown", (event) => {
  const asked = task && meaning(event, shortcuts);
  if (!asked || !(asked.do in acts)) return;
  event.preventDefault();
  acts[asked.do](asked);
});
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]({}));
find("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("words", draw);
dragging(find("cards"), (key, rank) => rate(key, rank));
attempt(load);
