// The cards of one task: what is written on them and what can be done to each. They say what was done, and decide nothing.
import { fill, t } from "./words.js";
import { make, write } from "./text.js";

export const FLAGS = ["unsafe", "broken", "reveals"];
export const letter = (index) => String.fromCharCode(65 + index);

export class Cards {
  /** @param flags those that are set, by key; null: there are none to set
   * @param on {select, move, clear}: each is told the key of a card. {rewrite}: texts may be rewritten; told when one was */
  constructor(place, task, flags, on) {
    this.task = task;
    this.place = place;
    this.on = on;
    this.cards = new Map(task.texts.map((each, index) => [each.key, this.build(each, letter(index), flags && (flags[each.key] ?? []))]));
    place.replaceChildren(...this.cards.values());
    place.dataset.count = task.texts.length;
  }

  build({ key, text, lang }, name, flags) {
    const button = (action, sign) => {
      const element = make("button", "step", { type: "button", "data-action": action }, make("span", "", { "aria-hidden": "true" }, sign));
      element.addEventListener("click", () => (action === "clear" ? this.on.clear(key) : this.on.move(key, action)));
      return element;
    };
    const words = make("div", "text", { id: `text-${key}` });
    write(words, text, lang, t("empty_text"));
    const grip = make("span", "grip", { "aria-hidden": "true", "data-drag": key }, "⠿ ", name);
    const head = make("div", "head", {}, grip, make("span", "rank"), button("better", "▲"), button("worse", "▼"), button("clear", "×"));
    const card = make("div", "card", { tabindex: "0", role: "group", "data-key": key, "aria-describedby": words.id }, head, words);
    card.dataset.name = name;
    if (this.on.rewrite) card.append(...this.rewriter(key, text, words.lang, card));
    if (flags) card.append(marks(flags));
    card.addEventListener("focusin", () => this.on.select(key));
    card.addEventListener("click", () => this.on.select(key)); // and not as soon as a finger lands: it may be scrolling
    return card;
  }

  /** A place to write a text better, which begins as the text; hidden, what is in it does not count. */
  rewriter(key, text, lang, card) {
    const area = make("textarea", "own", { rows: "6", maxlength: "10000", hidden: "", dir: "auto" });
    const button = make("button", "rewrite", { type: "button" });
    area.value = text;
    if (lang) area.lang = lang;
    button.addEventListener("click", () => this.rewrite(key, area.hidden));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && event.keyCode !== 229) card.focus();
    });
    return [area, button];
  }

  rewrite(key, open = true) {
    const area = this.cards.get(key).querySelector(".own");
    if (!area) return;
    area.hidden = !open;
    this.on.rewrite(key);
    if (open) area.focus();
  }

  /** Texts that were made better, by the key of the card; one that looks as before is none. */
  edits() {
    // a text area makes every end of a line "\n"
    const seen = (text) => text.replace(/\r\n?/g, "\n").normalize("NFC").trim();
    const edited = {};
    for (const { key, text } of this.task.texts) {
      const area = this.cards.get(key).querySelector(".own:not([hidden])");
      if (area && ![seen(text), ""].includes(seen(area.value))) edited[key] = area.value;
    }
    return edited;
  }

  setEdits(edits) {
    for (const [key, text] of Object.entries(edits)) {
      const area = this.cards.get(key)?.querySelector(".own");
      if (area) Object.assign(area, { value: text, hidden: false });
    }
  }

  name(key) {
    return this.cards.get(key).dataset.name;
  }

  focus(key) {
    this.cards.get(key).focus({ preventScroll: true });
  }

  /** Bring a card into sight. */
  reveal(key) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.cards.get(key).scrollIntoView({ block: "nearest", behavior: calm ? "instant" : "smooth" });
  }

  /** Write the ranks, which card is selected, and all words in the language of the page. */
  draw(ranking, selected) {
    for (const [key, card] of this.cards) {
      const name = card.dataset.name;
      const rank = rankWords(ranking, key);
      const badge = card.querySelector(".rank");
      badge.textContent = rank;
      card.classList.toggle("ranked", key in ranking.ranks);
      card.classList.toggle("selected", key === selected);
      card.setAttribute("aria-label", t("card_label", { name, rank }));
      for (const button of card.querySelectorAll(".step")) {
        const label = t(`${button.dataset.action}_label`, { name });
        button.setAttribute("aria-label", label);
        button.title = label;
      }
      const own = card.querySelector(".own");
      if (own) {
        own.setAttribute("aria-label", t("rewrite_label", { name }));
        card.querySelector(".rewrite").textContent = t(own.hidden ? "rewrite" : "rewrite_drop");
      }
      fill(card);
      if (!card.querySelector(".flags")) continue;
      card.querySelector("legend").textContent = t("flags_of", { name });
      const flags = [...card.querySelectorAll("input:checked")].map((box) => t(`flag_${box.value}`));
      card.querySelector("summary").textContent = [t("flags"), flags.join(", ")].filter(Boolean).join(": ");
    }
  }

  setFlags(flags) {
    for (const [key, card] of this.cards) for (const box of card.querySelectorAll(".flags input")) box.checked = Boolean(flags[key]?.includes(box.value));
  }

  flags() {
    const chosen = {};
    for (const [key, card] of this.cards) {
      const set = [...card.querySelectorAll(".flags input:checked")].map((box) => box.value);
      if (set.length) chosen[key] = set;
    }
    return chosen;
  }
}

function marks(flags) {
  const boxes = FLAGS.map((flag) => {
    const box = make("input", "", { type: "checkbox", value: flag });
    box.checked = flags.includes(flag);
    return make("label", "check", {}, box, make("span", "", { "data-t": `flag_${flag}` }));
  });
  return make("details", "flags", {}, make("summary"), make("fieldset", "", {}, make("legend", "unseen"), ...boxes));
}

/** "2nd, tied" in the language of the page. */
export function rankWords(ranking, key) {
  if (!(key in ranking.ranks)) return t("no_rank");
  return t(ranking.tied(key) ? "rank_tied" : "rank", { rank: ranking.ranks[key] });
}

/** The first characters of a prompt, for a list: whole ones, as half an emoji is none. */
export function beginning(prompt) {
  const words = make("span", "start");
  write(words, [...prompt].slice(0, 120).join(""), "", t("empty_text"));
  return words;
}

/** Letters as short as a narrow place needs: A–D for neighbours, and a count where they would be too many. */
export function short(names) {
  const runs = [];
  for (const name of names) {
    const last = runs.at(-1);
    if (last && name.charCodeAt(0) === last.at(-1).charCodeAt(0) + 1) last.push(name);
    else runs.push([name]);
  }
  if (runs.length > 2) return `${names[0]} +${names.length - 1}`;
  return runs.map((run) => (run.length > 2 ? `${run[0]}–${run.at(-1)}` : run.join(" "))).join(" ");
}
