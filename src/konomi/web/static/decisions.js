// Tasks on which raters differ: the owner decides, blind, with what each of them said.
import { call } from "./api.js";
import { Board } from "./board.js";
import { beginning } from "./cards.js";
import { Past } from "./draft.js";
import { allow, obey } from "./keys.js";
import { announce, attempt, find, percent } from "./status.js";
import { make } from "./text.js";
import { t } from "./words.js";

const PAGE = 100; // tasks that are listed, and that "more" adds
let most = PAGE;
const board = new Board({ changed, draw, tell: announce });
let listed, task, rankings, past;
let saving = false;

async function load() {
  const [me, page] = await Promise.all([call("GET", "/api/me"), call("GET", `/api/disputes?count=${most}`)]);
  allow(me.shortcuts !== false);
  listed = page;
  task = null;
  find("form").hidden = true;
  find("listed").hidden = false;
  draw();
}

function row({ task: number, prompt, raters, share, decided }) {
  const about = [t("dispute_raters", { count: raters }), t("dispute_share", { share: percent(share) }), ...(decided ? [t("dispute_decided")] : [])];
  const button = make("button", "row", { type: "button", "data-task": number }, beginning(prompt), make("span", "soft", {}, ` ${about.join(" · ")}`));
  button.addEventListener("click", () => attempt(() => open(number)));
  return make("li", "", {}, button);
}

async function open(number) {
  const dispute = await call("GET", `/api/disputes/${number}`);
  ({ task, rankings } = dispute);
  board.lay(task, null);
  board.ranking.ranks = dispute.answer?.ranks ?? {};
  past = new Past(board.ranking.ranks);
  for (const [key, card] of board.cards.cards) {
    card.append(make("p", "soft votes", { id: `votes-${key}` }));
    card.setAttribute("aria-describedby", `text-${key} votes-${key}`);
  }
  find("comment").value = dispute.answer?.comment ?? "";
  find("decided").hidden = find("withdraw").hidden = !dispute.answer;
  find("listed").hidden = true;
  find("form").hidden = false;
  board.begin("announce_task");
}

function draw() {
  if (listed && !task) {
    find("count").textContent = t(listed.all ? "dispute_count" : "dispute_none", { open: listed.open, all: listed.all });
    find("disputes").replaceChildren(...listed.disputes.map(row));
    find("more").hidden = listed.disputes.length === listed.all;
  }
  if (!task) return;
  board.draw();
  for (const [key, card] of board.cards.cards) {
    const votes = rankings.map((ranks, index) => t("dispute_vote", { rater: index + 1, rank: ranks[key] }));
    card.querySelector(".votes").textContent = votes.join(" · ");
  }
  const missing = board.ranking.missing.length;
  find("submit").disabled = missing > 0;
  find("missing").textContent = missing ? t("missing", { count: missing }) : t("ready");
}

function changed() {
  past.add(board.ranking.ranks);
  draw();
}

function undo() {
  const before = past.back();
  if (!before) return announce(t("nothing_to_undo"));
  board.ranking.ranks = before;
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
  ...board.acts,
  submit: () => board.ranking.complete && save(board.ranking.canonical(), "decision_saved"),
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

obey(acts, () => task);
document.addEventListener("words", draw);
attempt(load);
