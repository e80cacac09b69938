// One task to be ranked: its cards, the tray with the ranks, and how a card gets one. What becomes of the ranks is the page's.
import { Cards, rankWords, short } from "./cards.js";
import { dragging } from "./drag.js";
import { Ranking } from "./ranking.js";
import { announce, find } from "./status.js";
import { make, write } from "./text.js";
import { t } from "./words.js";

export class Board {
  /** @param page {changed: ranks are others, draw: another card is selected, tell: is told what cannot be done} */
  constructor(page) {
    this.page = page;
    dragging(find("cards"), (key, rank) => this.rate(key, rank));
    find("form").addEventListener("submit", (event) => event.preventDefault());
    this.acts = {
      rank: ({ rank }) => (rank ? this.rate(this.selected, rank, true) : this.clear(this.selected)),
      better: () => this.move(this.selected, "better"),
      worse: () => this.move(this.selected, "worse"),
      clear: () => this.clear(this.selected),
      select: ({ way }) => {
        const { keys } = this.ranking;
        this.cards.focus(keys[(keys.indexOf(this.selected) + way + keys.length) % keys.length]);
        this.cards.reveal(this.selected);
      },
    };
  }

  /** Lay out a task, nothing of it ranked. @param flags, rewrite: as those of Cards */
  lay(task, flags, rewrite) {
    this.ranking = new Ranking(task.texts.map(({ key }) => key));
    this.rewrite = rewrite;
    this.cards = new Cards(find("cards"), task, flags, this);
    write(find("prompt"), task.prompt, task.lang, t("empty_text"));
    find("slots").replaceChildren(...task.texts.map((_, index) => this.slot(index + 1)));
  }

  slot(rank) {
    const best = rank === 1 && this.ranking.keys.length < 5 ? [" ", make("span", "", { "data-t": "best" }, t("best"))] : [];
    const button = make("button", "slot", { type: "button", "data-rank": rank }, make("b", "", {}, String(rank), ...best), make("span", "names"));
    button.addEventListener("click", () => this.rate(this.selected, rank));
    return button;
  }

  /** Begin with the first card without a rank. @param words key of what is announced */
  begin(words) {
    this.selected = this.ranking.missing[0] ?? this.ranking.keys[0];
    this.page.draw();
    scrollTo(0, 0);
    this.cards.focus(this.selected);
    announce(t(words, { count: this.ranking.keys.length }));
  }

  /** Write the ranks, who has which, and whose rank the slots give. */
  draw() {
    const { ranking, cards } = this;
    cards.draw(ranking, this.selected);
    const selected = cards.name(this.selected);
    find("whom").textContent = t("slots", { name: selected });
    for (const slot of find("slots").children) {
      const rank = Number(slot.dataset.rank);
      const names = ranking.keys.filter((key) => ranking.ranks[key] === rank).map((key) => cards.name(key));
      slot.querySelector(".names").textContent = short(names);
      slot.setAttribute("aria-label", t(names.length ? "slot_filled" : "slot_empty", { rank, names: names.join(" "), selected }));
    }
  }

  select(key) {
    if (this.selected === key) return;
    this.selected = key;
    this.page.draw();
  }

  change(key, act) {
    if (!act()) return;
    this.selected = key;
    this.page.changed();
    const label = t("card_label", { name: this.cards.name(key), rank: rankWords(this.ranking, key) });
    announce(label + (this.ranking.complete ? ` ${t("ready")}` : ""));
  }

  move(key, way) {
    this.change(key, () => this.ranking[way](key));
  }

  clear(key) {
    this.change(key, () => this.ranking.set(key, null));
  }

  /** Give a rank and go on to the next card that has none. */
  rate(key, rank, focus = false) {
    const { keys, ranks } = this.ranking;
    if (rank > keys.length) return this.page.tell(t("no_such_rank", { count: keys.length }));
    this.change(key, () => this.ranking.set(key, rank));
    const from = keys.indexOf(key);
    this.selected = [...keys.slice(from + 1), ...keys.slice(0, from)].find((other) => !(other in ranks)) ?? this.selected;
    this.page.draw();
    if (focus) this.cards.focus(this.selected);
    this.cards.reveal(this.selected);
  }
}

// what is focused or scrolled to stays above the tray, however high that is
new ResizeObserver(() => {
  const sticky = getComputedStyle(find("tray")).position === "sticky";
  document.documentElement.style.scrollPaddingBottom = `${(sticky ? find("tray").offsetHeight : 0) + 16}px`;
}).observe(find("tray"));
